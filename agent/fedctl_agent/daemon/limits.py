"""What limits this process and its jobs, read back from the kernel: some systems take a limit and ignore it.

Control groups are found where they are mounted: version 2, version 1, both at once ("hybrid", a
controller is in one of them), or none. A limit holds for a group and all below it, so that the smallest
one on the way to the root counts. Files only, a handful of reads a call; nothing is kept or polled.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedctl_wire.codec import Json

_NO_LIMIT_BYTES = 2**60  # version 1 says "none" by a number about as large as an address space
_ESCAPED = re.compile(r"\\([0-7]{3})")  # in paths of mountinfo
_NAMES = {"v1": "cgroup", "v2": "cgroup2"}


@dataclass(frozen=True, slots=True)
class _Group:
    """This process's group of one hierarchy, and those above it as far as they are visible."""

    version: str  # "v1" or "v2"
    path: Path
    root: Path

    def upwards(self) -> Iterator[Path]:
        """The group's directory and those above it."""
        yield self.path
        for parent in self.path.parents:
            if not parent.is_relative_to(self.root):
                return
            yield parent


def read_limits(proc: Path = Path("/proc")) -> dict[str, Json]:
    """Everything that limits this process; null where nothing does, or where it cannot be read."""
    groups = _groups(proc / "self")
    versions = {group.version for group in groups.values()}
    return {
        "cgroup": "hybrid" if len(versions) > 1 else next(iter(versions), "none"),
        "memory": _memory(_with_file(groups, "memory", "memory.max"), proc),
        "cpu": _cpu(_with_file(groups, "cpu", "cpu.max")),
        "tasks": _tasks(_with_file(groups, "pids", "pids.max")),
        "rlimits": _rlimits(),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "oom_score_adj": _number(proc / "self" / "oom_score_adj"),
    }


# ---------------------------------------------------------------------- where the groups are


def _groups(process: Path) -> dict[str, _Group]:
    """This process's group by controller; version 2 has one for all, under the name ""."""
    member: dict[str, str] = {}
    for line in _text(process / "cgroup").splitlines():  # 4:memory:/user.slice
        controllers, _, path = line.partition(":")[2].partition(":")
        member.update(dict.fromkeys(controllers.split(","), path))
    groups: dict[str, _Group] = {}
    for kind, root, mount, options in _mounts(process):
        names = [""] if kind == _NAMES["v2"] else options
        for name in names:
            below = _below(member.get(name), root)
            if below is not None and name not in groups:
                version = "v2" if kind == _NAMES["v2"] else "v1"
                groups[name] = _Group(version, mount / below, mount)
    return groups


def _mounts(process: Path) -> Iterator[tuple[str, str, Path, list[str]]]:
    """(type, root within the hierarchy, where it is mounted, its options) of each hierarchy; see proc(5)."""
    for line in _text(process / "mountinfo").splitlines():
        left, right = (half.split(" ") for half in line.partition(" - ")[::2])
        if right[0] in _NAMES.values() and len(left) > 4:
            words = [_ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), word) for word in left]
            yield right[0], words[3], Path(words[4]), right[-1].split(",")


def _below(path: str | None, root: str) -> str | None:
    """A group's path below what is mounted; None when this process is not in it, or it lies outside."""
    if path is None or "/.." in path:  # a group namespace shows what lies outside as /..
        return None
    if root == "/":
        return path.lstrip("/")
    return path.removeprefix(root).lstrip("/") if f"{path}/".startswith(f"{root}/") else ""


def _with_file(groups: dict[str, _Group], controller: str, file: str) -> _Group | None:
    """The group where a controller is in force; in version 2 only the parent's consent makes its files."""
    one = groups.get(controller)
    if one is not None:
        return one
    group = groups.get("")
    return group if group is not None and (group.path / file).exists() else None


# ---------------------------------------------------------------------- what they say


def _memory(group: _Group | None, proc: Path) -> dict[str, Json]:
    if group is None:
        return {"available": False, "limit_bytes": None, "counted": None}
    limit, usage = (
        ("memory.max", "memory.current")
        if group.version == "v2"
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    found = _least(group, lambda path: _number(path / limit))
    used, ours = _number(group.path / usage), _anonymous_bytes(proc)
    return {
        "available": True,
        "limit_bytes": None if found is None or found >= _NO_LIMIT_BYTES else int(found),
        # A kernel that does not count what this process holds cannot limit it either.
        "counted": None if used is None or ours is None else used >= ours / 2,
    }


def _cpu(group: _Group | None) -> dict[str, Json]:
    if group is None:
        return {"available": False, "limit_cores": None}
    read = _cores_v2 if group.version == "v2" else _cores_v1
    found = _least(group, read)
    return {"available": True, "limit_cores": None if found is None else round(found, 3)}


def _tasks(group: _Group | None) -> dict[str, Json]:
    if group is None:
        return {"available": False, "limit": None}
    found = _least(group, lambda path: _number(path / "pids.max"))
    return {"available": True, "limit": None if found is None else int(found)}


def _cores_v2(path: Path) -> float | None:
    quota, _, period = _text(path / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _cores_v1(path: Path) -> float | None:
    quota, period = _number(path / "cpu.cfs_quota_us"), _number(path / "cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None


def _least(group: _Group, read: Callable[[Path], float | None]) -> float | None:
    found = [value for path in group.upwards() if (value := read(path)) is not None]
    return min(found, default=None)


def _rlimits() -> dict[str, Json]:
    which = {
        "address_space_bytes": resource.RLIMIT_AS,
        "file_bytes": resource.RLIMIT_FSIZE,
        "open_files": resource.RLIMIT_NOFILE,
        "processes": resource.RLIMIT_NPROC,
    }
    soft = {name: resource.getrlimit(number)[0] for name, number in which.items()}
    return {name: None if value == resource.RLIM_INFINITY else value for name, value in soft.items()}


def _anonymous_bytes(proc: Path) -> int | None:
    """What this process holds of its own; what it shares may be another group's."""
    match = re.search(r"^RssAnon:\s*(\d+) kB$", _text(proc / "self" / "status"), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.removeprefix("-").isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # what cannot be read here is not known
