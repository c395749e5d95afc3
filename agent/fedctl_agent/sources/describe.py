"""`python -m fedctl_agent.sources.describe`: what the sources of this device would be to a model.

A process of its own, started by the daemon, which must not load NumPy, or by a person. It prints one
`DataReport` as JSON: counts, names and times, never a reading. What of it may leave the device the
daemon decides. With `--shapes` only names and headers are looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl_agent.sources.source import Source, read_source, source_names
from fedctl_agent.trainers.contract import JobError
from fedctl_wire.codec import encode
from fedctl_wire.limits import LIMITS, MIB
from fedctl_wire.messages import DataReport, Reason, SourceFacts, SourceReport

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedctl_agent.sources.rows import Rows

_MEMORY_BYTES = 2048 * MIB  # of address space, where agent.toml says nothing
_NICE = 10
_PR_SET_PDEATHSIG = 1
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_LISTED_FEATURES = 1_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report of a state directory's sources, or of one file."""
    parser = argparse.ArgumentParser(prog="fedctl_agent.sources.describe", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--state-dir", type=Path, metavar="DIR")
    where.add_argument("--source", type=Path, metavar="FILE")
    parser.add_argument("--shapes", action="store_true", help="look at names and headers only")
    parser.add_argument(
        "--parent", type=int, metavar="PID", help="end when this process, which started it, ends"
    )
    options = parser.parse_args(arguments)
    for name in _THREADS:  # read by the numerical libraries when NumPy is imported
        os.environ[name] = "1"
    if options.state_dir is not None:
        _give_way(options.state_dir, options.parent)
        directory = options.state_dir / "sources"
        paths = [directory / f"{name}.toml" for name in source_names(directory)]
    else:
        paths = [options.source]
    moment = time.time()
    reports = tuple(report(path, moment, shapes=options.shapes) for path in paths)
    stamp = datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    sys.stdout.buffer.write(encode(DataReport(stamp, 0, reports)) + b"\n")
    return 0


def report(path: Path, now: float, *, shapes: bool = False) -> SourceReport:
    """One source file and what is behind it; whatever is wrong is part of the report.

    Args:
        path: Of the TOML.
        now: Unix seconds, for the age of rows.
        shapes: Only what is to be seen without reading the rows.
    """
    known = SourceReport(path.stem)
    try:
        source = read_source(path)
        spec = source.spec
        known = replace(
            known,
            kind=spec.kind,
            features=spec.features,
            label=spec.label,
            shape=spec.shape,
            classes=spec.classes,
        )
        return _shape_of(known, source) if shapes else _count(known, source, now)
    except JobError as error:
        return replace(known, error=Reason(error.code, error.message[: LIMITS.message_chars]))
    except MemoryError:
        return replace(known, error=Reason("memory", "there is not enough memory to read it"))
    except Exception as error:  # noqa: BLE001 - the boundary: its text may hold a reading
        return replace(known, error=Reason("internal", f"{type(error).__name__} while it was read"))


def _shape_of(known: SourceReport, source: Source) -> SourceReport:
    from fedctl_agent.sources import kind_of

    return replace(known, shape=kind_of(source).shape(source))


def _count(known: SourceReport, source: Source, now: float) -> SourceReport:
    from fedctl_agent.sources import arrange, kind_of

    oldest = arrange.oldest_row(source.spec, now)
    rows = arrange.in_sequence(arrange.fresh(kind_of(source).read(source, None, oldest), source, oldest))
    known = replace(known, rows=len(rows.y), facts=_facts(rows, source))
    data = arrange.arrange(rows, source, oldest)
    labels = _histogram(data.y, source)
    facts = None if known.facts is None else replace(known.facts, labels=labels)
    return replace(known, shape=data.x.shape[1:], examples=len(data.y), training=data.train, facts=facts)


def _facts(rows: Rows, source: Source) -> SourceFacts:
    from fedctl_agent.sources import arrange
    from fedctl_agent.sources.rows import UNLABELLED

    gaps = arrange.gaps(rows, source.spec)
    timed = rows.time is not None and len(rows.time) > 0
    return SourceFacts(
        first=_moment(rows.time.min()) if rows.time is not None and timed else None,
        last=_moment(rows.time.max()) if rows.time is not None and timed else None,
        spacing_s=arrange.usual_distance(rows),
        gaps=gaps.count if gaps else None,
        gap_s=gaps.longer_than_s if gaps else None,
        longest_gap_s=gaps.longest_s if gaps else None,
        missing=_missing(rows, source),
        unreadable_rows=rows.unreadable,
        old_rows=rows.old,
        unlabelled_rows=int((rows.y == UNLABELLED).sum()),
        labels=None,
    )


def _missing(rows: Rows, source: Source) -> dict[str, int]:
    """Missing cells of each feature that has any."""
    import numpy as np

    spec, features = source.spec, rows.x.shape[1]
    names = spec.features if spec.kind != "npz" else [f"{spec.features[0]}[{i}]" for i in range(features)]
    counts = [int(np.isnan(rows.x[:, at]).sum()) for at in range(features)]
    listed = [(name, count) for name, count in zip(names, counts, strict=True) if count]
    return dict(listed[:_LISTED_FEATURES])


def _histogram(y: NDArray[np.int64], source: Source) -> dict[str, int]:
    import numpy as np

    words = source.spec.classes
    found, counts = np.unique(y, return_counts=True)
    pairs = zip(found.tolist(), counts.tolist(), strict=True)
    return {words[label] if label < len(words) else str(label): count for label, count in pairs}


def _moment(seconds: float) -> str | None:
    try:
        return datetime.fromtimestamp(float(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):  # a recorder's mistake, far from any calendar
        return None


def _give_way(state_dir: Path, parent: int | None) -> None:
    """Be the first to wait, and to go: the device has better to do."""
    if parent is not None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            sys.exit(1)
    os.nice(_NICE)
    with contextlib.suppress(OSError):  # not everywhere may a process say so of itself
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold readings
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = _memory_bytes(state_dir / "agent.toml")
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, wanted))


def _memory_bytes(settings: Path) -> int:
    import tomllib

    try:
        value = tomllib.loads(settings.read_text(encoding="utf-8")).get("job_memory_bytes")
    except (OSError, ValueError):  # the jobs will say so
        return _MEMORY_BYTES
    return value if type(value) is int and value > 0 else _MEMORY_BYTES


if __name__ == "__main__":
    sys.exit(main())
