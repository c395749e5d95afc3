"""The bed, and an agent behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.agent_server import FakeAgent
from tests.system import SshBed, bed

__all__ = ["bed"]  # the fixture


@pytest.fixture
def agent(bed: SshBed) -> Iterator[FakeAgent]:
    with FakeAgent(bed.new_directory("agent") / "agent.sock") as running:
        yield running
