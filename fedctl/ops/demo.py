"""The demo: a fleet of real agent processes on this machine, and what federated training gains on it."""

from __future__ import annotations

from dataclasses import dataclass

from fedctl.core.home import Home
from fedctl.core.progress import Observer, silent
from fedctl.ops.round_results import RoundSummary


@dataclass(frozen=True, slots=True)
class DemoResult:
    """AUROC on the people who took no part: `local` is each device alone, `central` all data pooled."""

    federated: float
    local: float
    central: float
    rounds: int
    seconds: float
    devices: int
    seed: int
    model: str
    history: tuple[RoundSummary, ...]
    commands: tuple[str, ...]  # to try on the fleet it leaves behind, as typed in this environment


def run(
    home: Home, *, devices: int = 8, rounds: int = 10, seed: int = 0, observer: Observer = silent
) -> DemoResult:
    """Start the demo fleet, train, compare; leaves the fleet running."""
    raise NotImplementedError


def stop(home: Home) -> int:
    """End the demo's agents and remove its home; returns how many agents were ended."""
    raise NotImplementedError
