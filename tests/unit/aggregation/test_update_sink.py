"""Receiving updates: what is good is kept durably, what is bad is named by its code."""

from __future__ import annotations

import hashlib
import math
import resource
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedctl.aggregation.scaling import stats_layout
from fedctl.aggregation.update import ExpectedFile, ReceivedFile, UpdateSink
from fedctl.core.errors import ConfigError, DeviceError, ExitCode
from fedctl_wire.limits import LIMITS
from fedctl_wire.tensors import TensorInfo, header_bytes, layout
from fedctl_wire.update import update_metadata

LAYOUT = layout([("w", "F32", (300, 400)), ("b", "F32", (7,))])
METADATA = update_metadata(round_id="r", plan="p", base="b", examples=42)
VALUES = np.random.default_rng(0).standard_cauchy(120_007).astype("<f4")


def file_bytes(
    values: np.ndarray = VALUES,
    tensors: tuple[TensorInfo, ...] = LAYOUT,
    metadata: dict[str, str] | None = None,
) -> bytes:
    return header_bytes(tensors, METADATA if metadata is None else metadata) + values.tobytes()


def expected(data: bytes, **changes: object) -> ExpectedFile:
    digest = hashlib.sha256(data).hexdigest()
    plain = ExpectedFile("watch-01", LAYOUT, digest, len(data), METADATA)
    return replace(plain, **changes)  # type: ignore[arg-type]


def receive(path: Path, data: bytes, what: ExpectedFile | None = None, *, step: int = 50_000) -> ReceivedFile:
    with UpdateSink(path, what or expected(data)) as sink:
        for start in range(0, len(data), step):
            sink.write(data[start : start + step])
        return sink.commit()


def with_value(value: float, index: int) -> np.ndarray:
    values = VALUES.copy()
    values[index] = value
    return values


@pytest.mark.parametrize("step", [1, 7, 65_536, 262_144, 10_000_000])
def test_a_good_update_is_kept_whatever_the_pieces(tmp_path: Path, step: int) -> None:
    values = VALUES if step > 7 else VALUES[:27]
    tensors = LAYOUT if step > 7 else layout([("w", "F32", (20,)), ("b", "F32", (7,))])
    data = file_bytes(values, tensors)
    received = receive(tmp_path / "u", data, expected(data, layout=tensors), step=step)
    assert (tmp_path / "u").read_bytes() == data
    assert received.sha256 == hashlib.sha256(data).hexdigest()
    assert received.total_bytes == len(data)
    assert received.norm == pytest.approx(np.linalg.norm(values.astype(np.float64)), rel=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ["u"]


def test_the_norm_has_the_same_bits_whatever_the_pieces(tmp_path: Path) -> None:
    data = file_bytes()
    assert len({receive(tmp_path / "u", data, step=s).norm for s in (997, 4096, 262_144, 10**6)}) == 1


def test_nothing_has_its_name_before_commit_and_nothing_is_left_of_a_cut_attempt(tmp_path: Path) -> None:
    data = file_bytes()
    with UpdateSink(tmp_path / "u", expected(data)) as sink:
        sink.write(data[:1000])
        assert sink.received == 1000
        assert not (tmp_path / "u").exists()
    assert list(tmp_path.iterdir()) == []
    receive(tmp_path / "u", data)
    assert (tmp_path / "u").read_bytes() == data


LONG_HEADER = struct.pack("<Q", LIMITS.tensor_header_bytes + 1) + b"{" * 100
SWAPPED = layout([("b", "F32", (7,)), ("w", "F32", (300, 400))])
SMALLER = layout([("w", "F32", (300, 400))])
TURNED = layout([("w", "F32", (400, 300)), ("b", "F32", (7,))])
DOUBLE = layout([("w", "F64", (300, 200)), ("b", "F32", (7,))])


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(file_bytes(tensors=SWAPPED), "shape", id="order"),
        pytest.param(file_bytes(VALUES[:-7], SMALLER), "shape", id="a tensor is missing"),
        pytest.param(file_bytes(tensors=TURNED), "shape", id="turned"),
        pytest.param(file_bytes(tensors=DOUBLE), "shape", id="dtype"),
        pytest.param(file_bytes(with_value(math.nan, 0)), "non_finite", id="nan first"),
        pytest.param(file_bytes(with_value(math.inf, -1)), "non_finite", id="inf last"),
        pytest.param(file_bytes(with_value(-math.inf, 70_000)), "non_finite", id="-inf inside"),
        pytest.param(file_bytes(metadata={}), "metadata", id="no metadata"),
        pytest.param(file_bytes(metadata={**METADATA, "round": "other"}), "metadata", id="other round"),
        pytest.param(file_bytes(metadata={**METADATA, "examples": "43"}), "metadata", id="other examples"),
        pytest.param(file_bytes(VALUES[:-1]), "malformed", id="less data than the header says"),
        pytest.param(file_bytes() + b"\0\0\0\0", "malformed", id="more data than the header says"),
        pytest.param(LONG_HEADER, "too_large", id="long header"),
        pytest.param(struct.pack("<Q", 4) + b"junk" + b"\0" * 50, "malformed", id="header is no JSON"),
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(file_bytes()[:5], "truncated", id="only half a length"),
        pytest.param(file_bytes()[:60], "truncated", id="half a header"),
    ],
)
@pytest.mark.parametrize("step", [1000, 10_000_000])
def test_a_bad_update_is_refused_by_name_and_leaves_nothing(
    tmp_path: Path, data: bytes, code: str, step: int
) -> None:
    with pytest.raises(DeviceError) as caught:
        receive(tmp_path / "u", data, step=step)
    assert (caught.value.code, caught.value.subject) == (code, "watch-01")
    assert "watch-01" in caught.value.message
    assert caught.value.exit_code is ExitCode.PARTIAL
    assert list(tmp_path.iterdir()) == []


def test_the_tensor_with_the_bad_value_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="'b'"):
        receive(tmp_path / "u", file_bytes(with_value(math.nan, -3)))
    with pytest.raises(DeviceError, match="'w'"):
        receive(tmp_path / "u", file_bytes(with_value(math.nan, 119_999)))


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(file_bytes()[:-1], "truncated", id="short"),
        pytest.param(file_bytes() + b"x", "too_large", id="long"),
        pytest.param(file_bytes(with_value(1.0, 5)), "hash", id="other bytes"),
    ],
)
def test_what_comes_must_be_what_was_signed(tmp_path: Path, sent: bytes, code: str) -> None:
    with pytest.raises(DeviceError) as caught:
        receive(tmp_path / "u", sent, expected(file_bytes()))
    assert caught.value.code == code


def test_an_absurd_promise_is_refused_before_anything_is_received(tmp_path: Path) -> None:
    with pytest.raises(DeviceError) as caught:
        UpdateSink(tmp_path / "u", expected(file_bytes(), total_bytes=LIMITS.blob_bytes))
    assert caught.value.code == "too_large"
    assert list(tmp_path.iterdir()) == []


def test_metadata_of_a_newer_agent_is_ignored(tmp_path: Path) -> None:
    receive(tmp_path / "u", file_bytes(metadata={**METADATA, "colour": "red"}))


def test_sums_come_through_the_same_gate(tmp_path: Path) -> None:
    tensors = stats_layout(3)
    sums = np.array([5.0, 5, 0, 1e200, -2, 0, 1e300, 4, 0], dtype="<f8")
    data = header_bytes(tensors) + sums.tobytes()
    what = expected(data, layout=tensors, metadata={})
    assert receive(tmp_path / "s", data, what).norm == math.inf  # of no use here, and no error
    sums[1] = math.nan
    data = header_bytes(tensors) + sums.tobytes()
    with pytest.raises(DeviceError, match="'count'"):
        receive(tmp_path / "s", data, expected(data, layout=tensors, metadata={}))


def test_a_full_disk_is_the_workstations_fault_and_names_the_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ConfigError) as caught:
            receive(tmp_path / "u", file_bytes())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path / "u") in caught.value.message
    assert "free space" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/u"):
        receive(tmp_path / "file" / "u", file_bytes())
