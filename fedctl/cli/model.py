"""`fedctl model`: named series of versions, from the first draft to a file for others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from fedctl.cli import inspect_views
from fedctl.cli import model_views as views
from fedctl.cli.command import Noun, session_of
from fedctl.cli.option_groups import grouped
from fedctl.cli.options import (
    Labels,
    Limit,
    Names,
    Parallel,
    chosen,
    home,
    integers,
    names_of,
    reading,
    writing,
)
from fedctl.cli.output import View
from fedctl.cli.training_options import TrainingOptions
from fedctl.core.errors import UsageError

if TYPE_CHECKING:
    from fedctl.models import Convolutions

app = Noun("model", "Create models and put them on devices.")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="health, health@3 or health@published.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """What the graph is made of."""

    builder: Annotated[
        str, typer.Option("--builder", metavar="logreg|mlp|cnn", help="What makes the graph.")
    ] = "mlp"
    inputs: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="N|CxN",
            help="Features, or channels x samples of a window; by default as many as --columns.",
        ),
    ] = None
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns",
            metavar="NAME[,NAME]...",
            help="Columns that every device must have, in whatever order it lists them.",
        ),
    ] = None
    classes: Annotated[int, typer.Option("--classes", metavar="N", min=2, help="Number of classes.")]
    hidden: Annotated[
        list[str] | None, typer.Option("--hidden", metavar="N[,N]...", help="Units of the hidden layers.")
    ] = None
    channels: Annotated[
        list[str] | None,
        typer.Option("--channels", metavar="N[,N]...", help="Of a cnn's convolutions, one number each."),
    ] = None
    kernel: Annotated[
        int | None,
        typer.Option("--kernel", metavar="N", help="Samples that a convolution sees; by default 5."),
    ] = None
    pool: Annotated[
        int | None,
        typer.Option("--pool", metavar="N", help="After each, the largest of so many; by default 2."),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """By the names of `NewModel`."""
        columns = names_of(self.columns or (), option="--columns")
        return {
            "builder": self.builder,
            "input_shape": self._input_shape(columns),
            "columns": columns,
            "classes": self.classes,
            "hidden": integers(self.hidden, option="--hidden") if self.hidden else (),
            "window": self._window(),
        }

    def _input_shape(self, columns: tuple[str, ...]) -> tuple[int, ...]:
        if self.inputs is not None:
            return integers([self.inputs.replace("x", ",")], option="--input")
        if not columns:
            hint = "give --input N, --input CxN for windows, or --columns with the features' names"
            raise UsageError("a model needs to know its input", hint=hint, subject="--input")
        return (len(columns),)

    def _window(self) -> Convolutions | None:
        from fedctl.models import Convolutions

        given = {name: value for name in ("kernel", "pool") if (value := getattr(self, name)) is not None}
        if not self.channels and not given:
            return None
        channels = integers(self.channels, option="--channels") if self.channels else ()
        return Convolutions(channels=channels, **given)


@app.verb(
    "create",
    examples="""
    fedctl model create health --builder mlp --input 24 --hidden 16 --classes 2
    fedctl model create pulse --columns hr,steps,temp --hidden 8 --classes 2
    fedctl model create fever --builder logreg --input 66 --classes 2 --lr 0.02
    fedctl model create har --builder cnn --input 3x64 --channels 8,16 --classes 6
    """,
)
@grouped
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")],
    *,
    network: NetworkOptions,
    scale: Annotated[
        str, typer.Option("--scale", metavar="standard|none", help="Scaling of the features.")
    ] = "standard",
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of the first weights.")] = 0,
    training: TrainingOptions,
) -> View:
    """Create a model: build its graph, check it and sign version 1, a draft.

    With the scaling "standard" the first round asks the devices for sums of their features, or of the
    channels of their windows, and writes the version that holds mean and deviation. How devices train are
    the model's defaults; "fedctl round start" has the same options. Class weights need a model that was
    created with --class-weights.

    With --columns each device hands the model its columns by name; one that lacks a column, or holds arrays
    without names (npz), declines. Without, columns are taken in the order in which each device lists them.
    """
    from fedctl.ops import models

    if scale not in {"standard", "none"}:
        raise UsageError(f"--scale {scale!r} is neither 'standard' nor 'none'", subject="--scale")
    wanted = models.NewModel(
        name=name,
        scale=cast("Literal['standard', 'none']", scale),
        seed=seed,
        training=training.wishes(),
        **network.arguments(),
    )
    with writing() as store:
        return views.created(models.create(store, home(), wanted))


@app.verb(
    "list",
    examples="""
    fedctl model list
    fedctl model list -o name
    """,
)
def list_() -> View:
    """List the models, each with its latest and its published version."""
    with reading() as store:
        return views.listed(store.models())


@app.verb(
    "show",
    examples="""
    fedctl model show health
    fedctl model show health@3 -o json
    """,
)
def show(model: Model) -> View:
    """Show one version of a model, its other versions and the devices that hold it.

    Without @ it is the published version, or the latest one while none is published.
    """
    from fedctl.ops import models

    with reading() as store:
        return views.shown(models.show(store, home(), model))


@app.verb(
    "inspect",
    examples="""
    fedctl model inspect health
    fedctl model inspect health@3 --batch-size 64 -o json
    """,
)
def inspect(
    model: Model,
    *,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="N", min=1, max=1_000_000, help="By default the model's."),
    ] = None,
) -> View:
    """Show what a version is made of: tensors, operators, bytes, and the memory that training takes.

    The memory is an estimate, from a run of the graph here: what stands beside a job's own, and beside the
    device's data.
    """
    from fedctl.ops import inspection

    with reading() as store:
        return inspect_views.inspected(inspection.inspect(store, home(), model, batch_size=batch_size))


@app.verb(
    "push",
    examples="""
    fedctl model push health watch-01
    fedctl model push health@3 'watch-*' -l ward=3
    """,
)
def push(
    ctx: typer.Context,
    model: Model,
    names: Names = None,
    *,
    label: Labels = None,
    limit: Limit = None,
    parallel: Parallel = 64,
) -> View:
    """Install a version on devices and make it their active one.

    An upload that is cut goes on where it stopped when the command is run again. Devices in maintenance are
    left out. Exit code 3: some devices failed. 4: none could be reached.
    """
    from fedctl.cli.progress import Watcher
    from fedctl.ops import models

    with writing() as store, Watcher(quiet=session_of(ctx).quiet) as watcher:
        devices = chosen(store, names, label, limit)
        result = models.push(store, home(), model, devices, parallel=parallel, observer=watcher)
    return views.pushed(result)


@app.verb(
    "export",
    examples="""
    fedctl model export health
    fedctl model export health@3 health.safetensors --force
    """,
)
def export(
    model: Model,
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Where to; by default NAME-VERSION.safetensors here."),
    ] = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> View:
    """Write a version as one plain safetensors file: the weights, and the scaling as tensors beside them.

    The scaling is preprocessing.mean and preprocessing.std; its clip is in the file's metadata.
    """
    from fedctl.ops import models

    if path == Path("-"):
        raise UsageError("a model is not written to stdout", hint="name a file", subject="-")
    with reading() as store:
        version = models.resolve(store, model)
        target = path or Path(f"{version.model}-{version.version}.safetensors")
        return views.exported(models.export(store, home(), model, target, force=force))
