"""A round of Flower's deployment mode and one of fedctl: the same trivial training, on this machine.

    python benchmarks/versus_flower.py [--devices 10] [--sizes 1,10] [--rounds 5] [--venv DIR] [--flwr SPEC]

Flower is a SuperLink and one SuperNode a device, telemetry and update check off, installed from the package
index into a virtual environment of its own, which is temporary unless `--venv` names one. fedctl is one
agent a device on Unix sockets and the command `round start`. In a round each device gets a model of so many
MiB, returns an update of that size without real training, and the mean becomes the next model. Flower does
no more than that; fedctl also signs, fsyncs, and has every device evaluate base and candidate.

Both are measured alike, one after the other: the wall clock from one round's start to the next, median; the
CPU time of all processes of server and devices over a job of so many rounds, divided by them; memory as PSS,
of a device idle before its first round and the highest of the server while rounds run (SuperLink and what it
starts; for fedctl the command). The last line is one JSON object: `wall_ratio`, `cpu_ratio`,
`device_memory_ratio`, `server_memory_ratio`, each Flower / fedctl and the worst of the sizes, and `details`,
where the idle device's RSS is too.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import psutil
from local_fleet import local_fleet

from fedctl.core.home import Home
from fedctl.ops.models import NewModel, create
from fedctl.store import ReadStore, Store
from fedctl_wire.messages import TrainSettings

FLWR = "flwr==1.42.0"
MIB = 2**20
SETTLED_S = 75.0  # after which a device is called idle: fedctl's worker leaves after a minute
SAMPLE_S = 0.05
PATIENCE_S = 300.0
FEATURES = 24
UNIT_BYTES = 27 * 4  # of a hidden unit: 24 weights in, a bias, 2 weights out
ROWS = 25
SOURCE = 'kind = "npz"\npath = {path}\nfeatures = "x"\nlabel = "y"\ntest_fraction = 0.2\n'
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one job of several rounds took."""

    wall_s: float  # a round, median
    cpu_s: float  # a round, mean, all processes
    server_mib: float  # highest PSS


@dataclass(frozen=True, slots=True)
class Result:
    """One system's figures."""

    device_mib: float  # PSS of an idle device, mean
    device_rss_mib: float  # the same with shared pages counted for each process
    costs: dict[str, Cost]  # by size in MiB


def main() -> None:
    """Measure both, print the ratios."""
    parser = argparse.ArgumentParser(description="Rounds of Flower and of fedctl on this machine.")
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--sizes", default="1,10", help="MiB of the model, with commas between")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--venv", type=Path, help="where Flower is, or is to be, installed")
    parser.add_argument("--flwr", default=FLWR, help="what pip installs")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        environment = options.venv or directory / "venv"
        install(environment, options.flwr)
        with Flower(directory / "flower", environment, options.devices) as flower:
            theirs = measured(flower, sizes, options.rounds)
        with Fedctl(directory / "fedctl", sizes, options.devices) as fedctl:
            ours = measured(fedctl, sizes, options.rounds)
    print(json.dumps(compared(theirs, ours)))


def measured(system: Flower | Fedctl, sizes: Iterable[int], rounds: int) -> Result:
    """Idle devices first, then one job for each size."""
    time.sleep(SETTLED_S)
    idle = {field: device_mib(system.device_pids(), field) for field in ("Pss", "Rss")}
    print(f"{type(system).__name__} idle device: {idle} MiB", file=sys.stderr)
    costs = {}
    for size in sizes:
        before = cpu_s(system.pids())
        peak = Peak(system.server_pids)
        with peak:
            starts, own_cpu_s = system.run(size, rounds)
        used = cpu_s(system.pids()) - before + own_cpu_s
        wall_s = statistics.median(b - a for a, b in itertools.pairwise(starts))
        costs[str(size)] = Cost(round(wall_s, 3), round(used / rounds, 3), round(peak.mib, 1))
        print(f"{type(system).__name__} {size} MiB: {costs[str(size)]}", file=sys.stderr)
    return Result(idle["Pss"], idle["Rss"], costs)


def device_mib(pids: Sequence[int], field: str) -> float:
    """Memory of one device with all its processes, mean."""
    return round(statistics.fmean(memory_mib(tree(pid), field) for pid in pids), 2)


def compared(theirs: Result, ours: Result) -> dict[str, object]:
    """The ratios, the worst of the sizes each."""

    def worst(field: str) -> float:
        return round(
            min(getattr(c, field) / getattr(ours.costs[s], field) for s, c in theirs.costs.items()), 2
        )

    details = {
        name: {
            "device_mib": found.device_mib,
            "device_rss_mib": found.device_rss_mib,
            **{
                f"{size}_mib": {f: getattr(cost, f) for f in Cost.__slots__}
                for size, cost in found.costs.items()
            },
        }
        for name, found in (("flower", theirs), ("fedctl", ours))
    }
    return {
        "wall_ratio": worst("wall_s"),
        "cpu_ratio": worst("cpu_s"),
        "device_memory_ratio": round(theirs.device_mib / ours.device_mib, 2),
        "server_memory_ratio": worst("server_mib"),
        "details": details,
    }


# ---------------------------------------------------------------------- what processes take


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return []


def memory_mib(pids: Iterable[int], field: str) -> float:
    """Their memory: "Pss", where shared pages are divided among those that share them, or "Rss"."""
    line = re.compile(rf"^{field}:\s+(\d+) kB", re.MULTILINE)
    total_kib = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            found = line.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
            total_kib += int(found[1]) if found else 0
    return total_kib / 1024


def cpu_s(pids: Iterable[int]) -> float:
    """CPU time of processes and of the children that they have seen end."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return total / TICKS


class Peak:
    """The highest memory of some processes while the block runs."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self.mib = 0.0
        self._pids = pids
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self.mib = max(self.mib, memory_mib(self._pids(), "Pss"))


def wait_for(condition: Callable[[], object], what: str, *, every_s: float = 0.2) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"never: {what}")
        time.sleep(every_s)


# ---------------------------------------------------------------------- Flower


def install(directory: Path, spec: str) -> None:
    """Put Flower into a virtual environment of its own, unless it is there."""
    if (directory / "bin" / "flwr").exists():
        return
    venv.create(directory, with_pip=True)
    command = [directory / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", spec]
    subprocess.run(command, check=True, stdout=sys.stderr)


class Flower:
    """A SuperLink and its SuperNodes."""

    def __init__(self, directory: Path, environment: Path, devices: int) -> None:
        self._directory = directory
        self._programs = environment.absolute() / "bin"
        self._devices = devices
        self._link: subprocess.Popen[bytes] | None = None
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._port, *self._node_ports = free_ports(1 + devices)

    def __enter__(self) -> Self:
        write_flower_app(self._directory, self._port)
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        started = [process for process in (*self._nodes, self._link) if process is not None]
        everyone = [psutil.Process(pid) for process in started for pid in tree(process.pid)]
        for process in started:
            process.terminate()
        _, left = psutil.wait_procs(everyone, timeout=10)
        for survivor in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                survivor.kill()
        for process in started:
            process.wait()

    def device_pids(self) -> list[int]:
        """The processes that stand for the devices."""
        return [node.pid for node in self._nodes]

    def server_pids(self) -> list[int]:
        """The processes of the server."""
        assert self._link is not None
        return tree(self._link.pid)

    def pids(self) -> list[int]:
        """Everything that works for a round and is still there afterwards."""
        return [*self.server_pids(), *(pid for node in self._nodes for pid in tree(node.pid))]

    def run(self, size: int, rounds: int) -> tuple[list[float], float]:
        """Run a job; the instants at which its rounds began and the last one ended, and no further CPU."""
        marks = self._directory / f"marks-{size}"
        marks.touch()
        settings = f'rounds={rounds} mib={size} devices={self._devices} marks="{marks}"'
        said = self._flwr("run", ".", "bench", "--run-config", settings)
        lines: list[str] = []

        def ended() -> bool:
            lines[:] = marks.read_text().split()
            return len(lines) == rounds + 1

        wait_for(ended, f"Flower's {rounds} rounds; it said {said}")
        return [float(line) for line in lines], 0.0

    def _start(self) -> None:
        address = f"127.0.0.1:{self._port}"
        place = ["--insecure", "--host", "127.0.0.1", "--port"]
        flags = ["--disable-runtime-dependency-installation"]
        self._link = self._spawn("flower-superlink", *place, str(self._port), *flags)
        wait_for(self._listens, "the SuperLink listens")
        for number, port in enumerate(self._node_ports):
            config = f"partition-id={number}"
            options = ["--superlink", address, "--node-config", config]
            self._nodes.append(self._spawn("flower-supernode", *place, str(port), *options))
        online = re.compile(r"\bonline\b")
        wait_for(
            lambda: len(online.findall(self._flwr("supernode", "list"))) == self._devices,
            "all SuperNodes are online",
            every_s=1,
        )

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def _spawn(self, program: str, *options: str) -> subprocess.Popen[bytes]:
        with (self._directory / f"{program}.log").open("ab") as log:
            return subprocess.Popen(
                [self._programs / program, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
            )

    def _flwr(self, *words: str) -> str:
        done = subprocess.run(
            [self._programs / "flwr", *words],
            cwd=self._directory / "app",
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    def _environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "PATH": f"{self._programs}:{os.environ['PATH']}",
            "FLWR_HOME": str(self._directory / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",  # its tables cut words on a narrow terminal
            "NO_COLOR": "1",
        }


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        probes = [opened.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def write_flower_app(directory: Path, port: int) -> None:
    """The app that `flwr run` submits, and the address that it submits it to."""
    package = directory / "app" / "trivial"
    package.mkdir(parents=True)
    (directory / "home").mkdir()
    (directory / "home" / "config.toml").write_text(
        '[superlink]\ndefault = "bench"\n\n[superlink.bench]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    (package.parent / "pyproject.toml").write_text(FLOWER_PROJECT)
    (package / "__init__.py").touch()
    (package / "server.py").write_text(FLOWER_SERVER)
    (package / "client.py").write_text(FLOWER_CLIENT)


FLOWER_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "trivial"
version = "1.0.0"
description = "A model goes out, an update comes back"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "trivial.server:app"
clientapp = "trivial.client:app"

[tool.flwr.app.config]
rounds = 1
mib = 1
devices = 10
marks = "marks"
"""

FLOWER_SERVER = '''
import time

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Marking(FedAvg):
    """FedAvg that writes down when a round begins."""

    def configure_train(self, server_round, arrays, config, grid):
        mark(self.marks)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        assert sum(not reply.has_error() for reply in replies) == self.devices
        return super().aggregate_train(server_round, replies)


def mark(path):
    with open(path, "a") as file:
        file.write(f"{time.time()}\\n")


@app.main()
def main(grid, context):
    config = context.run_config
    devices = int(config["devices"])
    strategy = Marking(
        fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=devices, min_available_nodes=devices
    )
    strategy.marks, strategy.devices = config["marks"], devices
    weights = np.random.default_rng(0).random(int(config["mib"]) * 2**18, dtype=np.float32)
    arrays = ArrayRecord(np.split(weights, 4))
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=int(config["rounds"]))
    mark(strategy.marks)
'''

FLOWER_CLIENT = """
import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    # Another update from each device, as in life: Flower stores equal ones only once.
    step = np.float32(0.01 * (1 + int(context.node_config["partition-id"])))
    update = ArrayRecord([array + step for array in message.content["arrays"].to_numpy_ndarrays()])
    metrics = MetricRecord({"num-examples": 100, "loss": 0.1})
    return Message(content=RecordDict({"arrays": update, "metrics": metrics}), reply_to=message)
"""


# ---------------------------------------------------------------------- fedctl


class Fedctl:
    """Agents, a model of each size, and the command `round start`."""

    def __init__(self, directory: Path, sizes: Iterable[int], devices: int) -> None:
        self._directory = directory
        self._sizes = sizes
        self._names = [f"dev-{number:02d}" for number in range(1, devices + 1)]
        self._undo = contextlib.ExitStack()
        self._command: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._directory.mkdir()
        sources = {name: self._source(name, seed) for seed, name in enumerate(self._names)}
        with self._undo:
            self._home, pids = self._undo.enter_context(local_fleet(self._directory, sources, {}))
            self._agents = list(pids.values())
            with Store.open(self._home) as store:
                for size in self._sizes:
                    create(store, self._home, self._model(size))
            self._undo = self._undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def device_pids(self) -> list[int]:
        """The processes that stand for the devices."""
        return self._agents

    def server_pids(self) -> list[int]:
        """The processes of the server."""
        return tree(self._command.pid) if self._command is not None else []

    def pids(self) -> list[int]:
        """Everything that works for a round and is still there afterwards."""
        return [pid for agent in self._agents for pid in tree(agent)]

    def run(self, size: int, rounds: int) -> tuple[list[float], float]:
        """Run a job; the instants at which its rounds began and the last one ended, and the command's CPU."""
        program = str(Path(sys.executable).with_name("fedctl"))
        words = ["round", "start", f"weight-{size}", "--rounds", str(rounds), "--tolerance", "1", "-q"]
        words += ["--quorum", str(len(self._names))]
        environment = {**os.environ, "FEDCTL_HOME": str(self._home.path)}
        self._command = subprocess.Popen([program, *words], env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(self._command.pid, 0)
        self._command.returncode = os.waitstatus_to_exitcode(status)
        if self._command.returncode:
            raise SystemExit(f"fedctl {' '.join(words)} ended with {self._command.returncode}")
        return list(instants(self._home, f"weight-{size}")), usage.ru_utime + usage.ru_stime

    def _source(self, name: str, seed: int) -> str:
        rng = np.random.default_rng(seed)
        path = self._directory / f"{name}.npz"
        x = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
        np.savez(path, x=x, y=rng.integers(0, 2, ROWS).astype(np.uint8))
        return SOURCE.format(path=json.dumps(str(path)))

    def _model(self, size: int) -> NewModel:
        return NewModel(
            name=f"weight-{size}",
            builder="mlp",
            input_shape=(FEATURES,),
            hidden=(size * MIB // UNIT_BYTES,),
            classes=2,
            scale="none",
            settings=TrainSettings(lr=1e-4, local_epochs=0, batch_size=32),
        )


def instants(home: Home, model: str) -> Iterator[float]:
    with ReadStore.open(home) as store:
        rounds = sorted(store.rounds(model=model), key=lambda r: r.id)
    assert all(r.phase == "published" for r in rounds), [r.reason for r in rounds]
    for found in rounds:
        yield datetime.fromisoformat(found.started_at).timestamp()
    ended = rounds[-1].ended_at
    assert ended is not None
    yield datetime.fromisoformat(ended).timestamp()


if __name__ == "__main__":
    main()
