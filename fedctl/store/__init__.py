"""The state database: the only place that speaks SQL."""

from __future__ import annotations

from fedctl.store.lock import hold_lock
from fedctl.store.read import ReadStore
from fedctl.store.rows import Deployment, Event, Op, Totals
from fedctl.store.write import Store

__all__ = ["Deployment", "Event", "Op", "ReadStore", "Store", "Totals", "hold_lock"]
