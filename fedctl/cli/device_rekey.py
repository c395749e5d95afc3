"""`fedctl devices rekey`: fedctl's login on devices, put back or made anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fedctl.cli.command import Verb, session_of
from fedctl.cli.device_options import HostKey, SshConfig, Via, admin_login
from fedctl.cli.device_views import error_json, exit_of, reasons, short
from fedctl.cli.options import Labels, Limit, Names, Parallel, chosen, home, writing
from fedctl.cli.output import Column, Details, Table, View

if TYPE_CHECKING:
    from fedctl.ops.enrolment.rekey import RekeyOutcome, RekeyResult
    from fedctl_wire.codec import Json


def rekey(  # noqa: PLR0913 - one parameter an option
    ctx: typer.Context,
    names: Names = None,
    *,
    label: Labels = None,
    limit: Limit = None,
    via: Via = None,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make a new login key: the old one may be in other hands.")
    ] = False,
    accept_host_key: HostKey = None,
    ssh_config: SshConfig = None,
    parallel: Parallel = 16,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> View:
    """Put fedctl's restricted login back on devices, or replace its key.

    By your own login, as "fedctl devices add" does: fedctl's line for this agent in authorized_keys is
    written again, and every other line of fedctl's is removed. With --new-key the fleet's key is replaced
    first; devices that are not reached keep the old one until a later rekey. Exit code 3: some failed.
    """
    from fedctl.cli.progress import Watcher
    from fedctl.ops.enrolment import rekey as operation

    with writing() as store, Watcher(quiet=session_of(ctx).quiet) as watcher:
        result = operation.rekey(
            store,
            home(),
            chosen(store, names, label, limit),
            admin=admin_login(ssh_config, accept_host_key, watcher, via=via),
            new_key=new_key,
            dry_run=dry_run,
            parallel=parallel,
            observer=watcher,
        )
    return rekeyed(result)


def rekeyed(result: RekeyResult) -> View:
    """What became of each device; names are those that know the current key."""
    outcomes = result.outcomes
    done = [outcome for outcome in outcomes if outcome.error is None]
    rows: list[Json] = [
        {
            "name": outcome.device,
            "changed": outcome.changed,
            "steps": list(outcome.steps),
            "error": error_json(outcome.error),
        }
        for outcome in outcomes
    ]
    cells = [_cells(outcome, dry_run=result.dry_run) for outcome in outcomes]
    sentences = []
    if result.new_key:
        sentences.append(f"the login key is new: {result.new_key}")
    if result.waiting:
        names = " ".join(result.waiting)
        sentences.append(f"the key before is kept, and needed for: fedctl devices rekey {names}")
    if result.dry_run:
        sentences.append("nothing was changed (--dry-run)")
    return View(
        {
            "devices": rows,
            "new_key": result.new_key or None,
            "waiting": list(result.waiting),
            "dry_run": result.dry_run,
        },
        [
            Table((Column("name"), Column(""), Column("outcome")), cells),
            Details([(outcome.device, outcome.steps) for outcome in done]),
            reasons([(outcome.device, outcome.error) for outcome in outcomes]),
            sentences,
        ],
        rows,
        [outcome.device for outcome in done],
        exit_code=exit_of([outcome.error for outcome in outcomes]),
    )


def _cells(outcome: RekeyOutcome, *, dry_run: bool) -> tuple[str | None, ...]:
    if outcome.error is not None:
        return (outcome.device, "✗", short(outcome.error))
    if dry_run:
        return (outcome.device, None, "dry run")
    return (outcome.device, "✓", "rekeyed" if outcome.changed else "nothing to do")


verb = Verb(
    "rekey",
    rekey,
    examples="""
    fedctl devices rekey watch-01
    fedctl devices rekey watch-01 --via ssh://root@192.0.2.41
    fedctl devices rekey '*' --new-key
    fedctl devices rekey '*' --new-key --dry-run
    """,
)
