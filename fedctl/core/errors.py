"""The errors that reach a person, and the exit codes that reach a script."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """Exit codes of `fedctl`; documented, tested, never re-used."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    PARTIAL = 3  # some devices failed
    UNREACHABLE = 4  # no device could be reached
    NO_MATCH = 5  # a selector or name matched nothing
    NOT_MET = 6  # quorum, gate or target
    LOCKED = 7  # another run holds the lock
    TRUST = 8  # signature, identity, role or login
    REFUSED = 9  # device policy or privacy budget
    CONFIG = 10  # configuration, disk or state database; or a device that cannot carry an agent
    TIMEOUT = 124  # the command's own --timeout ran out while the work goes on
    INTERRUPTED = 130


class FedctlError(Exception):
    """An error with everything a person needs: what, about whom, why, the way out.

    Args:
        message: Lower case, naming the device or file and the cause.
        hint: The way out: a command or an action; may be empty.
        subject: The device, model, round or file it is about.
        exit_code: What the process ends with.
        code: Stable word for programs; the exit code's name where nothing finer is known.
    """

    exit_code: ExitCode = ExitCode.UNEXPECTED

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        subject: str = "",
        exit_code: ExitCode | None = None,
        code: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.subject = subject
        if exit_code is not None:
            self.exit_code = exit_code
        self.code = code or self.exit_code.name.lower()


class UsageError(FedctlError):
    """The words of the command do not fit together."""

    exit_code = ExitCode.USAGE


class NotFoundError(FedctlError):
    """A name, selector or number matched nothing."""

    exit_code = ExitCode.NO_MATCH


class NotMetError(FedctlError):
    """A quorum, gate or target was not met."""

    exit_code = ExitCode.NOT_MET


class LockedError(FedctlError):
    """Another run holds the fleet's or model's lock."""

    exit_code = ExitCode.LOCKED


class TrustError(FedctlError):
    """A signature, hash, key, identity or login is not what it must be."""

    exit_code = ExitCode.TRUST


class RefusedError(FedctlError):
    """A device's policy refused."""

    exit_code = ExitCode.REFUSED


class ConfigError(FedctlError):
    """Configuration, disk, home directory or state database."""

    exit_code = ExitCode.CONFIG


class UnreachableError(FedctlError):
    """A device could not be reached, hung up, or answered in time by nothing useful.

    Worth another try within a deadline, unlike every other error about a device.
    """

    exit_code = ExitCode.UNREACHABLE


class DeviceError(FedctlError):
    """A device answered, but with something that is no valid answer, or with a refusal of its own.

    Final for this device in this operation; never retried.
    """

    exit_code = ExitCode.PARTIAL


def reason_of(error: OSError) -> str:
    """What the operating system says went wrong, in lower case for the end of a sentence."""
    return (error.strerror or str(error)).lower()


def unreadable(path: Path, error: OSError, *, hint: str = "check that you may read it") -> ConfigError:
    """The error for a file of the workstation that cannot be read."""
    return ConfigError(f"cannot read {path}: {reason_of(error)}", hint=hint, subject=str(path))
