"""One enrolled device a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.worker.signed_fleet import SignedFleet, new_fleet


@pytest.fixture
def fleet(tmp_path: Path) -> SignedFleet:
    fleet = new_fleet(tmp_path / "state")
    fleet.enrol()
    return fleet
