"""Ping 50 devices over SSH: every device its own sshd on a loopback address, all on this machine.

Needs root: sudo python benchmarks/ssh_sweep.py [--devices 50] [--profile]. Cold: from no connection to the
last answer, paramiko and httpx imported before. Warm: the same sweep again over the connections left open;
the median of five. One agent answers behind all of them, each through a `dial-stdio` of its own. The last
line is one JSON object: `cold_s`, `warm_s`, `devices`.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import cProfile
import importlib.util
import json
import os
import pstats
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fedctl.ops.enrolment.install import launcher_text
from fedctl.transport import connect, sweep
from tests.system import SshBed, Sshd, eventually, python_for_all, ssh_bed

_WARM_SWEEPS = 5


def main() -> None:
    """Set the bed up, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=50)
    parser.add_argument(
        "--profile", action="store_true", help="where the cold sweep's CPU time goes, all threads"
    )
    arguments = parser.parse_args()
    os.environ["SYSTEM_TESTS"] = "1"  # who starts this has asked for it
    with ssh_bed() as bed, agent(bed) as command, servers(bed, arguments.devices) as devices:
        key = bed.authorize(command)
        for device in devices:
            device.authorized_keys.write_text(bed.sshd.authorized_keys.read_text())
        result = measure(bed, devices, key, profile=arguments.profile)
    print(json.dumps({**result, "devices": arguments.devices}))


@contextlib.contextmanager
def agent(bed: SshBed) -> Iterator[str]:
    """A real agent as its own process; gives the command line of the bridge to it."""
    directory = bed.new_directory("agent")
    socket = directory / "agent.sock"
    options = ["--state-dir", str(directory / "state"), "--socket", str(socket)]
    process = subprocess.Popen([sys.executable, "-m", "fedctl_agent.main", "serve", *options])
    try:
        eventually(socket.exists, "the agent listens")
        socket.chmod(0o666)
        yield bridge_command(bed, socket)
    finally:
        process.terminate()
        process.wait()


def bridge_command(bed: SshBed, socket: Path) -> str:
    """The command that the login key is limited to, with the launcher of an installation."""
    tree = bed.new_directory("tree")
    tree.chmod(0o755)  # Python lists the directories that it imports from
    (tree / "fedctl_agent").mkdir()
    source = Path(str(importlib.util.find_spec("fedctl_agent.dial_stdio").origin))  # type: ignore[union-attr]
    (tree / "fedctl_agent" / "__init__.py").touch()
    shutil.copy(source, tree / "fedctl_agent")
    compileall.compile_dir(tree, quiet=1)
    launcher = tree / "fedctl-agent"
    launcher.write_text(launcher_text(str(python_for_all()), str(tree)))
    launcher.chmod(0o755)
    return shlex.join([str(launcher), "dial-stdio", "--socket", str(socket)])


@contextlib.contextmanager
def servers(bed: SshBed, count: int) -> Iterator[list[Sshd]]:
    """`count` running servers, one an address of 127.0.1.0/24."""
    with contextlib.ExitStack() as undo:
        made = []
        for number in range(1, count + 1):
            sshd = Sshd(bed.sshd.program, bed.directory / f"sshd-{number}", address=f"127.0.1.{number}")
            undo.callback(sshd.stop)
            made.append(sshd)
        with ThreadPoolExecutor(8) as starters:
            list(starters.map(Sshd.start, made))
        yield made


def measure(bed: SshBed, devices: list[Sshd], key: Path, *, profile: bool) -> dict[str, float]:
    """Seconds of the cold sweep and of the median warm one."""
    import httpx  # noqa: F401 - importing is not what is measured
    import paramiko  # noqa: F401

    with contextlib.ExitStack() as open_clients:
        clients = {}
        for device in devices:
            url = f"ssh://{bed.user}@{device.address}:{device.port}"
            client = connect(device=device.address, url=url, host_key=device.host_key, login_key=key)
            clients[device.address] = open_clients.enter_context(client)  # connects at its first call

        def ping(device: Sshd) -> str:
            return clients[device.address].health().boot_id

        cold_s = timed(lambda: check(list(sweep(devices, ping)))) if not profile else profiled(devices, ping)
        warm = [timed(lambda: check(list(sweep(devices, ping)))) for _ in range(_WARM_SWEEPS)]
        print(f"cold {cold_s:.3f} s, warm {', '.join(f'{s:.3f}' for s in warm)} s", file=sys.stderr)
        return {"cold_s": round(cold_s, 3), "warm_s": round(statistics.median(warm), 3)}


def check(results: list[tuple[Sshd, object]]) -> None:
    """Every device answered."""
    for device, outcome in results:
        assert isinstance(outcome, str), (device.address, outcome, device.log)


def timed(work: Callable[[], None]) -> float:
    """Seconds that `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def profiled(devices: list[Sshd], ping: Callable[[Sshd], str]) -> float:
    """The sweep one device after the other under cProfile; the time is not comparable."""
    profiler = cProfile.Profile()
    begin = time.perf_counter()
    for device in devices:
        profiler.runcall(ping, device)
    pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(40)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
