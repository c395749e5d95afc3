"""`fedctl demo`: a fleet on this machine, and what training together gains on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fedctl.cli.command import Verb, session_of
from fedctl.cli.options import home
from fedctl.cli.output import Column, Table, View
from fedctl.cli.units import fixed
from fedctl_wire.codec import to_json

if TYPE_CHECKING:
    from fedctl.ops.demo import DemoResult

_INDENT = "  "
_COLUMNS = 80


def demo(
    ctx: typer.Context,
    *,
    devices: Annotated[int, typer.Option("--devices", metavar="N", help="Devices that train.")] = 8,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", help="Rounds of training.")] = 10,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of people, weights and shuffles.")] = 0,
    stop: Annotated[bool, typer.Option("--stop", help="End the demo's fleet and remove it.")] = False,
) -> View:
    """Watch a fleet of real agents train a shared model, each on one simulated person's data.

    Half as many devices again take no part in training and measure the result. The fleet is left
    running in $FEDCTL_HOME, which must not hold a real one.
    """
    from fedctl.cli.progress import Watcher
    from fedctl.cli.round_views import RoundTable
    from fedctl.ops import demo as operations

    if stop:
        return _stopped(operations.stop(home()))
    session = session_of(ctx)
    with Watcher(quiet=session.quiet, indent=_INDENT) as watcher:
        people = f"{max(1, devices // 2)} people who took no part"
        observer = RoundTable(session, watcher, indent=_INDENT, people=people)
        result = operations.run(home(), devices=devices, rounds=rounds, seed=seed, observer=observer)
    return _compared(result)


def _stopped(agents: int) -> View:
    line = f"the demo's {agents} agents were ended and its files removed" if agents else "there is no demo"
    return View({"stopped": agents}, [[line]], action=True)


def _compared(result: DemoResult) -> View:
    scores = (
        (f"each device alone (mean of {result.devices})", result.local),
        ("federated, no data left a device", result.federated),
        ("all data in one place", result.central),
    )
    table = Table(
        (Column(f"{_INDENT}On people the model has never seen", width=42), Column("AUROC", right=True)),
        [(f"{_INDENT}{name}", fixed(score, 3)) for name, score in scores],
    )
    advice = [f"{_INDENT}The fleet is still running. Try:", *(f"{_INDENT * 2}{c}" for c in result.commands)]
    blocks = [["", *table.lines(_COLUMNS)], advice]
    return View(to_json(result), blocks, to_json(result.history), [result.model])


app = Verb(
    "demo",
    demo,
    examples="""
    fedctl demo
    fedctl demo --devices 4 --rounds 3 --seed 1
    fedctl demo -o json | tail -n 1
    fedctl demo --stop
    """,
)
