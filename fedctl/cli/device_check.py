"""`fedctl devices check`: why a device cannot be reached, and what is not well with one that is."""

from __future__ import annotations

import typer

from fedctl.cli import check_views as views
from fedctl.cli.command import Verb, session_of
from fedctl.cli.options import Labels, Limit, Names, Parallel, Timeout, home, selected, writing
from fedctl.cli.output import View


def check(
    ctx: typer.Context,
    names: Names = None,
    *,
    label: Labels = None,
    limit: Limit = None,
    timeout: Timeout = 10.0,
    parallel: Parallel = 64,
) -> View:
    """Go the way to devices step by step: where does it end, and what is the way out?

    Name, port, host key or TLS, login, the agent's bridge, the agent, its identity and version, clock,
    certificate, disk, control groups, and what limits the agent and its jobs. Nothing is changed.

    Exit code 3: something is not well with some devices. 4: none could be reached. 8: another key, identity
    or login than at the enrolment.
    """
    from fedctl.cli.progress import Watcher
    from fedctl.ops import check as operation

    with writing() as store, Watcher(quiet=session_of(ctx).quiet) as watcher:
        results = operation.check(
            store,
            home(),
            selected(store, names, label, limit),
            timeout_s=timeout,
            parallel=parallel,
            observer=watcher,
        )
    return views.checked(results)


verb = Verb(
    "check",
    check,
    examples="""
    fedctl devices check watch-07
    fedctl devices check -l ward=3 --timeout 5
    fedctl devices check -o json
    """,
)
