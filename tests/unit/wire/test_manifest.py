import io
from dataclasses import replace
from typing import Any

import pytest

from fedctl_wire.codec import dump_bytes, to_json
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.manifest import BUNDLE_FILES, BundleFile, Manifest, Preprocessing, TensorSpec
from fedctl_wire.messages import TrainSettings
from fedctl_wire.names import Name
from fedctl_wire.tensors import TensorHeader, header_bytes, layout, read_header

GOOD = Manifest(
    model=Name("health"),
    model_version=1,
    builder="mlp",
    input_shape=(3,),
    classes=2,
    tensors=(
        TensorSpec("w", (3, 2)),
        TensorSpec("b", (2,), local=True),
        TensorSpec("c", (2,), trainable=False),
    ),
    files={name: BundleFile("0" * 64, 1) for name in BUNDLE_FILES},
    operators=("Add", "MatMul"),
    defaults=TrainSettings(lr=0.1),
)
SCALED = replace(GOOD, preprocessing=Preprocessing((0.0, 1.0, 2.0), (1.0, 1.0, 0.5)))


def test_a_manifest_survives_its_bytes() -> None:
    for manifest in (GOOD, SCALED, replace(GOOD, columns=("hr", "température", "a,b"))):
        assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def test_a_manifest_that_was_signed_before_there_were_names_of_columns_is_read() -> None:
    value = to_json(GOOD)
    del value["columns"]
    assert Manifest.from_bytes(dump_bytes(value)) == GOOD


def test_parameters_and_layouts_follow_the_tensors() -> None:
    assert GOOD.parameters == 10
    assert GOOD.weights_layout() == layout([("w", "F32", (3, 2)), ("b", "F32", (2,)), ("c", "F32", (2,))])
    assert GOOD.update_layout() == layout([("w", "F32", (3, 2))])  # neither what is local nor what is frozen


def test_only_a_standard_model_without_figures_needs_scaling() -> None:
    assert GOOD.needs_scaling
    assert not SCALED.needs_scaling
    assert not replace(GOOD, scale="none").needs_scaling


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 2}, "version 2; this side reads 1"),
        ({"files": {}}, "lists the files"),
        ({"files": {**GOOD.files, "../evil": BundleFile("0" * 64, 1)}}, "lists the files"),
        ({"files": {**GOOD.files, "train.json": BundleFile("../x", 1)}}, "hash of train.json"),
        ({"files": {**GOOD.files, "train.json": BundleFile("0" * 64, -1)}}, "train.json is said to have -1"),
        (
            {"files": {**GOOD.files, "train.json": BundleFile("0" * 64, LIMITS.blob_bytes + 1)}},
            "is said to have",
        ),
        ({"model_version": 0}, "no usable model"),
        ({"classes": 1}, "no usable model"),
        ({"tensors": ()}, "no usable model"),
        ({"input_shape": ()}, "no usable model"),
        ({"input_shape": (0,)}, "impossible shape"),
        ({"input_shape": (1,) * 9}, "impossible shape"),
        ({"input_shape": (2**20, 2**20)}, "too many parameters"),
        ({"tensors": (TensorSpec("w", (3, -2)),)}, "impossible shape"),
        ({"tensors": (TensorSpec("w", (2**62, 2**62)),)}, "too many parameters"),
        ({"tensors": tuple(TensorSpec(str(i), (1,)) for i in range(4097))}, "too many parameters"),
        ({"tensors": (TensorSpec("w", (1,)), TensorSpec("w", (2,)))}, "names a tensor twice"),
        ({"tensors": (TensorSpec("__metadata__", (1,)),)}, "reserved name"),
        ({"tensors": (TensorSpec("", (1,)),)}, "reserved name"),
        ({"preprocessing": Preprocessing((0.0,), (1.0,))}, "does not have 3 features"),
        ({"preprocessing": Preprocessing((0.0,) * 3, (1.0,) * 2)}, "does not have 3 features"),
        ({"preprocessing": Preprocessing((0.0,) * 3, (1.0, 0.0, 1.0))}, "not positive"),
        ({"preprocessing": Preprocessing((0.0,) * 3, (1.0,) * 3, clip=0.0)}, "not positive"),
        ({"columns": ("hr", "steps")}, "2 columns are named for 3 features"),
        ({"columns": ("hr", "steps", "hr")}, "column 'hr' is named twice"),
        ({"columns": ("hr", "", "steps")}, "name of a column is empty"),
        ({"columns": ("hr", "a\0b", "steps")}, "name of a column is empty"),
        ({"columns": ("hr", "é" * 101, "steps")}, "more than 200 bytes"),
        ({"input_shape": (10_001,), "columns": tuple(map(str, range(10_001)))}, "more than 10000"),
    ],
)
def test_what_no_builder_makes_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(WireError, match=says):
        Manifest.from_bytes(replace(GOOD, **changes).to_bytes())


@pytest.mark.parametrize(
    "change",
    [
        {"model": "a/b"},
        {"scale": "magic"},
        {"classes": "2"},
        {"surprise": 1},
        {"preprocessing": {"mean": []}},
    ],
)
def test_what_does_not_decode_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        Manifest.from_bytes(dump_bytes({**to_json(GOOD), **change}))


def header_of(specs: list[tuple[str, str, tuple[int, ...]]]) -> TensorHeader:
    placed = layout(specs)
    data = header_bytes(placed) + bytes(placed[-1].end)
    return read_header(io.BytesIO(data), total_bytes=len(data), what="update")


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ([("w", "F32", (2, 3))], r"found tensor 'w' F32\[2, 3\], expected 'w' F32\[3, 2\]"),
        ([("v", "F32", (3, 2))], "found tensor 'v'"),
        ([("w", "F64", (3, 2))], "found tensor 'w' F64"),
        ([("w", "F32", (3, 2)), ("b", "F32", (2,))], "update has 2 tensors, expected 1"),
    ],
)
def test_a_file_of_another_layout_is_named_by_its_first_difference(
    specs: list[tuple[str, str, tuple[int, ...]]], says: str
) -> None:
    with pytest.raises(WireError, match=says) as caught:
        GOOD.check_header(header_of(specs), GOOD.update_layout(), what="update")
    assert caught.value.code == "shape"


def test_a_file_of_the_right_layout_passes() -> None:
    GOOD.check_header(header_of([("w", "F32", (3, 2))]), GOOD.update_layout(), what="update")
