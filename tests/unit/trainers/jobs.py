"""Real bundles, sources and job contexts in a temporary directory, for the trainers' tests."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from fedctl.models import BuiltModel, build
from fedctl_agent.trainers import JobContext
from fedctl_agent.trainers.tensorfile import write_tensors
from fedctl_wire.manifest import (
    BUNDLE_FILES,
    GOLDEN_FILE,
    GRAPH_FILE,
    WEIGHTS_FILE,
    BundleFile,
    Manifest,
    Preprocessing,
)
from fedctl_wire.messages import BaseModel, Cohort, Plan, Progress, TaskKind, TrainSettings
from fedctl_wire.names import Name
from fedctl_wire.tensors import layout

SETTINGS = TrainSettings(lr=0.05, local_epochs=2, batch_size=32)
DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.int64): "I64"}
PLAN_SHA256 = "ab" * 32
ROUND = "6a1f6f0e-64a5-4a4e-9a6e-0b7c6f5f4a10"


def write_bundle(
    directory: Path,
    built: BuiltModel,
    *,
    scaling: Preprocessing | None = None,
    weights: dict[str, Any] | None = None,
    **changes: Any,
) -> Manifest:
    """Write a bundle's three files and return their manifest."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / GRAPH_FILE).write_bytes(built.graph)
    weights_layout = layout([(spec.name, "F32", spec.shape) for spec in built.tensors])
    write_tensors(directory / WEIGHTS_FILE, weights_layout, weights or built.weights, {})
    golden = layout([(name, DTYPES[a.dtype], a.shape) for name, a in built.golden.items()])
    write_tensors(directory / GOLDEN_FILE, golden, built.golden, {})
    files = {}
    for name in BUNDLE_FILES:
        data = (directory / name).read_bytes()
        files[name] = BundleFile(hashlib.sha256(data).hexdigest(), len(data))
    fields: dict[str, Any] = {
        "model": Name("har"),
        "model_version": 1,
        "builder": built.builder,
        "input_shape": built.input_shape,
        "classes": built.classes,
        "tensors": built.tensors,
        "files": files,
        "operators": built.operators,
        "defaults": SETTINGS,
        "preprocessing": scaling,
        "scale": "none" if scaling is None else "standard",
        **changes,
    }
    manifest = Manifest(**fields)
    manifest.check()
    return manifest


class Bench:
    """A device's directories, a model with three features and two classes, and jobs on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sources = root / "sources"
        self.data = root / "data"
        self.sources.mkdir()
        self.data.mkdir()
        self.built = build("mlp", input_shape=(3,), hidden=(6,), classes=2, seed=4)
        self.manifest = write_bundle(root / "model", self.built)
        self.lines: list[Progress] = []

    def source(self, text: str | None = None, *, name: str = "recorder", test_fraction: float = 0.25) -> None:
        """Write a source file; by default one that fits `examples`."""
        default = (
            f'kind = "npz"\npath = "../data"\nfeatures = "x"\nlabel = "y"\ntest_fraction = {test_fraction}\n'
        )
        (self.sources / f"{name}.toml").write_text(default if text is None else text)

    def examples(self, n: int = 80, *, name: str = "a.npz", seed: int = 0, **arrays: Any) -> tuple[Any, Any]:
        """Write one .npz file of labelled examples and return them."""
        rng = np.random.default_rng(seed)
        x = (5 * rng.standard_normal((n, 3)) + 2).astype(np.float32)
        y = (x[:, 0] > x[:, 1]).astype(np.uint8)
        np.savez(self.data / name, **{"x": x, "y": y, **arrays})
        return x, y

    def context(self, kind: TaskKind, **changes: Any) -> JobContext:
        """A job on the model; `settings` and `holdout` go into its plan."""
        plan = Plan(
            fleet=ROUND,
            round=ROUND,
            model=Name("har"),
            base=BaseModel(1, "cd" * 32),
            kinds=(kind,),
            seed=1,
            cohort=Cohort.of(["watch-01"]),
            holdout=Cohort.of(changes.pop("holdout", [])),
            train=changes.pop("settings", SETTINGS),
        )
        context = JobContext(
            kind=kind,
            plan=plan,
            plan_sha256=PLAN_SHA256,
            manifest=self.manifest,
            model_dir=self.root / "model",
            base_dir=None,
            base_manifest=None,
            policy_min_examples=20,
            share_metrics=True,
            sources_dir=self.sources,
            seed=11,
            output=self.root / "result.safetensors",
            progress=self.lines.append,
        )
        return dataclasses.replace(context, **changes)
