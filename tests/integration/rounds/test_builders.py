"""Rounds of models from every builder, over real agents: windows, weighted classes, targets by macro-F1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedctl.core.model_records import VersionState
from fedctl.core.selector import Selector
from fedctl.models import Convolutions
from fedctl.ops import rounds
from fedctl.ops.models import create, show
from fedctl_wire.manifest import CLASS_WEIGHTS
from tests.fleet import WISHES, TestFleet, fleet, new_model

EVERYONE = Selector.parse((), ())


@pytest.fixture
def small(tmp_path: Path) -> Iterator[TestFleet]:
    with fleet(tmp_path, train=2) as ready:
        yield ready


def write_windows(path: Path, seed: int) -> None:
    """Three classes by how fast the first of two channels swings, far from 0 until it is scaled."""
    rng = np.random.default_rng(seed)
    y = (np.arange(90) % 3).astype(np.uint8)
    t = np.arange(24)
    swing = np.sin(t * (1 + y[:, None]) * 0.5 + rng.uniform(0, 6, (90, 1)))
    x = np.stack([swing * 20 + 100, rng.standard_normal((90, 24)) * 3 - 50], axis=1).astype(np.float32)
    np.savez(path, x=x, y=y)


def test_a_cnn_learns_windows_that_are_scaled_by_channel_until_its_macro_f1_is_met(small: TestFleet) -> None:
    for number, agent in enumerate(small.agents.values()):
        write_windows(agent.state / "data.npz", number)
    made = small.cli(
        *("model", "create", "gait", "--builder", "cnn", "--input", "2x24", "--channels", "4,8"),
        *("--kernel", "5", "--classes", "3", "--optimizer", "adam", "--lr", "0.01", "--local-epochs", "4"),
    )
    assert made.returncode == 0, made.stderr
    words = (
        "--rounds",
        "20",
        "--until",
        "macro_f1>=0.9",
        "--max-gradient-norm",
        "5",
        "--proximal-mu",
        "0.01",
    )
    run = small.cli("round", "start", "gait", *words, "-o", "json")
    assert run.returncode == 0, run.stderr
    body = json.loads(run.stdout)
    assert body["until_met"]
    last = body["rounds"][-1]
    assert last["macro_f1"] >= 0.9
    assert last["macro_f1_before"] is not None
    assert last["auroc"] is None
    with small.store() as store:
        preprocessing = show(store, small.home, "gait").manifest.preprocessing
        plan = rounds.show(store, last["id"]).plan
    assert preprocessing is not None
    assert preprocessing.mean == pytest.approx((100, -50), abs=3)
    assert preprocessing.std == pytest.approx((20 / 2**0.5, 3), rel=0.1)
    assert (plan["train"]["optimizer"], plan["train"]["proximal_mu"]) == ("adam", 0.01)
    table = small.cli("round", "list", "gait").stdout
    assert "F1" in table.splitlines()[0]
    assert "F1 (macro)" in small.cli("round", "show", str(last["id"])).stdout


def test_balanced_classes_find_the_rare_one_and_the_weights_stay_where_they_are(small: TestFleet) -> None:
    for agent in small.agents.values():
        data = dict(np.load(agent.state / "data.npz"))
        rare = (data["x"][:, 0] > 1.2).astype(np.uint8)  # about one in nine
        np.savez(agent.state / "data.npz", x=data["x"], y=rare)
    f1 = {}
    with small.store() as store:
        for weights in ("none", "balanced"):
            model = new_model(name=weights, builder="logreg", hidden=())
            if weights == "balanced":
                made = small.cli(
                    *("model", "create", weights, "--builder", "logreg", "--input", "6", "--classes", "2"),
                    *("--class-weights", "balanced", "--lr", "0.1", "--batch-size", "16"),
                )
                assert made.returncode == 0, made.stderr
            else:
                create(store, small.home, model)
            done = rounds.start(store, small.home, weights, EVERYONE, wishes=WISHES, rounds=3).rounds[-1]
            assert store.version(weights, done.result_version or 0).state is VersionState.PUBLISHED
            f1[weights] = done.macro_f1 or 0.0
        detail = show(store, small.home, "balanced")
    assert f1["balanced"] > f1["none"]
    assert CLASS_WEIGHTS not in {info.name for info in detail.manifest.update_layout()}
    assert small.cli("round", "start", "none", "--class-weights", "balanced").returncode == 2


def test_a_window_model_is_pushed_and_checked_by_its_golden_batch_only(small: TestFleet) -> None:
    """Devices that hold flat rows take the model, and say why they cannot train it."""
    with small.store() as store:
        window = Convolutions(channels=(2,), kernel=3)
        create(
            store,
            small.home,
            new_model(name="gait", builder="cnn", hidden=(), input_shape=(2, 3), window=window, scale="none"),
        )
    run = small.cli("round", "start", "gait")
    assert run.returncode == 6
    assert "dev-1" in run.stderr
