"""Push a model of 50 MB to one device, over HTTPS and over SSH, and once more after a cut.

Needs root, for sshd and its test user: sudo python benchmarks/push.py [--mb 50] [--runs 5]. One real agent,
all on this machine. The first version goes before anything is measured; then each push is of a version with
new weights, so that exactly they travel, over an open connection, from asking what is missing to the
installed slot: hashed, fsynced and verified by the device. For the cut the connection is dropped after six
tenths, and the push run again at once. The last line is one JSON object: `https_mb_s` and `ssh_mb_s` (10^6
bytes a second, medians), `resume_ratio` (bytes that were sent again / size, the worse of both).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ssh_sweep import bridge_command

from fedctl.core.home import Home
from fedctl.ops.contact import reach
from fedctl.ops.devices import NewDevice, add
from fedctl.ops.fleet import init
from fedctl.ops.models import NewModel, create
from fedctl.release.bundle import Bundle, next_version, read_bundle
from fedctl.release.keys import load_operator
from fedctl.store import Store
from fedctl.transport import AgentClient, connect
from fedctl_wire.messages import TrainSettings
from fedctl_wire.signing import public_key
from tests.system import SshBed, eventually, free_port, ssh_bed

MODEL = "weight"
FEATURES = 24
UNIT_BYTES = 27 * 4  # of a hidden unit: 24 weights in, a bias, 2 weights out
CUT_AT = 0.6  # of the bytes
DEVICE = "device"


class CutError(Exception):
    """The connection was dropped on purpose."""


@dataclass(frozen=True, slots=True)
class Way:
    """How the device is reached."""

    name: str
    open: Callable[[], AgentClient]


def main() -> None:
    """Set the bed up, measure, print."""
    parser = argparse.ArgumentParser(description="Push a model to one device over HTTPS and SSH.")
    parser.add_argument("--mb", type=float, default=50, help="size of the weights, 10^6 bytes")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    os.environ["SYSTEM_TESTS"] = "1"  # who starts this has asked for it
    with ssh_bed() as bed, device(bed, int(options.mb * 1e6)) as (home, ways):
        versions = new_versions(home)
        rates: dict[str, list[float]] = {way.name: [] for way in ways}
        for _ in range(options.runs):
            for way in ways:  # taking turns, so that a busy moment meets both
                rates[way.name].append(rate_mb_s(way, next(versions)))
        again = {way.name: sent_again(way, next(versions)) for way in ways}
    print(f"MB/s: {rates}, sent again: {again}", file=sys.stderr)
    found = {f"{name}_mb_s": round(statistics.median(found), 1) for name, found in rates.items()}
    print(json.dumps({**found, "resume_ratio": round(max(again.values()), 5)}))


@contextlib.contextmanager
def device(bed: SshBed, size: int) -> Iterator[tuple[Home, list[Way]]]:
    """An enrolled agent that holds the first version of the model, and the two ways to it."""
    directory = bed.new_directory("push")
    home = Home(directory / "home")
    init(home)
    with Store.open(home) as store, agent(directory) as (socket, url, token):
        row = add(store, home, NewDevice(name=DEVICE, url=url), token=token).device
        assert row is not None
        model = NewModel(
            name=MODEL,
            builder="mlp",
            input_shape=(FEATURES,),
            hidden=(size // UNIT_BYTES,),
            classes=2,
            scale="none",
            settings=TrainSettings(lr=1e-4, local_epochs=0, batch_size=32),
        )
        create(store, home, model)
        key = bed.authorize(bridge_command(bed, socket))
        ssh = {"url": bed.url, "host_key": bed.host_key, "login_key": key}
        ways = [
            Way("https", lambda: reach(home, row)),
            Way("ssh", lambda: connect(device=DEVICE, **ssh)),  # type: ignore[arg-type]
        ]
        with ways[0].open() as client:
            client.push_bundle(home.bundle(MODEL, 1), activate=True)
        yield home, ways


@contextlib.contextmanager
def agent(directory: Path) -> Iterator[tuple[Path, str, str]]:
    """A running agent that waits for its enrolment: its socket, its URL and its token."""
    state, socket, address = (
        directory / "state",
        directory / "agent.sock",
        f"127.0.0.1:{free_port('127.0.0.1')}",
    )
    program = [sys.executable, "-m", "fedctl_agent.main"]
    enrol = [*program, "enrol", "--state-dir", str(state), "--listen", address]
    token = subprocess.run(enrol, check=True, capture_output=True, text=True).stdout.strip()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [*program, "serve", "--state-dir", str(state), "--socket", str(socket)]
    process = subprocess.Popen(command, env=environment)
    try:
        eventually(socket.exists, "the agent listens")
        socket.chmod(0o666)  # for the bed's user, whose login runs the bridge
        yield socket, f"https://{address}", token
    finally:
        process.terminate()
        process.wait()


def new_versions(home: Home) -> Iterator[Bundle]:
    """Versions of the model, each with weights that no device has seen."""
    key = load_operator(home)
    bundle = read_bundle(home.bundle(MODEL, 1), public_key(key))
    plain = bundle.weights.read_bytes()
    start = 8 + int.from_bytes(plain[:8], "little")  # of the numbers: length of the header, header, numbers
    path = home.path / "weights"
    while True:
        version = bundle.manifest.model_version + 1
        numbers = np.random.default_rng(version).random((len(plain) - start) // 4, dtype=np.float32)
        path.write_bytes(plain[:start] + numbers.tobytes())
        directory = home.bundle(MODEL, version)
        bundle = next_version(bundle, directory, version=version, weights=path, operator_key=key)
        path.unlink()
        os.sync()  # what was written here must not be waited for by the device's fsync
        yield bundle


def rate_mb_s(way: Way, bundle: Bundle) -> float:
    """Push a version over an open connection."""
    with way.open() as client:
        client.health()
        before = client.traffic.bytes_down
        begin = time.perf_counter()
        client.push_bundle(bundle.directory, activate=True)
        seconds = time.perf_counter() - begin
        assert client.traffic.bytes_down - before > bundle.weights.stat().st_size
    return round(bundle.weights.stat().st_size / seconds / 1e6, 1)


def sent_again(way: Way, bundle: Bundle) -> float:
    """Push a version, drop the connection on the way, and push it again; the share that went twice."""
    size, sent = bundle.weights.stat().st_size, 0

    def count(step: int) -> None:
        nonlocal sent
        sent += step

    def cut(step: int) -> None:
        count(step)
        if sent > CUT_AT * size:
            raise CutError

    with way.open() as client, contextlib.suppress(CutError):
        client.push_bundle(bundle.directory, activate=True, on_bytes=cut)
    assert CUT_AT * size < sent < size
    with way.open() as client:
        client.push_bundle(bundle.directory, activate=True, on_bytes=count)
    return (sent - size) / size


if __name__ == "__main__":
    main()
