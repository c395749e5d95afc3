"""`fedctl data`: what the devices' data are good for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedctl.cli import data_views as views
from fedctl.cli.command import Noun, session_of
from fedctl.cli.options import Labels, Limit, Names, Parallel, Timeout, home, reading, selected, writing
from fedctl.cli.output import View
from fedctl.core.errors import UsageError

if TYPE_CHECKING:
    from fedctl.ops.data import DataCheck

app = Noun("data", "Look at what the devices' data are good for.")


@app.verb(
    "check",
    examples="""
    fedctl data check
    fedctl data check watch-01 --model health@3
    fedctl data check -l ward=3 -o json
    fedctl data check --source recorder.toml
    """,
)
def check(
    ctx: typer.Context,
    names: Names = None,
    *,
    label: Labels = None,
    limit: Limit = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME[@VERSION]", help="Would it fit? Default: the only model."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--source", metavar="FILE", help="Look at a source TOML's data on this machine instead."
        ),
    ] = None,
    timeout: Timeout = 75.0,
    parallel: Parallel = 64,
) -> View:
    """Ask devices for counts, times, gaps, label balance and missing cells of their data, with verdicts.

    Never a reading, and only what a device's policy shares. Exit code 3: some devices cannot train as they
    are, or did not answer. 4: none answered.
    """
    from fedctl.cli.progress import Watcher
    from fedctl.ops import data

    if source is not None:
        return views.checked_here(_here(source, names, model))
    with writing() as store, Watcher(quiet=session_of(ctx).quiet) as watcher:
        outcomes = data.check(
            store,
            home(),
            selected(store, names, label, limit),
            model=model,
            timeout_s=timeout,
            parallel=parallel,
            observer=watcher,
        )
    return views.checked(outcomes)


def _here(source: Path, names: list[str] | None, model: str | None) -> DataCheck:
    from fedctl.ops import data

    if names:
        raise UsageError(
            "--source looks at this machine's data, not at a device's",
            hint="name devices, or --source FILE",
            subject="--source",
        )
    if model is None:
        return data.check_here(source)
    with reading() as store:
        wanted = data.wanted_model(store, home(), model)
    return data.check_here(source, wanted)
