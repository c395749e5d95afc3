"""The state database: the only place that speaks SQL."""

from __future__ import annotations

from fedctl.store.lock import hold_lock
from fedctl.store.read import ReadStore
from fedctl.store.write import Store

__all__ = ["ReadStore", "Store", "hold_lock"]
