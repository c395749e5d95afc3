"""Bundles on disk: deterministic, signed, complete or absent."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from fedctl.core.errors import ConfigError, TrustError
from fedctl.release.bundle import Bundle, Description, next_version, read_bundle, write_bundle
from fedctl_wire.manifest import BUNDLE_FILES, MANIFEST_FILE, Preprocessing, TensorSpec
from fedctl_wire.messages import TrainSettings
from fedctl_wire.names import Name
from fedctl_wire.signing import generate_key, public_key

KEY = generate_key()
OPERATOR = public_key(KEY)


def weights(scale: float = 1.0) -> dict[str, NDArray[Any]]:
    return {
        "w": (np.arange(6, dtype=np.float32).reshape(3, 2) * scale).astype(np.float32),
        "b": np.array([0.5, -0.5], np.float32),
    }


@dataclass
class Linear:
    graph: bytes = b'{"version":1}'
    tensors: tuple[TensorSpec, ...] = (TensorSpec("w", (3, 2)), TensorSpec("b", (2,)))
    weights: dict[str, NDArray[Any]] = field(default_factory=weights)
    golden: dict[str, NDArray[Any]] = field(
        default_factory=lambda: {"y": np.array([0, 1], np.int64), "x": np.ones((2, 3), np.float32)}
    )
    operators: tuple[str, ...] = ("MatMul", "Add")


def description(version: int = 1) -> Description:
    return Description(
        model=Name("har"),
        version=version,
        builder="linear",
        input_shape=(3,),
        classes=2,
        defaults=TrainSettings(lr=0.1),
    )


@pytest.fixture
def first(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "har" / "1", description(), Linear(), KEY)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_bundle_is_its_four_files_and_reads_back(first: Bundle) -> None:
    assert set(contents(first.directory)) == {MANIFEST_FILE, *BUNDLE_FILES}
    again = read_bundle(first.directory, OPERATOR)
    assert again == first
    assert again.manifest.operators == ("Add", "MatMul")
    assert again.manifest.needs_scaling


def test_other_readers_of_safetensors_understand_the_files(first: Bundle) -> None:
    found = load_file(first.weights)
    assert list(found) == ["b", "w"] or list(found) == ["w", "b"]
    np.testing.assert_array_equal(found["w"], weights()["w"])
    assert load_file(first.directory / "golden.safetensors")["y"].dtype == np.int64


def test_the_same_model_gives_the_same_bytes(first: Bundle, tmp_path: Path) -> None:
    other = Linear(weights=dict(reversed(weights().items())))
    again = write_bundle(tmp_path / "elsewhere", description(), other, KEY)
    assert contents(again.directory) == contents(first.directory)
    assert again.sha256 == first.sha256


def test_an_unfinished_directory_is_replaced_and_no_staging_stays(tmp_path: Path) -> None:
    target = tmp_path / "har" / "1"
    target.mkdir(parents=True)
    (target / "weights.safetensors").write_bytes(b"half")
    write_bundle(target, description(), Linear(), KEY)
    read_bundle(target, OPERATOR)
    assert [path.name for path in target.parent.iterdir()] == ["1"]


def test_a_builder_that_contradicts_itself_leaves_nothing(tmp_path: Path) -> None:
    wrong = Linear(weights={**weights(), "b": np.zeros(3, np.float32)})
    with pytest.raises(TrustError, match=r"har@1.*'b'"):
        write_bundle(tmp_path / "har" / "1", description(), wrong, KEY)
    with pytest.raises(ConfigError, match="linear"):
        write_bundle(tmp_path / "har" / "1", description(), Linear(weights={}), KEY)
    assert list((tmp_path / "har").iterdir()) == []


def test_the_next_version_shares_graph_and_golden_and_names_its_parent(first: Bundle, tmp_path: Path) -> None:
    save_file(weights(2.0), tmp_path / "new.safetensors")
    scaling = Preprocessing((0.0,) * 3, (1.0,) * 3)
    scaled = next_version(first, tmp_path / "har" / "2", version=2, preprocessing=scaling, operator_key=KEY)
    assert scaled.manifest.parent == first.sha256
    assert not scaled.manifest.needs_scaling
    assert scaled.manifest.files == first.manifest.files
    header_order = tmp_path / "ordered.safetensors"
    write_bundle(tmp_path / "x", description(), Linear(weights=weights(2.0)), KEY).weights.rename(
        header_order
    )
    trained = next_version(scaled, tmp_path / "har" / "7", version=7, weights=header_order, operator_key=KEY)
    assert read_bundle(trained.directory, OPERATOR).manifest.preprocessing == scaling
    assert trained.manifest.model_version == 7
    assert (trained.directory / "train.json").samefile(first.directory / "train.json")
    np.testing.assert_array_equal(load_file(trained.weights)["w"], weights(2.0)["w"])


@pytest.mark.parametrize("name", BUNDLE_FILES)
def test_a_changed_file_is_found(first: Bundle, name: str) -> None:
    path = first.directory / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(TrustError, match=name) as error:
        read_bundle(first.directory, OPERATOR)
    assert error.value.code == "hash"


def test_a_bundle_signed_by_another_key_is_refused(first: Bundle) -> None:
    with pytest.raises(TrustError) as error:
        read_bundle(first.directory, public_key(generate_key()))
    assert error.value.code == "signature"


@pytest.mark.parametrize("name", [MANIFEST_FILE, *BUNDLE_FILES])
def test_a_missing_file_is_named(first: Bundle, name: str) -> None:
    (first.directory / name).unlink()
    with pytest.raises(ConfigError, match=name):
        read_bundle(first.directory, OPERATOR)


def test_weights_of_another_shape_make_no_version(first: Bundle, tmp_path: Path) -> None:
    save_file({"w": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.float32)}, tmp_path / "w")
    with pytest.raises(TrustError) as error:
        next_version(first, tmp_path / "har" / "2", version=2, weights=tmp_path / "w", operator_key=KEY)
    assert error.value.code == "shape"
    assert not (tmp_path / "har" / "2").exists()
