"""What each exception becomes at the edge."""

from __future__ import annotations

import errno
import json

import pytest

from fedctl.cli.app import NOUNS, asks_for_json, root, run
from fedctl.cli.command import Session
from fedctl.cli.edge import explain, report
from fedctl.core.errors import (
    ConfigError,
    ExitCode,
    FedctlError,
    NotFoundError,
    TrustError,
    UnreachableError,
    UsageError,
)
from fedctl_wire.errors import WireError


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (FedctlError("x"), "unexpected", 1),
        (UnreachableError("watch-01: timed out"), "unreachable", 4),
        (TrustError("x", code="host_key"), "host_key", 8),
        (WireError("x", code="name"), "name", 2),
        (WireError("x", code="signature"), "signature", 8),
        (WireError("x", code="hash"), "hash", 8),
        (WireError("x"), "malformed", 10),
        (OSError(errno.ENOSPC, "No space left on device", "/home/x"), "disk", 10),
        (OSError(errno.ENOSPC, "No space left on device"), "disk", 10),
        (OSError(errno.EROFS, "Read-only file system", "/home/x"), "disk", 10),
        (PermissionError(errno.EACCES, "Permission denied", "/home/x"), "disk", 10),
        (KeyboardInterrupt(), "interrupted", 130),
        (ZeroDivisionError("division by zero"), "unexpected", 1),
        (OSError("odd"), "unexpected", 1),
    ],
)
def test_every_error_has_its_code(error: BaseException, code: str, exit_code: int) -> None:
    failure = explain(error)
    assert (failure.code, failure.exit_code) == (code, exit_code)
    assert failure.message


def test_a_block_has_message_and_hint(capsys: pytest.CaptureFixture[str]) -> None:
    error = ConfigError("cannot write /x: no space left", hint="free some space", subject="/x")
    assert report(error, as_json=False, verbose=False) == ExitCode.CONFIG
    captured = capsys.readouterr()
    assert captured.err == "fedctl: cannot write /x: no space left\n  free some space\n"
    assert captured.out == ""


def test_an_error_as_json_is_one_object_with_null_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    report(UnreachableError("watch-01: timed out", subject="watch-01"), as_json=True, verbose=False)
    assert json.loads(capsys.readouterr().err) == {
        "error": {
            "code": "unreachable",
            "message": "watch-01: timed out",
            "hint": None,
            "subject": "watch-01",
        }
    }


def test_verbose_shows_the_chain_of_causes(capsys: pytest.CaptureFixture[str]) -> None:
    cause = ValueError("the cause")
    error = ConfigError("the effect")
    error.__cause__ = cause
    report(error, as_json=False, verbose=True)
    err = capsys.readouterr().err
    assert err.index("ValueError: the cause") < err.index("ConfigError") < err.index("fedctl: the effect")


def test_an_unexpected_error_is_one_line_and_a_way_to_more(capsys: pytest.CaptureFixture[str]) -> None:
    report(RuntimeError("first line\nsecond line"), as_json=False, verbose=False)
    assert capsys.readouterr().err.splitlines() == [
        "fedctl: unexpected error: RuntimeError: first line",
        "  run it again with -v to see where",
    ]


def test_escape_sequences_in_names_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    report(ConfigError("bad \x1b[2J name"), as_json=False, verbose=False)
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["devices", "list", "--bogus", "-o", "json"], True),
        (["-ojsonl", "nonsense"], True),
        (["x", "--output=json"], True),
        (["x", "--output", "json"], True),
        (["x", "-o", "table"], False),
        (["model", "show", "json"], False),
        ([], False),
    ],
)
def test_the_form_of_an_error_is_known_before_parsing(words: list[str], *, answer: bool) -> None:
    assert asks_for_json(words) is answer


def test_every_verb_explains_itself_with_examples() -> None:
    group = root()
    for noun in NOUNS:
        _, command, _ = group.resolve_command(group.make_context("fedctl", [noun], obj=Session()), [noun])
        verbs = getattr(command, "commands", None)
        for verb in verbs or [None]:
            chosen = command
            if verb is not None:
                _, chosen, _ = command.resolve_command(
                    command.make_context(noun, [verb], obj=Session()), [verb]
                )
            assert chosen.help, f"{noun} {verb} has no description"
            assert f"  fedctl {noun}" in chosen.epilog, f"{noun} {verb} has no example"
            example_lines = chosen.epilog.splitlines()[1:]
            assert all(line.startswith("  fedctl ") and len(line) <= 80 for line in example_lines)


def test_help_exits_with_0_and_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert "Usage: fedctl" in capsys.readouterr().out


def test_a_noun_alone_shows_its_help_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["devices"]) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage: fedctl devices" in captured.err


def test_wrong_words_without_a_hint_of_their_own_name_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    error = UsageError("--rounds is 0")
    assert report(error, as_json=False, verbose=False, command="fedctl round start") == ExitCode.USAGE
    assert capsys.readouterr().err.splitlines()[-1].strip() == "see: fedctl round start --help"
    report(UsageError("x", hint="y"), as_json=False, verbose=False, command="fedctl round start")
    assert "--help" not in capsys.readouterr().err
    report(NotFoundError("x"), as_json=False, verbose=False, command="fedctl round start")
    assert "--help" not in capsys.readouterr().err
