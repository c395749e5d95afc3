"""The words by which `devices check` knows a failed step are those that the transports say."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedctl.transport
from fedctl.ops.check import _PHRASES


@pytest.mark.parametrize("phrase", [phrase for phrase, _ in _PHRASES])
def test_a_transport_says_the_phrase(phrase: str) -> None:
    """An error with other words would be taken for one of the agent, behind the step that failed."""
    sources = Path(fedctl.transport.__file__).parent.glob("*.py")
    lines = [line for path in sources for line in path.read_text().splitlines() if phrase in line]
    assert any(line.lstrip().startswith('f"') for line in lines), lines
