"""One source file of the device as an object, and whether it can serve a model; no NumPy."""

from __future__ import annotations

import functools
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from fedctl_agent.trainers.contract import JobError, refuse
from fedctl_wire.errors import WireError
from fedctl_wire.messages import DataNeeds
from fedctl_wire.sources import MAX_TOML_BYTES, SourceSpec, parse_source, shown

_SUFFIX = ".toml"


@dataclass(frozen=True, slots=True)
class Source:
    """What a source file says, and where it stands."""

    name: str  # of the file, without .toml
    path: Path  # of the data: absolute, or relative to the working directory if the TOML's was
    spec: SourceSpec


def read_source(path: Path) -> Source:
    """Read one source file strictly.

    Raises:
        JobError: With code `source`, naming the file and the key that is missing, unknown or wrong.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - a pipe would never end
            raise JobError("source", f"{path.name} is not a regular file")
        with path.open("rb", buffering=0) as stream:
            data = stream.read(MAX_TOML_BYTES + 1)
    except OSError as error:
        raise JobError("source", f"{path.name} cannot be read: {error.strerror}") from error
    return _parse(path, data)


@functools.lru_cache(maxsize=4)  # filled in the worker, by its call of `choose_source` before it forks
def _parse(path: Path, data: bytes) -> Source:
    try:
        spec = parse_source(data)
    except WireError as error:
        raise JobError("source", f"{path.name} {error}") from error
    return Source(path.stem, path.parent / spec.path, spec)


def choose_source(directory: Path, model: str) -> Source:
    """The source for a model: the one of its name, else the only one.

    Raises:
        JobError: Refused, `no_source`, when there is none or more than one to choose from; failed,
            `source`, when the chosen file is bad.
    """
    stems = source_names(directory)
    chosen = [model] if model in stems else stems
    if not chosen:
        raise refuse("no_source", "this device has no source of data: sources/*.toml is missing")
    if len(chosen) > 1:
        names = shown(", ".join(chosen))
        raise refuse("no_source", f"this device has several sources ({names}), none named {model!r}")
    return read_source(directory / (chosen[0] + _SUFFIX))


def source_names(directory: Path) -> list[str]:
    """Names of the sources in a directory, sorted; none where there is no directory."""
    # Not by Path.glob, which makes a regular expression: that is a third of choosing.
    try:
        names = os.listdir(directory)  # noqa: PTH208 - see above
    except FileNotFoundError:
        return []
    return sorted(name[: -len(_SUFFIX)] for name in names if name.endswith(_SUFFIX))


def selected_features(source: Source, needs: DataNeeds | None) -> tuple[str, ...]:
    """The columns to read, in the model's order where it names them.

    Raises:
        JobError: Refused, `schema`; see `check_fit`.
    """
    if needs is None:
        return source.spec.features
    check_fit(source, needs)
    return needs.features or source.spec.features


def check_fit(source: Source, needs: DataNeeds) -> None:
    """Refuse a model that this source cannot serve, by what its file says alone.

    Nobody can tell in which order an array holds what a model takes by name, so such a model does not fit it.

    Raises:
        JobError: Refused, `schema`, saying what differs.
    """
    spec = source.spec
    if spec.classes and len(spec.classes) != needs.classes:
        raise no_fit(source, f"lists {len(spec.classes)} classes, the model has {needs.classes}")
    if needs.features and spec.kind == "npz":
        names = shown(", ".join(needs.features))
        raise no_fit(source, f"has no names of columns (npz), the model takes them by name: {names}")
    if spec.shape is None:
        return
    if needs.features:
        lacking = [name for name in needs.features if name not in spec.features]
        if lacking:
            raise no_fit(source, f"lacks the features {shown(', '.join(lacking))}, which the model takes")
        check_shape(source, (len(needs.features), *spec.shape[1:]), needs)
    else:
        check_shape(source, spec.shape, needs)


def check_shape(source: Source, shape: tuple[int, ...], needs: DataNeeds) -> None:
    """Refuse examples of another shape than the model's.

    Raises:
        JobError: Refused, `schema`.
    """
    if shape != needs.input_shape:
        raise no_fit(source, f"gives {_called(shape)}, the model takes {_called(needs.input_shape)}")


def no_fit(source: Source, why: str) -> JobError:
    """The refusal of a model that needs other data."""
    return refuse("schema", f"source {source.name!r} {why}")


def _called(shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return f"{shape[0]} features"
    if len(shape) == 2:
        return f"windows of {shape[1]} samples of {shape[0]} features"
    return f"examples of shape {list(shape)}"
