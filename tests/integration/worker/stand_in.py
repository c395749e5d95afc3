"""The worker with a small trainer instead of the agent's own: `stand_in.py TRAINER [worker's arguments]`."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fedctl_agent.trainers import JobContext, Outcome
from fedctl_agent.worker.__main__ import main
from fedctl_wire.messages import Progress
from fedctl_wire.tensors import header_bytes
from tests.unit.worker.small_trainers import refuse, train

__all__ = ["refuse", "train"]


def fill_disk(context: JobContext) -> Outcome:
    with context.output.open("wb") as stream:
        stream.truncate(1024**4)
    return Outcome(1)


def fill_disk_for_good(context: JobContext) -> Outcome:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    return fill_disk(context)


def allocate(context: JobContext) -> Outcome:
    import numpy as np

    return Outcome(int(np.ones(2**31, dtype=np.uint8).sum()))


def crash(context: JobContext) -> Outcome:
    os.kill(os.getpid(), signal.SIGSEGV)
    return Outcome(0)


def wait(context: JobContext) -> Outcome:
    context.progress(Progress(epoch=1))
    time.sleep(600)
    return Outcome(0)


def be_stubborn(context: JobContext) -> Outcome:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return wait(context)


def look_around(context: JobContext) -> Outcome:
    """Say in the log what the job is, for the test to read."""
    facts = {
        "nice": os.nice(0),
        "group": os.getpgid(0) == os.getpid(),
        "oom": int(Path("/proc/self/oom_score_adj").read_text(encoding="ascii")),
        "sockets": sum(fd.is_socket() for fd in Path("/proc/self/fd").iterdir()),
        "limits": Path("/proc/self/limits").read_text(encoding="ascii"),
        "threads": len(list(Path("/proc/self/task").iterdir())),
    }
    context.output.write_bytes(header_bytes(()))
    sys.stdout.write(repr(facts))
    sys.stdout.flush()
    return Outcome(0)


def load(name: str) -> Callable[[], Callable[[JobContext], Outcome]]:
    def imported() -> Callable[[JobContext], Outcome]:
        import numpy as np  # noqa: F401

        run: Callable[[JobContext], Outcome] = globals()[name]
        return run

    return imported


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:], load=load(sys.argv[1])))
