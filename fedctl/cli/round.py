"""`fedctl round`: one pass of the road, from a plan to a published version."""

from __future__ import annotations

from typing import Annotated

import typer

from fedctl.cli import round_views as views
from fedctl.cli.command import Noun, session_of
from fedctl.cli.options import Labels, Names, home, reading, seconds_of, selector_of, writing
from fedctl.cli.output import View

app = Noun("round", "Train a model on the devices' own data.")

_MOST = 2**53  # far above any number of rounds, and a number that SQLite can look for
Model = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help="May be left out while there is only one.")
]
RoundNumber = Annotated[
    int | None, typer.Argument(metavar="[ROUND]", max=_MOST, help="A round's number.", show_default=False)
]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="N", min=1, help="At most so many train, by name.")
]
Rounds = Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Rounds to run.")]
Until = Annotated[
    str | None, typer.Option("--until", metavar="EXPR", help="End early, e.g. at 'auroc>=0.85'.")
]
LocalEpochs = Annotated[
    int | None, typer.Option("--local-epochs", metavar="N", help="Passes over a device's data.")
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", metavar="N", help="Examples of one step.")]
LearningRate = Annotated[float | None, typer.Option("--lr", metavar="RATE", help="Learning rate.")]
Momentum = Annotated[float | None, typer.Option("--momentum", metavar="FACTOR", help="From 0 to below 1.")]
Quorum = Annotated[
    int | None, typer.Option("--quorum", metavar="N", help="Updates that are needed; by default half.")
]
Deadline = Annotated[str, typer.Option("--deadline", metavar="TIME", help="For the devices: 90s, 10m or 1h.")]
Tolerance = Annotated[float, typer.Option("--tolerance", metavar="SHARE", help="How much the loss may rise.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Of shuffles; random if not set.")]
MaxExamples = Annotated[
    int | None, typer.Option("--max-examples", metavar="N", help="Most a device counts for.")
]
MaxUpdateNorm = Annotated[
    float | None, typer.Option("--max-update-norm", metavar="NORM", help="Drop larger updates.")
]
SkipIfRunning = Annotated[
    bool, typer.Option("--skip-if-running", help="Do nothing if another run has the model.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit code 3 if a device dropped out.")]


@app.verb(
    "start",
    examples="""
    fedctl round start health
    fedctl round start health --rounds 5 -l ward=3
    fedctl round start health 'watch-*' --rounds 50 --until 'auroc>=0.85'
    fedctl round start health --quorum 6 --deadline 20m --local-epochs 3
    fedctl round start health -q --skip-if-running
    """,
)
def start(  # noqa: PLR0913 - one parameter an option
    ctx: typer.Context,
    model: Model = None,
    names: Names = None,
    *,
    label: Labels = None,
    limit: Limit = None,
    rounds: Rounds = 1,
    until: Until = None,
    local_epochs: LocalEpochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    momentum: Momentum = None,
    quorum: Quorum = None,
    deadline: Deadline = "10m",
    tolerance: Tolerance = 0.05,
    seed: Seed = None,
    max_examples: MaxExamples = None,
    max_update_norm: MaxUpdateNorm = None,
    skip_if_running: SkipIfRunning = False,
    strict: Strict = False,
) -> View:
    """Run rounds: devices train on their own data, their updates become the next version.

    An unfinished round of the model is finished first. It may be killed at any moment; "fedctl round resume"
    goes on. Devices in maintenance are left out. Exit code 6: quorum, gate or target not met. 7: another run
    has the model.
    """
    from fedctl.cli.progress import Watcher
    from fedctl.core.plan import RoundWishes
    from fedctl.ops import rounds as operations

    wishes = RoundWishes(
        local_epochs=local_epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        quorum=quorum,
        deadline_s=seconds_of(deadline, option="--deadline"),
        tolerance=tolerance,
        until=until,
        seed=seed,
        max_examples=max_examples,
        max_update_norm=max_update_norm,
    )
    session = session_of(ctx)
    with writing() as store, Watcher(quiet=session.quiet) as watcher:
        result = operations.start(
            store,
            home(),
            model,
            selector_of(names, label, limit),
            wishes=wishes,
            rounds=rounds,
            skip_if_running=skip_if_running,
            observer=views.RoundTable(session, watcher),
        )
    return views.ran(result, strict=strict)


@app.verb(
    "list",
    examples="""
    fedctl round list
    fedctl round list health --limit 10
    fedctl round list -o jsonl
    """,
)
def list_(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Only this model's.")] = None,
    *,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=_MOST, help="The newest so many.")
    ] = 50,
) -> View:
    """List rounds, newest first."""
    from fedctl.ops import rounds as operations

    with reading() as store:
        return views.listed(operations.list_rounds(store, model=model, limit=limit))


@app.verb(
    "show",
    examples="""
    fedctl round show 41
    fedctl round show 41 -o json
    """,
)
def show(
    round_id: Annotated[int, typer.Argument(metavar="ROUND", max=_MOST, help="A round's number.")],
) -> View:
    """Show one round: what was planned, what became of it, and what each device did."""
    from fedctl.ops import rounds as operations

    with reading() as store:
        return views.shown(operations.show(store, round_id))


@app.verb(
    "watch",
    examples="""
    fedctl round watch
    fedctl round watch 41
    """,
)
def watch(ctx: typer.Context, round_id: RoundNumber = None) -> View:
    """Follow a round that another process drives, until it ends; by default the newest.

    Exit code 6: it ended and was not published.
    """
    from fedctl.cli.progress import Watcher
    from fedctl.ops import rounds as operations

    with reading() as store, Watcher(quiet=session_of(ctx).quiet) as watcher:
        return views.watched(operations.watch(store, home(), round_id, observer=watcher))


@app.verb(
    "resume",
    examples="""
    fedctl round resume
    fedctl round resume 41
    """,
)
def resume(ctx: typer.Context, round_id: RoundNumber = None) -> View:
    """Finish a round that was interrupted, or all of them."""
    from fedctl.cli.progress import Watcher
    from fedctl.ops import rounds as operations

    session = session_of(ctx)
    with writing() as store, Watcher(quiet=session.quiet) as watcher:
        observer = views.RoundTable(session, watcher)
        return views.resumed(operations.resume(store, home(), round_id, observer=observer))


@app.verb(
    "cancel",
    examples="""
    fedctl round cancel
    fedctl round cancel 41
    """,
)
def cancel(round_id: RoundNumber = None) -> View:
    """End an unfinished round; nothing of it is published."""
    from fedctl.ops import rounds as operations

    with writing() as store:
        return views.cancelled(operations.cancel(store, home(), round_id))
