"""What a job computes: one module a kind of task, and `run`, which picks it.

Importing this package loads no NumPy; `run` does.
"""

from __future__ import annotations

from fedctl_agent.trainers.contract import JobContext, JobError, Outcome
from fedctl_wire.errors import WireError
from fedctl_wire.messages import TaskKind

__all__ = ["JobContext", "JobError", "Outcome", "run"]


def run(context: JobContext) -> Outcome:
    """Do the work of one task on local data.

    `train` and `stats` leave a complete safetensors file at `context.output`, not yet synced.

    Raises:
        JobError: When the job fails by its own decision: a refusal, bad data, a bad model file.
    """
    from fedctl_agent.trainers.evaluate import run as run_evaluate
    from fedctl_agent.trainers.golden import run as run_golden
    from fedctl_agent.trainers.stats import run as run_stats
    from fedctl_agent.trainers.train import run as run_train
    from fedctl_graph.errors import GraphError

    work = {
        TaskKind.GOLDEN: run_golden,
        TaskKind.STATS: run_stats,
        TaskKind.TRAIN: run_train,
        TaskKind.EVALUATE: run_evaluate,
    }[context.kind]
    try:
        return work(context)
    except GraphError as error:
        raise JobError("graph", f"training graph: {error}") from error
    except WireError as error:
        raise JobError(error.code, str(error)) from error
