"""A fleet of real agent processes on Unix sockets, for the benchmarks that measure whole rounds."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedctl.core.home import Home
from fedctl.ops.devices import NewDevice, add_local
from fedctl.ops.fleet import init
from fedctl.store import Store

_PATIENCE_S = 60.0


@contextlib.contextmanager
def local_fleet(
    directory: Path, sources: Mapping[str, str], labels: Mapping[str, dict[str, str]]
) -> Iterator[tuple[Home, dict[str, int]]]:
    """Start and enrol an agent for each name; gives the home and the daemons' process ids.

    Args:
        directory: Everything is kept below it.
        sources: What each agent's `sources/data.toml` says.
        labels: Of some or all of them.
    """
    home = Home(directory / "home")
    init(home)
    agents: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, source in sources.items():
            agents[name] = _start(directory / name, source)
        deadline = time.monotonic() + _PATIENCE_S
        new = []
        for name, process in agents.items():
            socket = directory / name / "agent.sock"
            while not socket.exists():
                assert process.poll() is None, f"{name} ended"
                assert time.monotonic() < deadline, f"{name} does not listen"
                time.sleep(0.01)
            new.append(NewDevice(name=name, url=f"unix://{socket}", labels=labels.get(name, {})))
        with Store.open(home) as store:
            add_local(store, home, new)
        yield home, {name: process.pid for name, process in agents.items()}
    finally:
        for process in agents.values():
            process.terminate()
        for process in agents.values():
            process.wait()


def _start(state: Path, source: str) -> subprocess.Popen[bytes]:
    (state / "sources").mkdir(parents=True, mode=0o700)
    (state / "sources" / "data.toml").write_text(source)
    program = [sys.executable, "-m", "fedctl_agent.main"]
    # An installed agent has its byte code; without it every process compiles what it imports.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    keygen = [*program, "keygen", "--state-dir", str(state)]
    subprocess.run(keygen, check=True, stdout=subprocess.DEVNULL, env=environment)
    with state.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [*program, "serve", "--state-dir", str(state)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
