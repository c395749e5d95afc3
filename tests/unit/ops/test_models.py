"""Models on the workstation: create, name, show, export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from fedctl import models
from fedctl.core.errors import ConfigError, FedctlError, LockedError, NotFoundError, TrustError, UsageError
from fedctl.core.home import Home
from fedctl.core.model_records import ModelVersion, VersionState
from fedctl.ops.fleet import init
from fedctl.ops.models import NewModel, create, export, resolve, show
from fedctl.release.bundle import next_version, read_bundle
from fedctl.release.keys import load_operator
from fedctl.store import Store
from fedctl.store.lock import hold_lock
from fedctl_wire.errors import WireError
from fedctl_wire.manifest import Preprocessing

WANTED = NewModel(name="health", builder="mlp", input_shape=(3,), hidden=(4,), classes=2, seed=5)
SCALING = Preprocessing(mean=(0.5, -1.0, 3.0), std=(1.0, 2.0, 0.25), clip=8.0)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    init(home)
    return home


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    with Store.open(home) as opened:
        yield opened


def scale(store: Store, home: Home) -> None:
    """Give the model a second version with scaling, as the first round does."""
    parent = read_bundle(home.bundle("health", 1), store.fleet().operator_key)
    bundle = next_version(
        parent, home.bundle("health", 2), version=2, preprocessing=SCALING, operator_key=load_operator(home)
    )
    store.add_version(
        ModelVersion(
            "health", 2, bundle.sha256, parent.sha256, None, VersionState.DRAFT, "2026-03-01T00:00:00.000Z"
        )
    )


def test_a_model_starts_as_a_signed_draft(store: Store, home: Home) -> None:
    detail = create(store, home, WANTED)
    assert detail.version.state is VersionState.DRAFT
    assert detail.published_version is None
    assert detail.manifest.needs_scaling
    assert detail.manifest.parameters == 3 * 4 + 4 + 4 * 2 + 2
    assert read_bundle(home.bundle("health", 1), store.fleet().operator_key).sha256 == detail.version.sha256
    assert [e.verb for e in store.events()] == ["fleet.init", "model.create"]


def test_the_same_words_make_the_same_bytes(store: Store, home: Home, tmp_path: Path) -> None:
    create(store, home, WANTED)
    other = replace(WANTED, name="other")
    create(store, home, other)
    create(store, home, replace(WANTED, name="seeded", seed=6))
    weights = [
        home.bundle(name, 1).joinpath("weights.safetensors").read_bytes()
        for name in ("health", "other", "seeded")
    ]
    assert weights[0] == weights[1] != weights[2]


def test_a_taken_name_is_named_and_nothing_is_touched(store: Store, home: Home) -> None:
    before = create(store, home, WANTED)
    with pytest.raises(UsageError, match="health") as caught:
        create(store, home, replace(WANTED, hidden=(9,)))
    assert caught.value.subject == "health"
    assert show(store, home, "health") == before


@pytest.mark.parametrize(
    "name", ["", "a b", "../x", "a/b", "'", '"', "Health", "-x", "x" * 64, "caf\u00e9", "a\n"]
)
def test_a_name_that_is_none_is_refused(store: Store, home: Home, name: str) -> None:
    with pytest.raises(WireError) as caught:
        create(store, home, replace(WANTED, name=name))
    assert caught.value.code == "name"
    assert not home.path.joinpath("models").exists()


@pytest.mark.parametrize(
    "change", [{"builder": "cnn"}, {"hidden": ()}, {"classes": 1}, {"input_shape": (0,)}, {"input_shape": ()}]
)
def test_numbers_that_make_no_model_leave_nothing(
    store: Store, home: Home, change: dict[str, object]
) -> None:
    with pytest.raises(FedctlError):
        create(store, home, replace(WANTED, **change))  # type: ignore[arg-type]
    assert store.models() == ()
    assert not list(home.path.glob("models/*/*"))


def test_a_create_that_was_killed_can_be_run_again(store: Store, home: Home) -> None:
    leftover = home.bundle("health", 1)
    leftover.mkdir(parents=True)
    (leftover / "weights.safetensors").write_bytes(b"half")
    assert create(store, home, WANTED).version.version == 1


def test_the_loser_of_two_at_once_replaces_no_files(
    store: Store, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = models.build
    raced: list[bool] = []

    def slow(*words: object, **more: object) -> object:  # the other one is made while this one builds
        if not raced:
            raced.append(True)
            create(store, home, replace(WANTED, seed=WANTED.seed + 1))
        return build(*words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(models, "build", slow)
    with pytest.raises(UsageError, match="there is a model health already"):
        create(store, home, WANTED)
    bundle = read_bundle(home.bundle("health", 1), store.fleet().operator_key)
    assert bundle.sha256 == store.version("health", 1).sha256


def test_a_create_waits_for_nobody(store: Store, home: Home) -> None:
    with hold_lock(home, model="health"), pytest.raises(LockedError, match="is held by pid") as caught:
        create(store, home, WANTED)
    assert "model list" in caught.value.hint


def test_references(store: Store, home: Home) -> None:
    create(store, home, WANTED)
    scale(store, home)
    assert resolve(store, "health").version == 2  # nothing is published: the latest
    assert resolve(store, "health@1").version == 1
    with pytest.raises(NotFoundError, match="no version of health is published"):
        resolve(store, "health@published")
    store.publish("health", 1)
    assert resolve(store, "health").version == resolve(store, "health@published").version == 1
    for missing in ("helth", "health@3", "health@0"):
        with pytest.raises(NotFoundError):
            resolve(store, missing)
    for nonsense in ("health@", "health@x", "health@-1", "health@1.0", "health@\u00b2", "health@1@2"):
        with pytest.raises(UsageError):
            resolve(store, nonsense)


def test_an_export_holds_weights_and_scaling(store: Store, home: Home, tmp_path: Path) -> None:
    create(store, home, WANTED)
    scale(store, home)
    path = tmp_path / "health.safetensors"
    result = export(store, home, "health@2", path)
    assert (result.bytes, result.scaled) == (path.stat().st_size, True)
    with (
        safe_open(path, "np") as exported,
        safe_open(home.bundle("health", 2) / "weights.safetensors", "np") as own,
    ):
        assert set(exported.keys()) == {*own.keys(), "preprocessing.mean", "preprocessing.std"}
        for name in own.keys():  # noqa: SIM118 - no dictionary
            np.testing.assert_array_equal(exported.get_tensor(name), own.get_tensor(name))
        np.testing.assert_array_equal(exported.get_tensor("preprocessing.mean"), SCALING.mean)
        np.testing.assert_array_equal(exported.get_tensor("preprocessing.std"), SCALING.std)
        metadata = exported.metadata()
    assert metadata["preprocessing.clip"] == "8.0"
    assert (metadata["model"], metadata["version"]) == ("health", "2")


def test_an_export_of_an_unscaled_draft_says_so(store: Store, home: Home, tmp_path: Path) -> None:
    create(store, home, WANTED)
    assert not export(store, home, "health@1", tmp_path / "x").scaled
    with safe_open(tmp_path / "x", "np") as exported:
        assert "preprocessing.mean" not in exported.keys()  # noqa: SIM118 - no dictionary


def test_an_export_replaces_a_file_only_when_told(store: Store, home: Home, tmp_path: Path) -> None:
    create(store, home, WANTED)
    path = tmp_path / "x"
    path.write_text("precious")
    with pytest.raises(UsageError, match="exists"):
        export(store, home, "health", path)
    assert path.read_text() == "precious"
    export(store, home, "health", path, force=True)
    assert path.read_bytes() != b"precious"
    with pytest.raises(UsageError, match="directory"):
        export(store, home, "health", tmp_path, force=True)
    with pytest.raises(ConfigError, match="no such file"):
        export(store, home, "health", tmp_path / "missing" / "x")


def test_a_damaged_bundle_is_named(store: Store, home: Home, tmp_path: Path) -> None:
    create(store, home, WANTED)
    weights = home.bundle("health", 1) / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(TrustError, match=str(weights)):
        export(store, home, "health", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    weights.unlink()
    with pytest.raises(ConfigError, match=str(weights)):
        show(store, home, "health")


def test_a_bundle_in_anothers_place_is_noticed(store: Store, home: Home) -> None:
    create(store, home, WANTED)
    create(store, home, replace(WANTED, name="other", seed=9))
    for path in home.bundle("other", 1).iterdir():
        (home.bundle("health", 1) / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match="another bundle"):
        show(store, home, "health")
