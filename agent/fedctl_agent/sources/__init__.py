"""Where local data comes from: `sources/NAME.toml`, written by someone at the device.

```
kind = "npz"            # a directory of .npz files, or one
path = "/data/har"      # relative to the TOML's directory where it is not absolute
features = "x_feat"     # array (n, features), float
label = "y"             # array (n,), integer
test_fraction = 0.2     # the last of the examples in file order are never trained on
```
Reading this package loads no NumPy; `local_data` does.
"""

from __future__ import annotations

import functools
import os
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedctl_agent.trainers.contract import JobError, refuse
from fedctl_wire.manifest import Manifest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KINDS = ("npz",)
_SUFFIX = ".toml"
_SHOWN_CHARS = 200
MAX_TOML_BYTES = 16 * 1024  # of keys in one another a parser makes quadratic work
_KEYS = {"kind": str, "path": str, "features": str, "label": str, "test_fraction": float}
_DEFAULT_TEST_FRACTION = 0.2


@dataclass(frozen=True, slots=True)
class Source:
    """What a source file says."""

    name: str  # of the file, without .toml
    kind: str
    path: Path  # absolute, or relative to the working directory if the TOML's was
    features: str
    label: str
    test_fraction: float


@dataclass(frozen=True, slots=True)
class Part:
    """Examples in memory."""

    x: NDArray[np.float32]  # (n, features); NaN where a cell is missing
    y: NDArray[np.int64]  # (n,)


@dataclass(frozen=True, slots=True)
class LocalData:
    """All examples of a source, and where its training part ends."""

    source: str
    x: NDArray[np.float32]  # (n, features), in file order; NaN where a cell is missing
    y: NDArray[np.int64]  # (n,)
    train: int  # the first so many are the training part

    def training(self, min_examples: int) -> Part:
        """The training part.

        Raises:
            JobError: Refused, `policy`, when it has fewer than `min_examples`; `no_data` when none.
        """
        return self._checked(Part(self.x[: self.train], self.y[: self.train]), min_examples, self.train)

    def test(self, min_examples: int) -> Part:
        """The part that is never trained on.

        Raises:
            JobError: Refused, `no_data`, when there is none; `policy` when the whole source has
                fewer than `min_examples`.
        """
        return self._checked(Part(self.x[self.train :], self.y[self.train :]), min_examples, len(self.y))

    def everything(self, min_examples: int) -> Part:
        """All examples; see `test`."""
        return self._checked(Part(self.x, self.y), min_examples, len(self.y))

    def _checked(self, part: Part, min_examples: int, counted: int) -> Part:
        if not len(part.y):
            raise refuse("no_data", f"source {self.source!r} has no examples for this task")
        if counted < min_examples:
            raise refuse("policy", f"source {self.source!r} has fewer than {min_examples} examples")
        return part


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
    if len(data) > MAX_TOML_BYTES:
        raise JobError("source", f"{path.name} is larger than {MAX_TOML_BYTES} bytes")
    return _parse(path, data)


@functools.lru_cache(maxsize=4)  # filled in the worker, by its call of `choose_source` before it forks
def _parse(path: Path, data: bytes) -> Source:
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except ValueError as error:
        raise JobError("source", f"{path.name} cannot be read: {shown(error)}") from error
    except RecursionError as error:
        raise JobError("source", f"{path.name} is nested too deeply") from error
    values = {"test_fraction": _DEFAULT_TEST_FRACTION, **table}
    for key in values.keys() - _KEYS:
        raise JobError("source", f"{path.name} has an unknown key {shown(key)!r}")
    for key, kind in _KEYS.items():
        if key not in values:
            raise JobError("source", f"{path.name} lacks the key {key!r}")
        if type(values[key]) is not kind and not (kind is float and values[key] == 0):
            raise JobError("source", f"{path.name}: {key!r} is not a {kind.__name__}")
    if values["kind"] not in KINDS:
        raise JobError(
            "source", f"{path.name}: kind {shown(values['kind'])!r} is not one of {', '.join(KINDS)}"
        )
    if not 0 <= values["test_fraction"] < 1:
        raise JobError("source", f"{path.name}: test_fraction is not at least 0 and below 1")
    return _source(path, values)


def _source(path: Path, values: dict[str, Any]) -> Source:
    return Source(
        name=path.stem,
        kind=values["kind"],
        path=path.parent / values["path"],
        features=values["features"],
        label=values["label"],
        test_fraction=float(values["test_fraction"]),
    )


def shown(text: object) -> str:
    """Somebody's text in a message: at most so much of it that the rest of the message is seen."""
    whole = str(text)
    return whole if len(whole) <= _SHOWN_CHARS else f"{whole[:_SHOWN_CHARS]}…"


def choose_source(directory: Path, model: str) -> Source:
    """The source for a model: the one of its name, else the only one.

    Raises:
        JobError: Refused, `no_source`, when there is none or more than one to choose from; failed,
            `source`, when the chosen file is bad.
    """
    # Not by Path.glob, which makes a regular expression: that is a third of choosing.
    stems = sorted(name[: -len(_SUFFIX)] for name in _names(directory) if name.endswith(_SUFFIX))
    chosen = [model] if model in stems else stems
    if not chosen:
        raise refuse("no_source", "this device has no source of data: sources/*.toml is missing")
    if len(chosen) > 1:
        names = shown(", ".join(chosen))
        raise refuse("no_source", f"this device has several sources ({names}), none named {model!r}")
    return read_source(directory / (chosen[0] + _SUFFIX))


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 - see above
    except FileNotFoundError:
        return []


def local_data(directory: Path, manifest: Manifest) -> LocalData:
    """Load the data that a model is trained or tested on.

    Raises:
        JobError: See `choose_source`; with code `data` when a file is not what the model needs.
    """
    from fedctl_agent.sources import npz

    source = choose_source(directory, str(manifest.model))
    if len(manifest.input_shape) != 1:
        raise JobError("data", f"{source.kind} sources hold flat features, the model takes another shape")
    x, y = npz.load(source, features=manifest.input_shape[0], classes=manifest.classes)
    return LocalData(source.name, x, y, len(y) - int(len(y) * source.test_fraction))
