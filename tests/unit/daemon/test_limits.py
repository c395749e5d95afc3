"""What limits the agent, from made-up /proc trees of every kind of system, and from this machine's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedctl_agent.daemon.limits import read_limits

MIB = 1024 * 1024


class System:
    """A /proc and the mounts that it names, below a temporary directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = root / "proc"
        self._mounts: list[str] = []
        self.write("proc/self/status", "Name:\tpython\nRssAnon:\t   20480 kB\n")
        self.write("proc/self/cgroup", "")
        self.write("proc/self/oom_score_adj", "-500\n")
        self.write("proc/self/mountinfo", "")

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def mount(self, path: str, kind: str, options: str = "rw", *, root: str = "/") -> None:
        (self.root / path).mkdir(parents=True, exist_ok=True)
        place = str(self.root / path).replace(" ", "\\040")
        self._mounts.append(f"30 24 0:26 {root} {place} rw shared:4 - {kind} {kind} {options}\n")
        self.write("proc/self/mountinfo", "22 1 0:21 / / rw - ext4 /dev/root rw\n" + "".join(self._mounts))

    def limits(self) -> dict:
        return read_limits(self.proc)


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def test_version_2_counts_the_smallest_limit_on_the_way_up(system: System) -> None:
    system.mount("cg", "cgroup2")
    system.write("proc/self/cgroup", "0::/system.slice/agent.service\n")
    system.write("cg/system.slice/agent.service/memory.max", "max\n")
    system.write("cg/system.slice/agent.service/memory.current", f"{30 * MIB}\n")
    system.write("cg/system.slice/memory.max", f"{256 * MIB}\n")
    system.write("cg/system.slice/agent.service/cpu.max", "50000 100000\n")
    system.write("cg/system.slice/cpu.max", "max 100000\n")
    system.write("cg/system.slice/agent.service/pids.max", "64\n")
    system.write("cg/system.slice/pids.max", "max\n")
    found = system.limits()
    assert found["cgroup"] == "v2"
    assert found["memory"] == {"available": True, "limit_bytes": 256 * MIB, "counted": True}
    assert found["cpu"] == {"available": True, "limit_cores": 0.5}
    assert found["tasks"] == {"available": True, "limit": 64}
    assert found["oom_score_adj"] == -500
    json.dumps(found)


def test_version_2_without_the_controller_as_on_a_raspberry_pi(system: System) -> None:
    system.mount("cg", "cgroup2")
    system.write("proc/self/cgroup", "0::/user.slice\n")
    system.write("cg/user.slice/pids.max", "max\n")
    found = system.limits()
    assert found["memory"] == {"available": False, "limit_bytes": None, "counted": None}
    assert found["tasks"] == {"available": True, "limit": None}


@pytest.mark.parametrize("unified", [False, True])
def test_version_1_and_hybrid(system: System, *, unified: bool) -> None:
    system.mount("cg/memory", "cgroup", "rw,memory")
    system.mount("cg/cpu", "cgroup", "rw,cpu,cpuacct")
    if unified:
        system.mount("cg/unified", "cgroup2")
    system.write("proc/self/cgroup", "4:memory:/a/b\n3:cpu,cpuacct:/a\n1:name=systemd:/\n0::/\n")
    system.write("cg/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n")
    system.write("cg/memory/a/b/memory.usage_in_bytes", f"{25 * MIB}\n")
    system.write("cg/memory/a/memory.limit_in_bytes", f"{128 * MIB}\n")
    system.write("cg/cpu/a/cpu.cfs_quota_us", "-1\n")
    system.write("cg/cpu/a/cpu.cfs_period_us", "100000\n")
    system.write("cg/cpu/cpu.cfs_quota_us", "150000\n")
    system.write("cg/cpu/cpu.cfs_period_us", "100000\n")
    found = system.limits()
    assert found["cgroup"] == ("hybrid" if unified else "v1")
    assert found["memory"] == {"available": True, "limit_bytes": 128 * MIB, "counted": True}
    assert found["cpu"] == {"available": True, "limit_cores": 1.5}
    assert found["tasks"] == {"available": False, "limit": None}


def test_a_limit_that_the_kernel_takes_and_does_not_keep(system: System) -> None:
    system.mount("cg", "cgroup2")
    system.write("proc/self/cgroup", "0::/\n")
    system.write("cg/memory.max", f"{64 * MIB}\n")
    system.write("cg/memory.current", "0\n")  # while this process holds 20 MiB
    assert system.limits()["memory"] == {"available": True, "limit_bytes": 64 * MIB, "counted": False}


def test_a_container_sees_its_own_part_of_the_tree(system: System) -> None:
    system.mount("c g", "cgroup", "rw,memory", root="/docker/4f2")
    system.write("proc/self/cgroup", "4:memory:/docker/4f2\n")
    system.write("c g/memory.limit_in_bytes", f"{96 * MIB}\n")
    system.write("c g/memory.usage_in_bytes", f"{25 * MIB}\n")
    assert system.limits()["memory"]["limit_bytes"] == 96 * MIB


def test_no_control_groups_at_all_and_a_damaged_proc(system: System) -> None:
    found = system.limits()
    assert found["cgroup"] == "none"
    assert [found[name]["available"] for name in ("memory", "cpu", "tasks")] == [False] * 3
    system.write("proc/self/cgroup", "nonsense\n:\n0::/../outside\n")
    system.write("proc/self/mountinfo", "nonsense\n - cgroup2 x rw\n1 2 3 / - cgroup2 x rw\n")
    assert system.limits()["memory"]["available"] is False


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory group of this machine; skips where none can be made."""
    name = "fedctl-test-limits"
    for parent in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        path = parent / name
        try:
            path.mkdir()
        except OSError:
            continue
        limit = next((path / f for f in ("memory.limit_in_bytes", "memory.max") if (path / f).exists()), None)
        if limit is not None:
            limit.write_text(str(300 * MIB))
            try:
                yield path
            finally:
                path.rmdir()
            return
        path.rmdir()
    pytest.skip("no memory control group can be made here: needs root and the controller")


def test_a_real_group_is_read_back_by_a_process_inside(group: Path) -> None:
    program = (
        f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')\n"
        "held = bytearray(b'x') * (32 * 2**20)\n"
        "import json\nfrom fedctl_agent.daemon.limits import read_limits\n"
        "print(json.dumps(read_limits()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["memory"] == {
        "available": True,
        "limit_bytes": 300 * MIB,
        "counted": True,
    }
