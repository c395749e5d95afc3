"""Run a task as a job does, after the worker's preparations, and print what it still imported."""

from __future__ import annotations

import sys
from pathlib import Path

from fedctl_agent.state import StateDir
from fedctl_agent.worker.__main__ import load_trainers
from fedctl_agent.worker.trust import Trust

if __name__ == "__main__":
    state = StateDir(Path(sys.argv[1]))
    trust = Trust(state)
    trust.anchors()
    run = load_trainers()
    from fedctl_agent.worker.job import run_job

    before = set(sys.modules)
    run_job(state, Path(sys.argv[2]), trust=trust, run=run)
    sys.stdout.write("\n".join(sorted(set(sys.modules) - before)))
