"""`fedctl devices upgrade`: the agent of this fedctl on devices that have another one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedctl.cli import device_views as views
from fedctl.cli.command import Verb, session_of
from fedctl.cli.device_options import SshConfig, Via, admin_login
from fedctl.cli.options import Labels, Limit, Names, Parallel, chosen, home, writing
from fedctl.cli.output import Column, Details, Table, View
from fedctl_wire.codec import Json

if TYPE_CHECKING:
    from fedctl.ops.enrolment.upgrade import UpgradeOutcome


def upgrade(  # noqa: PLR0913 - one parameter an option
    ctx: typer.Context,
    names: Names = None,
    *,
    label: Labels = None,
    limit: Limit = None,
    wheels: Annotated[
        Path | None, typer.Option("--wheels", metavar="DIR", help="Take wheels from here, not an index.")
    ] = None,
    reinstall: Annotated[
        bool, typer.Option("--reinstall", help="Also where this version is installed already.")
    ] = False,
    via: Via = None,
    ssh_config: SshConfig = None,
    timeout: Annotated[
        int,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=1,
            max=3600,
            help="For a new agent to answer; then the old one is put back.",
        ),
    ] = 60,
    parallel: Parallel = 8,
) -> View:
    """Bring the agent of this fedctl onto devices that have another one.

    Identity, sources and models stay. Exit code 3: some devices failed.
    """
    from fedctl.cli.progress import Watcher
    from fedctl.ops.enrolment.upgrade import upgrade as run

    with writing() as store, Watcher(quiet=session_of(ctx).quiet) as watcher:
        outcomes = run(
            store,
            home(),
            chosen(store, names, label, limit),
            admin=admin_login(ssh_config, None, watcher, via=via),
            wheels=wheels,
            reinstall=reinstall,
            patience_s=timeout,
            parallel=parallel,
            observer=watcher,
        )
    return upgraded(outcomes)


def upgraded(outcomes: Sequence[UpgradeOutcome]) -> View:
    """What became of each agent; names are those of devices that have the new one."""
    rows: list[Json] = [
        {
            "name": o.device,
            "upgraded": o.error is None,
            "changed": bool(o.steps),
            "before": o.before,
            "steps": list(o.steps),
            "verdict": o.verdict or None,
            "error": views.error_json(o.error),
        }
        for o in outcomes
    ]
    columns = (Column("name"), Column(""), Column("before", drop=1), Column("outcome"))
    good = [o.device for o in outcomes if o.error is None]
    return View(
        {"devices": rows},
        [
            Table(columns, [_cells(o) for o in outcomes]),
            Details([(o.device, (*o.steps, o.verdict)) for o in outcomes if o.steps]),
            views.reasons([(o.device, o.error) for o in outcomes]),
        ],
        rows,
        good,
        action=len(good) == len(outcomes),
        exit_code=views.exit_of([o.error for o in outcomes]),
    )


def _cells(outcome: UpgradeOutcome) -> views.Cells:
    if outcome.error is not None:
        return (outcome.device, "✗", outcome.before, views.short(outcome.error))
    return (outcome.device, "✓", outcome.before, "upgraded" if outcome.steps else "nothing was to do")


verb = Verb(
    "upgrade",
    upgrade,
    examples="""
    fedctl devices upgrade watch-01
    fedctl devices upgrade '*' --parallel 4
    fedctl devices upgrade -l ward=3 --wheels ./wheels
    fedctl devices upgrade watch-01 --reinstall --timeout 120
    """,
)
