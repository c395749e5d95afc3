"""What the device's sources would be to a model, for the daemon, which reads no data itself.

A process of its own looks at them, with a deadline; its answer is remembered until a source file or
the data behind it change. What the policy keeps is taken out here, last.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl_agent.daemon.errors import ApiError
from fedctl_agent.daemon.logs import AgentLog, utc_now
from fedctl_agent.processes import child_environment
from fedctl_agent.state import StateDir
from fedctl_wire.codec import decode
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.messages import DataNeeds, DataReport, SourceReport

if TYPE_CHECKING:
    from fedctl_agent.daemon.policy import EffectivePolicy
    from fedctl_agent.sources import Source

DEADLINE_S = 60.0
DESCRIBE_COMMAND = (sys.executable, "-P", "-m", "fedctl_agent.sources.describe")
_SHARE = "data"
_NO_FIT = {"schema", "no_source"}
_FILES = 10_000  # of a source that are looked at for changes
_DAY_S = 86_400
Stamp = tuple[object, ...]


class Data:
    """Answers `GET /v1/data`, and whether a model fits. Thread-safe; one process at a time."""

    def __init__(
        self,
        state: StateDir,
        log: AgentLog,
        *,
        command: Sequence[str] = DESCRIBE_COMMAND,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._state = state
        self._log = log
        self._command = command
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._counted: tuple[Stamp, DataReport] | None = None
        self._shapes: tuple[Stamp, dict[str, tuple[int, ...]]] = ((), {})

    def report(self, policy: EffectivePolicy) -> DataReport:
        """Counts, schema and, as far as the policy shares data, times, gaps, labels and missing cells.

        Raises:
            ApiError: 503 `slow` when the data could not be read in time, 500 `data` when not at all.
        """
        with self._lock:
            stamp = _stamp_of(self._state.sources)
            if self._counted is None or self._counted[0] != stamp:
                self._counted = stamp, self._describe()
            found = self._counted[1]
        sources = tuple(_shared(source, policy) for source in found.sources)
        return replace(found, time=utc_now(), min_examples=policy.min_examples, sources=sources)

    def require_fit(self, model: str, needs: DataNeeds) -> None:
        """Refuse a model that the source chosen for it cannot serve, before anything is downloaded for it.

        Data that cannot be read now are the job's to report.

        Raises:
            ApiError: 403 `schema` or `no_source`.
        """
        from fedctl_agent.sources.source import check_fit, check_shape, choose_source
        from fedctl_agent.trainers.contract import JobError

        try:
            source = choose_source(self._state.sources, model)
            check_fit(source, needs)
            shape = self._shape_of(source)
            if source.spec.shape is None and shape is not None:
                check_shape(source, shape, needs)
        except JobError as error:
            if error.code in _NO_FIT:
                raise ApiError(403, error.code, error.message, subject=model) from error

    def _shape_of(self, source: Source) -> tuple[int, ...] | None:
        """The shape of one example, remembered for as long as the source files stay as they are.

        Data that are not there yet, or cannot be read, may be so the next time.
        """
        with self._lock:
            stamp = tuple(_stamps(self._state.sources))
            if self._shapes[0] != stamp:
                self._shapes = (stamp, {})
            known = self._shapes[1]
            if source.name not in known:
                shape = self._look(source)
                if shape is None:
                    return None
                known[source.name] = shape
            return known[source.name]

    def _look(self, source: Source) -> tuple[int, ...] | None:
        """Look at names and headers; libsqlite3 is a process's of its own, as it would stay in memory."""
        if source.spec.kind != "sqlite":
            return _LOOKS[source.spec.kind](source)
        seen = {report.source: report for report in self._describe("--shapes").sources}.get(source.name)
        if seen is not None and seen.error is not None and seen.error.code == "schema":
            raise ApiError(403, "schema", seen.error.message, subject=source.name)
        return None if seen is None or seen.error is not None else seen.shape

    def _describe(self, *options: str) -> DataReport:
        command = [
            *self._command,
            "--state-dir",
            str(self._state.path),
            "--parent",
            str(os.getpid()),
            *options,
        ]
        try:
            done = subprocess.run(
                command,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._deadline_s,
                check=True,
            )
            return decode(DataReport, done.stdout, limit=LIMITS.json_body_bytes, what="data report")
        except subprocess.TimeoutExpired as error:
            message = f"this device's data could not be read in {self._deadline_s:g} s"
            raise ApiError(503, "slow", message, hint="try again when it is less busy") from error
        except (subprocess.CalledProcessError, OSError, WireError) as error:
            detail = getattr(error, "stderr", b"") or str(error).encode()
            self._log.write(
                "error", "the data could not be described", detail=detail[-2000:].decode(errors="replace")
            )
            raise ApiError(
                500, "data", "this device's data could not be described", hint="see its log: GET /v1/logs"
            ) from error


def _look_at_arrays(source: Source) -> tuple[int, ...] | None:
    from fedctl_agent.sources import npz_header

    return npz_header.shape(source)


def _look_at_text(source: Source) -> tuple[int, ...] | None:
    from fedctl_agent.sources import csv_table

    return csv_table.shape(source)


_LOOKS = {"npz": _look_at_arrays, "csv": _look_at_text}


def _shared(source: SourceReport, policy: EffectivePolicy) -> SourceReport:
    """A report without what the policy keeps on the device."""
    if source.facts is None or _SHARE not in policy.share:
        return replace(source, facts=None)
    if source.examples < policy.min_examples:
        return replace(source, facts=replace(source.facts, labels=None))
    return source


def _stamp_of(directory: Path) -> Stamp:
    """What changes whenever a source file, the data behind it, or the day changes."""
    from fedctl_agent.sources.source import read_source, source_names
    from fedctl_agent.trainers.contract import JobError

    found: list[object] = [*_stamps(directory)]
    for name in source_names(directory):
        try:
            source = read_source(directory / f"{name}.toml")
        except JobError:
            continue
        found.extend(_stamps(source.path))
        found.extend(_stamps(source.path.with_name(f"{source.path.name}-wal")))
        if source.spec.max_age_days is not None:
            found.append(int(time.time()) // _DAY_S)
    return tuple(found)


def _stamps(path: Path) -> list[object]:
    """Names, sizes and times of a file, or of the files of a directory."""
    try:
        own = path.stat()
        found: list[object] = [(str(path), own.st_mtime_ns, own.st_ino, own.st_size)]
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name)[:_FILES]:
                seen = entry.stat()
                found.append((entry.name, seen.st_mtime_ns, seen.st_ino, seen.st_size))
    except NotADirectoryError:
        return found
    except (OSError, ValueError) as error:
        return [(str(path)[:200], type(error).__name__)]
    return found
