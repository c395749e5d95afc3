"""What the device's resources look like, by psutil: whole words and units in every name.

A figure that the device does not have, or that psutil cannot read here, is null: a wearable without
a battery sensor is still a device.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from fedctl_agent.daemon.limits import read_limits
from fedctl_wire.codec import Json

T = TypeVar("T")


class Telemetry:
    """Reads the figures; `cpu.percent` is the mean since the reading before. Thread-safe."""

    def __init__(self, disk: Path) -> None:
        """`disk` is a path on the file system whose space matters."""
        self._disk = disk
        self._lock = threading.Lock()
        self._process = psutil.Process()
        self._busy, self._total = _cpu_seconds()

    def read(self) -> dict[str, Json]:
        """One reading of everything."""
        return {
            "cpu": self._cpu(),
            "memory": _attempt(_memory),
            "disk": _attempt(lambda: _disk(self._disk)),
            "battery": _attempt(_battery),
            "temperatures": _attempt(_temperatures),
            "network": _attempt(_network),
            "uptime_s": round(time.clock_gettime(time.CLOCK_BOOTTIME), 1),
        }

    def limits(self) -> dict[str, Json] | None:
        """What limits the daemon and its jobs, read back from the kernel."""
        return _attempt(read_limits)

    def agent(self) -> dict[str, Json]:
        """What the agent's daemon itself uses."""
        times = self._process.cpu_times()
        return {
            "pid": os.getpid(),
            "rss_bytes": self._process.memory_info().rss,
            "cpu_s": round(times.user + times.system, 3),
        }

    def _cpu(self) -> dict[str, Json]:
        with self._lock:
            busy, total = _cpu_seconds()
            elapsed, used = total - self._total, busy - self._busy
            self._busy, self._total = busy, total
        load = _attempt(os.getloadavg)
        return {
            "count": os.cpu_count(),
            "percent": round(100 * used / elapsed, 1) if elapsed > 0 else None,
            "load_1_minute": load[0] if load else None,
            "load_5_minutes": load[1] if load else None,
            "load_15_minutes": load[2] if load else None,
        }


def _attempt(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except (OSError, RuntimeError, AttributeError, psutil.Error):
        return None  # what cannot be read here is not known


def _cpu_seconds() -> tuple[float, float]:
    times = psutil.cpu_times()
    # Guest time is part of user time already.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total


def _memory() -> dict[str, Json]:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return {
        "total_bytes": memory.total,
        "available_bytes": memory.available,
        "used_bytes": memory.used,
        "percent": memory.percent,
        "swap_total_bytes": swap.total,
        "swap_used_bytes": swap.used,
    }


def _disk(path: Path) -> dict[str, Json]:
    usage = psutil.disk_usage(str(path))
    return {
        "total_bytes": usage.total,
        "free_bytes": usage.free,
        "used_bytes": usage.used,
        "percent": usage.percent,
    }


def _battery() -> dict[str, Json] | None:
    battery = psutil.sensors_battery()
    if battery is None:
        return None
    left = battery.secsleft
    return {
        "percent": round(battery.percent, 1),
        "plugged": battery.power_plugged,
        "left_s": int(left) if left not in {psutil.POWER_TIME_UNKNOWN, psutil.POWER_TIME_UNLIMITED} else None,
    }


def _temperatures() -> list[Json] | None:
    found = [
        {"sensor": entry.label or chip, "celsius": entry.current}
        for chip, entries in psutil.sensors_temperatures().items()
        for entry in entries
    ]
    return found or None


def _network() -> dict[str, Json]:
    counters = psutil.net_io_counters()
    return {"received_bytes": counters.bytes_recv, "sent_bytes": counters.bytes_sent}
