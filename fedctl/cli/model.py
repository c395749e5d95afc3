"""`fedctl model`: named series of versions, from the first draft to a file for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from fedctl.cli import model_views as views
from fedctl.cli.command import Noun, session_of
from fedctl.cli.options import Labels, Limit, Names, Parallel, chosen, home, integers, reading, writing
from fedctl.cli.output import View
from fedctl.core.errors import UsageError

app = Noun("model", "Create models and put them on devices.")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="health, health@3 or health@published.")]


@app.verb(
    "create",
    examples="""
    fedctl model create health --builder mlp --input 24 --hidden 16 --classes 2
    fedctl model create har --input 237 --hidden 64,32 --classes 6 --seed 7
    """,
)
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")],
    *,
    inputs: Annotated[
        str, typer.Option("--input", metavar="N", help="Features of one example, or a shape such as 128,9.")
    ],
    classes: Annotated[int, typer.Option("--classes", metavar="N", min=2, help="Number of classes.")],
    hidden: Annotated[
        list[str], typer.Option("--hidden", metavar="N[,N]...", help="Units of the hidden layers.")
    ],
    builder: Annotated[str, typer.Option("--builder", metavar="NAME", help="What makes the graph.")] = "mlp",
    scale: Annotated[
        str, typer.Option("--scale", metavar="standard|none", help="Scaling of the features.")
    ] = "standard",
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of the first weights.")] = 0,
) -> View:
    """Create a model: build its graph, check it and sign version 1, a draft.

    With the scaling "standard" the first round asks the devices for sums of their features and writes the
    version that holds mean and deviation.
    """
    from fedctl.ops import models

    if scale not in {"standard", "none"}:
        raise UsageError(f"--scale {scale!r} is neither 'standard' nor 'none'", subject="--scale")
    wanted = models.NewModel(
        name=name,
        builder=builder,
        input_shape=integers([inputs], option="--input"),
        hidden=integers(hidden, option="--hidden"),
        classes=classes,
        scale=cast("Literal['standard', 'none']", scale),
        seed=seed,
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
