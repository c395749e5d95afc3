"""The daemon with a fake worker: `daemon_program.py STATE [--file-bytes N] [--die-at-fsync N]`.

`--file-bytes` limits the size of every file it writes: what a full disk looks like from inside.
`--die-at-fsync` ends it, as a power cut would, instead of its nth fsync.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import signal
import sys
from pathlib import Path

from fedctl_agent.daemon.server import serve

FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("worker_program.py")))


def die_at_fsync(number: int) -> None:
    calls = itertools.count(1)
    original = os.fsync

    def fsync(descriptor: int) -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        original(descriptor)

    os.fsync = fsync


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("--file-bytes", type=int)
    parser.add_argument("--die-at-fsync", type=int)
    options = parser.parse_args()
    if options.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.file_bytes, options.file_bytes))
    if options.die_at_fsync is not None:
        die_at_fsync(options.die_at_fsync)
    serve(options.state, worker_command=FAKE_WORKER)
