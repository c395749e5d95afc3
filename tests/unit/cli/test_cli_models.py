"""`model create` with every builder, `model inspect`, and options that come in groups."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from fedctl.cli.app import run
from fedctl.cli.command import Session, Verb
from fedctl.cli.option_groups import grouped
from fedctl.cli.output import View
from fedctl.core.errors import ExitCode
from fedctl.core.home import Home
from fedctl.ops.fleet import init

CNN = ["--builder", "cnn", "--input", "2x12", "--channels", "3,4", "--kernel", "3", "--classes", "3"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("FEDCTL_HOME", str(tmp_path / "home"))
    made = Home(tmp_path / "home")
    init(made)
    return made


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = ExitCode.OK) -> str:
    capsys.readouterr()
    assert run(arguments) == code
    output = capsys.readouterr()
    return output.out if code == ExitCode.OK else output.err


def body(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said(capsys, *arguments, "-o", "json"))
    return found


def test_a_model_takes_its_training_from_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    training = ["--optimizer", "adam", "--lr", "0.001", "--weight-decay", "0.01", "--proximal-mu", "0.1"]
    more = [
        "--max-gradient-norm",
        "5",
        "--class-weights",
        "1,2,4",
        "--batch-size",
        "8",
        "--local-epochs",
        "3",
    ]
    manifest = body(capsys, "model", "create", "har", *CNN, *training, *more)["manifest"]
    assert manifest["defaults"] == {
        "lr": 0.001,
        "momentum": 0.0,
        "local_epochs": 3,
        "batch_size": 8,
        "optimizer": "adam",
        "max_examples": None,
        "weight_decay": 0.01,
        "proximal_mu": 0.1,
        "max_gradient_norm": 5.0,
        "class_weights": [1.0, 2.0, 4.0],
        "balance_classes": False,
    }
    assert (manifest["builder"], manifest["input_shape"], manifest["scale"]) == ("cnn", [2, 12], "standard")
    shown = said(capsys, "model", "show", "har")
    assert "input     2x12" in shown
    assert (
        "adam, learning rate 0.001, batch 8, local epochs 3, weight decay 0.01, proximal mu 0.1, "
        "gradients up to 5, class weights 1, 2, 4"
    ) in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "9", "--classes", "2"], "an mlp needs at least one hidden layer"),
        (["--input", "9x8", "--classes", "2", "--hidden", "4"], "windows of a signal are for --builder cnn"),
        (["--input", "9", "--classes", "2", "--builder", "tree"], "builders: logreg, mlp, cnn"),
        (["--input", "9", "--classes", "2", "--builder", "logreg", "--kernel", "3"], "use --builder cnn"),
        (["--input", "2x12", "--classes", "2", "--builder", "cnn"], "for example --channels 16,32"),
        (
            ["--input", "9", "--classes", "2", "--hidden", "4", "--class-weights", "1,2,3"],
            "the model 2 classes",
        ),
        (["--input", "9", "--classes", "2", "--hidden", "4", "--lr", "-1"], "--lr is -1.0"),
        (["--input", "9xq", "--classes", "2", "--hidden", "4"], "--input"),
        (["--classes", "2", "--hidden", "4"], "--columns with the features' names"),
        (
            ["--columns", "a,b", "--input", "3", "--classes", "2", "--hidden", "4"],
            "2 columns are named for 3",
        ),
        (["--columns", "a,b,a", "--classes", "2", "--hidden", "4"], "'a' is named twice"),
        (["--columns", "a,,b", "--classes", "2", "--hidden", "4"], "is empty"),
        (["--columns", 'a,"b', "--classes", "2", "--hidden", "4"], "--columns is not a list of names"),
    ],
)
def test_what_makes_no_model_is_a_usage_error_with_a_way_out(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in said(capsys, "model", "create", "m", *arguments, code=ExitCode.USAGE)
    assert body(capsys, "model", "list")["models"] == []


def test_a_model_has_as_many_features_as_columns(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--columns", 'hr, "acc, x"', "--columns", "temp", "--hidden", "4", "--classes", "2"]
    manifest = body(capsys, "model", "create", "m", *words)["manifest"]
    assert (manifest["columns"], manifest["input_shape"]) == (["hr", "acc, x", "temp"], [3])
    assert "columns   hr, acc, x, temp" in said(capsys, "model", "show", "m")
    assert "columns     hr, acc, x, temp" in said(capsys, "model", "inspect", "m")
    assert body(capsys, "model", "inspect", "m")["columns"] == ["hr", "acc, x", "temp"]


def test_inspect_shows_tensors_operators_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    run(["model", "create", "har", *CNN, "--class-weights", "balanced", "--momentum", "0.9"])
    found = body(capsys, "model", "inspect", "har", "--batch-size", "16")
    tensors = {t["name"]: (t["shape"], t["parameters"], t["bytes"], t["trainable"]) for t in found["tensors"]}
    assert tensors["conv1.weight"] == ([4, 3, 3], 36, 144, True)
    assert tensors["class_weights"] == ([3], 3, 12, False)
    assert found["parameters"] == sum(t["parameters"] for t in found["tensors"])
    operators = {operator["name"]: operator["nodes"] for operator in found["operators"]}
    assert operators["Max"] == 2
    memory = found["training_memory"]
    assert memory["batch_bytes"] == 16 * (2 * 12 * 4 + 8)
    assert memory["optimizer_bytes"] == 4 * (found["parameters"] - 3)
    assert memory["total_bytes"] == sum(
        memory[key] for key in ("batch_bytes", "values_bytes", "weights_bytes", "optimizer_bytes")
    )
    twice = body(capsys, "model", "inspect", "har@1", "--batch-size", "32")["training_memory"]
    assert 1.8 < twice["values_bytes"] / memory["values_bytes"] < 2
    text = said(capsys, "model", "inspect", "har")
    assert "training, batch 32" in text
    assert "set by the plan" in text


def test_options_of_a_round_are_checked_before_anything_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    run(["model", "create", "m", "--input", "3", "--hidden", "2", "--classes", "2"])
    for option, value in (("--weight-decay", "-1"), ("--optimizer", "lion"), ("--class-weights", "heavy")):
        assert option in said(capsys, "round", "start", "m", option, value, code=ExitCode.USAGE)


@dataclass(frozen=True, kw_only=True)
class Group:
    size: Annotated[int, typer.Option("--size", min=1)]
    words: Annotated[list[str] | None, typer.Option("--word")] = None


def test_a_group_of_options_is_one_parameter_of_the_command() -> None:
    seen: list[Any] = []

    def command(name: str, *, group: Group, loud: Annotated[bool, typer.Option("--loud")] = False) -> View:
        """Do it."""
        seen.append((name, group, loud))
        return View({}, [])

    built = Verb("do", grouped(command), examples="do it").load()
    for arguments in (["a", "--size", "2", "--word", "x", "--word", "y", "--loud"], ["b", "--size", "3"]):
        with built.make_context("do", arguments, obj=Session()) as context:
            built.invoke(context)
    assert seen == [("a", Group(size=2, words=["x", "y"]), True), ("b", Group(size=3), False)]
    names = [parameter.name for parameter in built.params]
    assert names[:4] == ["name", "size", "words", "loud"]
