"""A small fleet of real agents on Unix sockets with made-up data, for tests of whole operations."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedctl.core.home import Home
from fedctl.core.plan import RoundWishes
from fedctl.ops.devices import NewDevice, add_local
from fedctl.ops.fleet import init
from fedctl.ops.models import NewModel, create
from fedctl.store import Store
from fedctl_wire.messages import TrainSettings

MODEL = "pulse"
FEATURES = 6
SETTINGS = TrainSettings(lr=0.1, local_epochs=2, batch_size=16)
WISHES = RoundWishes(seed=7, deadline_s=30.0)
_PATIENCE_S = 20.0


@dataclass
class TestAgent:
    """One `fedctl-agent serve` process, which can be killed and started again."""

    __test__ = False
    name: str
    state: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def socket(self) -> Path:
        return self.state / "agent.sock"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        with self.state.with_suffix(".log").open("ab") as log:
            command = [sys.executable, "-m", "fedctl_agent.main", "serve", "--state-dir", str(self.state)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _PATIENCE_S
        while not self.socket.exists():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)

    def kill(self) -> None:
        """End the daemon as a power cut would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def log(self) -> str:
        return self.state.with_suffix(".log").read_text(errors="replace")


@dataclass
class TestFleet:
    """A home with enrolled agents."""

    __test__ = False
    home: Home
    agents: dict[str, TestAgent]

    def store(self) -> Store:
        return Store.open(self.home)

    def weights_sha256(self, version: int, model: str = MODEL) -> str:
        path = self.home.bundle(model, version) / "weights.safetensors"
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-c", "from fedctl.cli.main import main; main()", *words]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "FEDCTL_HOME": str(self.home.path), "NO_COLOR": "1"}

    def cli(self, *words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


@contextlib.contextmanager
def fleet(
    path: Path, *, train: int = 3, holdout: int = 1, rows: int = 120, seed: int = 0
) -> Iterator[TestFleet]:
    """Start agents `dev-1` … with role labels and their own data, enrol them, make the model."""
    home = Home(path / "home")
    init(home)
    names = [f"dev-{number}" for number in range(1, train + holdout + 1)]
    agents = {name: TestAgent(name, path / name) for name in names}
    try:
        for number, agent in enumerate(agents.values()):
            prepare(agent.state, rows=rows, seed=seed * 1000 + number)
            agent.start()
        new = [
            NewDevice(
                name=name,
                url=f"unix://{agents[name].socket}",
                labels={"role": "train" if number < train else "holdout"},
            )
            for number, name in enumerate(names)
        ]
        with Store.open(home) as store:
            add_local(store, home, new)
            create(store, home, new_model())
        yield TestFleet(home, agents)
    finally:
        for agent in agents.values():
            agent.kill()


def new_model(**changes: object) -> NewModel:
    wanted = {
        "name": MODEL,
        "builder": "mlp",
        "input_shape": (FEATURES,),
        "hidden": (8,),
        "classes": 2,
        "seed": 1,
        "settings": SETTINGS,
    }
    return NewModel(**{**wanted, **changes})  # type: ignore[arg-type]


def prepare(state: Path, *, rows: int, seed: int) -> None:
    """Give an agent its identity and a person's worth of data that a small model can learn."""
    sources = state / "sources"
    sources.mkdir(parents=True)
    write_data(state / "data.npz", rows=rows, seed=seed)
    (sources / "recorder.toml").write_text(
        f'kind = "npz"\npath = {json.dumps(str(state / "data.npz"))}\n'
        'features = "x"\nlabel = "y"\ntest_fraction = 0.0\n'
    )
    command = [sys.executable, "-m", "fedctl_agent.main", "keygen", "--state-dir", str(state)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def write_data(path: Path, *, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    y = (x[:, 0] - x[:, 1] + 0.3 * rng.normal(size=rows) > 0).astype(np.uint8)
    np.savez(path, x=x, y=y)
