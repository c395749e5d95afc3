"""The edge: the one place that turns every exception into a block on stderr and an exit code."""

from __future__ import annotations

import contextlib
import errno
import json
import sys
from dataclasses import dataclass, replace

import typer

from fedctl.cli.screen import Screen, write
from fedctl.core.errors import ConfigError, ExitCode, FedctlError, reason_of
from fedctl_wire.errors import WireError

_WIRE_EXITS = {
    "name": ExitCode.USAGE,
    "signature": ExitCode.TRUST,
    "hash": ExitCode.TRUST,
}  # by a WireError's code; anything else is a damaged file: CONFIG
_DISK_HINTS = {
    errno.ENOSPC: "free space there and run the command again: it goes on where it stopped",
    errno.EDQUOT: "free space there and run the command again: it goes on where it stopped",
    errno.EROFS: "it is on a read-only file system: choose another place, e.g. with FEDCTL_HOME",
    errno.EACCES: "check who owns it, or choose another place, e.g. with FEDCTL_HOME",
    errno.EPERM: "check who owns it, or choose another place, e.g. with FEDCTL_HOME",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong, as it is shown."""

    code: str
    message: str
    hint: str
    subject: str
    exit_code: ExitCode


def report(error: BaseException, *, as_json: bool, verbose: bool, command: str = "") -> int:
    """Write the block to stderr, one JSON object or sentences, and return the exit code.

    Wrong words whose error knows no way out are explained by the help of `command`, which runs. With
    `verbose` the traceback comes first, unless Typer did not understand the words.
    """
    if type(error).__name__ == "NoArgsIsHelpError" and not as_json:  # `fedctl devices` and nothing else
        lines = str(error).splitlines()
        _write(lines)
        return ExitCode.USAGE
    failure = explain(error)
    if command and not failure.hint and failure.exit_code is ExitCode.USAGE:
        failure = replace(failure, hint=f"see: {command} --help")
    lines = _json_lines(failure) if as_json else _text_lines(failure)
    if verbose and not isinstance(error, typer.TyperException):
        import traceback

        lines = ["".join(traceback.format_exception(error)).rstrip("\n"), *lines]
    _write(lines)
    return failure.exit_code


def explain(error: BaseException) -> Failure:
    """Say what an exception means for the person who typed the command."""
    if isinstance(error, FedctlError):
        return Failure(error.code, error.message, error.hint, error.subject, error.exit_code)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return Failure("interrupted", "interrupted; what is done is kept", "", "", ExitCode.INTERRUPTED)
    if isinstance(error, typer.TyperException):
        return _explain_usage(error)
    if isinstance(error, WireError):
        exit_code = _WIRE_EXITS.get(error.code, ExitCode.CONFIG)
        return Failure(error.code, str(error), "", error.subject, exit_code)
    if isinstance(error, OSError) and error.errno in _DISK_HINTS:
        return _explain_disk(error)
    words = f"{type(error).__name__}: {error}".split("\n", 1)[0].rstrip(": ")
    return Failure(
        "unexpected",
        f"unexpected error: {words}",
        "run it again with -v to see where",
        "",
        ExitCode.UNEXPECTED,
    )


def _explain_usage(error: typer.TyperException) -> Failure:
    context = getattr(error, "ctx", None)
    hint = f"see: {context.command_path} --help" if context else ""
    message = (
        "no command was given" if type(error).__name__ == "NoArgsIsHelpError" else error.format_message()
    )
    message = _with_range(message, error)
    return Failure("usage", message[:1].lower() + message[1:].rstrip("."), hint, "", ExitCode.USAGE)


def _with_range(message: str, error: typer.TyperException) -> str:
    """Typer says "'x' is not a valid int range", but not which range."""
    kind = getattr(getattr(error, "param", None), "type", None)
    least, most = getattr(kind, "min", None), getattr(kind, "max", None)
    if least is not None and most is not None:
        bounds = f"from {least} to {most}"
    else:
        bounds = f"of at least {least}" if most is None else f"of at most {most}"
    for words, number in (("int", "whole number"), ("float", "number")):
        message = message.replace(f"is not a valid {words} range", f"is not a {number} {bounds}")
    return message


def _write(lines: list[str]) -> None:
    with contextlib.suppress(ConfigError):  # stderr itself is broken: the exit code still speaks
        write(sys.stderr, lines)


def _explain_disk(error: OSError) -> Failure:
    subject = "" if error.filename is None else str(error.filename)
    cause = reason_of(error)
    message = f"{subject}: {cause}" if subject else cause
    return Failure("disk", message, _DISK_HINTS[error.errno or 0], subject, ExitCode.CONFIG)


def _json_lines(failure: Failure) -> list[str]:
    facts = {
        "code": failure.code,
        "message": failure.message,
        "hint": failure.hint or None,
        "subject": failure.subject or None,
    }
    return [json.dumps({"error": facts})]


def _text_lines(failure: Failure) -> list[str]:
    screen = Screen.of(sys.stderr)
    first, *rest = failure.message.splitlines() or [failure.code]
    lines = [f"fedctl: {first}", *rest, *(f"  {line}" for line in failure.hint.splitlines())]
    return [screen.paint(_printable(line)) for line in lines]


def _printable(line: str) -> str:
    """Names from the command line may hold anything, escape sequences too."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
