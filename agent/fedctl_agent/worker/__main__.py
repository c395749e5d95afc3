"""`python -m fedctl_agent.worker --state-dir DIR --fd N`, started by the daemon with one end of a socketpair.

`FEDCTL_WORKER_IDLE_S` sets after how many seconds without work it ends (default 60).
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl_agent.state import StateDir
from fedctl_agent.worker.loop import Worker
from fedctl_wire.codec import encode
from fedctl_wire.errors import WireError
from fedctl_wire.messages import Evaluation, Progress

if TYPE_CHECKING:
    from fedctl_agent.trainers import JobContext, Outcome

IDLE_S = 60.0
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(
    arguments: Sequence[str] | None = None,
    *,
    load: Callable[[], Callable[[JobContext], Outcome]] | None = None,
) -> int:
    """Serve the daemon at the other end of `--fd`; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="fedctl_agent.worker", description="Started by the agent's daemon.")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--fd", type=int, required=True, help="one end of a stream socketpair")
    options = parser.parse_args(arguments)
    for name in _THREADS:  # read by the numerical libraries when NumPy is imported
        os.environ[name] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the daemon's terminal is the daemon's to answer
    with socket.socket(fileno=options.fd) as channel:
        worker = Worker(
            StateDir(options.state_dir),
            channel,
            idle_s=float(os.environ.get("FEDCTL_WORKER_IDLE_S", IDLE_S)),
            load=load or load_trainers,
        )
        try:
            worker.serve()
        except WireError as error:
            sys.stderr.write(f"fedctl_agent.worker: {error}\n")
            return 1
    return 0


def load_trainers() -> Callable[[JobContext], Outcome]:
    """Import all that a job uses, so that a forked one finds it in memory and imports nothing itself."""
    for name in (
        "encodings.cp437",  # of the names in a .npz file
        "cryptography.hazmat.primitives.serialization",  # the identity key is a PEM file
        "numpy.random",  # NumPy itself loads it late
        "fedctl_agent.sources.csv_table",
        "fedctl_agent.sources.npz",
        "fedctl_agent.trainers.evaluate",
        "fedctl_agent.trainers.golden",
        "fedctl_agent.trainers.stats",
        "fedctl_agent.trainers.train",
        "fedctl_agent.worker.job",
    ):
        importlib.import_module(name)
    from fedctl_agent.trainers import run

    _warm()
    return run


def _warm() -> None:
    """Fill what is filled at first use and kept: each job would do so anew, in memory of its own."""
    "".encode("cp437")
    b"".decode("utf-8-sig")
    for message in (Progress(), Evaluation(0, 0.0, 0, ((0, 0, 0),))):
        encode(message)


if __name__ == "__main__":
    sys.exit(main())
