"""`fedctl round`: one pass of the road, from a plan to a published version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from fedctl.cli import round_views as views
from fedctl.cli.command import Noun, session_of
from fedctl.cli.option_groups import grouped
from fedctl.cli.options import Labels, Names, home, reading, seconds_of, selector_of, writing
from fedctl.cli.output import View
from fedctl.cli.training_options import TrainingOptions

if TYPE_CHECKING:
    from fedctl.core.plan import RoundWishes

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How many rounds, and what this process makes of them."""

    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Rounds to run.")] = 1
    skip_if_running: Annotated[
        bool, typer.Option("--skip-if-running", help="Do nothing if another run has the model.")
    ] = False
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 3 if a device dropped out.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleOptions:
    """When a round's collection ends, and what may be published."""

    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            metavar="EXPR",
            help="End early, e.g. at 'auroc>=0.85' (two classes), or by macro_f1, accuracy or loss.",
        ),
    ] = None
    quorum: Annotated[
        int | None, typer.Option("--quorum", metavar="N", help="Updates that are needed; by default half.")
    ] = None
    deadline: Annotated[
        str, typer.Option("--deadline", metavar="TIME", help="For the devices: 90s, 10m or 1h.")
    ] = "10m"
    tolerance: Annotated[
        float, typer.Option("--tolerance", metavar="SHARE", help="How much the loss may rise.")
    ] = 0.05
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Of shuffles; random if not set.")
    ] = None
    max_update_norm: Annotated[
        float | None, typer.Option("--max-update-norm", metavar="NORM", help="Drop larger updates.")
    ] = None

    def wishes(self, training: TrainingOptions) -> RoundWishes:
        """Both groups for the operation, not yet checked."""
        from fedctl.core.plan import RoundWishes

        return RoundWishes(
            until=self.until,
            quorum=self.quorum,
            deadline_s=seconds_of(self.deadline, option="--deadline"),
            tolerance=self.tolerance,
            seed=self.seed,
            max_update_norm=self.max_update_norm,
            **training.given(),
        )


@app.verb(
    "start",
    examples="""
    fedctl round start health
    fedctl round start health --rounds 5 -l ward=3
    fedctl round start health 'watch-*' --rounds 50 --until 'auroc>=0.85'
    fedctl round start health --quorum 6 --deadline 20m --local-epochs 3
    fedctl round start health --optimizer adam --lr 0.001 --proximal-mu 0.01
    fedctl round start health -q --skip-if-running
    """,
)
@grouped
def start(
    ctx: typer.Context,
    model: Model = None,
    names: Names = None,
    *,
    label: Labels = None,
    limit: Limit = None,
    run: RunOptions,
    rules: RuleOptions,
    training: TrainingOptions,
) -> View:
    """Run rounds: devices train on their own data, their updates become the next version.

    An unfinished round of the model is finished first. It may be killed at any moment; "fedctl round resume"
    goes on. Devices in maintenance are left out. Exit code 6: quorum, gate or target not met. 7: another run
    has the model.
    """
    from fedctl.cli.progress import Watcher
    from fedctl.ops import rounds as operations

    session = session_of(ctx)
    selector, wishes = selector_of(names, label, limit), rules.wishes(training)
    with writing() as store, Watcher(quiet=session.quiet) as watcher:
        result = operations.start(
            store,
            home(),
            model,
            selector,
            wishes=wishes,
            rounds=run.rounds,
            skip_if_running=run.skip_if_running,
            observer=views.RoundTable(session, watcher),
        )
    return views.ran(result, strict=run.strict)


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
