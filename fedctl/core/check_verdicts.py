"""Verdicts on the way to a device and on its health, each with the way out. Pure: what was seen comes in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

_CLOCK_S = 60.0  # off by more: a person should look
_CLOCK_WORDS = ((86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"))
_LITTLE_DISK_BYTES, _LITTLE_DISK_SHARE = 100e6, 0.05
_LOCAL_POLICY = "policy.local.json"  # named by the device, when that is the file
_NO_DISK_BYTES = 20e6  # not enough for a model and its update
_MIB = 1024 * 1024
_RENEW_DAYS = 90
_FOR_EVER = 9999  # the year by which a certificate says that it never ends (RFC 5280, 4.1.2.5)


class Verdict(StrEnum):
    """How a check went."""

    WELL = "well"
    NOTE = "note"  # works, but somebody should look
    FAILED = "failed"
    NOT_REACHED = "not_reached"  # there was no way to find out


@dataclass(frozen=True, slots=True)
class Finding:
    """One check."""

    check: str  # a stable word: name, port, host_key, login …
    verdict: Verdict
    text: str = ""
    hint: str = ""


def judge_version(device: str, agent: str, ours: str) -> Finding:
    """Whether the agent is this fedctl's."""
    if agent == ours:
        return Finding("version", Verdict.WELL, f"agent {agent}, as here")
    if _numbers(agent) > _numbers(ours):
        hint = "upgrade fedctl here"
        return Finding("version", Verdict.NOTE, f"agent {agent} is newer than fedctl {ours} here", hint)
    hint = f"fedctl devices upgrade {device}"
    return Finding("version", Verdict.NOTE, f"agent {agent} is older than fedctl {ours} here", hint)


def judge_clock(theirs: str, ours: datetime) -> Finding:
    """How far the device's clock is off."""
    try:
        off_s = (datetime.fromisoformat(theirs) - ours).total_seconds()
    except (ValueError, TypeError):
        return Finding("clock", Verdict.NOTE, f"its clock says {theirs[:40]!r}, which is no time")
    if abs(off_s) <= _CLOCK_S:
        return Finding("clock", Verdict.WELL, f"clock {abs(off_s):.1f} s off")
    unit_s, unit = next(pair for pair in _CLOCK_WORDS if abs(off_s) >= pair[0])
    words = f"its clock is {abs(off_s) / unit_s:.0f} {unit} {'ahead of' if off_s > 0 else 'behind'} ours"
    hint = "times of data and logs are wrong by that: set it there, e.g. timedatectl set-ntp true"
    return Finding("clock", Verdict.NOTE, words, hint)


def judge_roster(device: str, theirs: int, ours: int) -> Finding:
    """Whether it knows the fleet as it is today."""
    if theirs >= ours:
        return Finding("roster", Verdict.WELL, "knows today's roster")
    hint = f"it gets that at its next contact: fedctl devices ping {device}"
    return Finding("roster", Verdict.NOTE, f"holds roster {theirs}, the fleet is at {ours}", hint)


def judge_certificate(expires: datetime, now: datetime) -> Finding:
    """How long the operator's certificate holds, which every device checks."""
    days = (expires - now).days
    if days > _RENEW_DAYS:
        until = f", until {expires:%Y-%m-%d}" if expires.year < _FOR_EVER else ""
        return Finding("certificate", Verdict.WELL, f"operator's certificate accepted{until}")
    words = f"the operator's certificate ends on {expires:%Y-%m-%d}"
    verdict = Verdict.NOTE if days >= 0 else Verdict.FAILED
    return Finding("certificate", verdict, words, "`fedctl init --root-key PATH` renews it")


def judge_policy(device: str, url: str, status: Mapping[str, Any]) -> Finding | None:
    """A policy that cannot be read, with which the device refuses everything; None where nothing is wrong."""
    error = _of(status, "policy").get("error")
    if not error:
        return None
    hint = (
        "mend its policy.local.json, at the device"
        if _LOCAL_POLICY in str(error)
        else "at the device stop the agent, delete identity/ of its state directory and start it again; "
        f"then fedctl devices add {device} {url}"
    )
    return Finding("policy", Verdict.FAILED, str(error), hint)


def judge_disk(status: Mapping[str, Any]) -> Finding:
    """Room for models and updates."""
    resources = status.get("resources")
    if not isinstance(resources, Mapping):
        if _of(status, "policy").get("error"):
            return Finding("disk", Verdict.NOT_REACHED, "disk: not told while its policy cannot be read")
        return Finding("disk", Verdict.NOT_REACHED, "disk: its policy does not share telemetry")
    disk = resources.get("disk")
    if not isinstance(disk, Mapping):
        return Finding("disk", Verdict.NOT_REACHED, "disk: it cannot tell")
    free, total = float(disk.get("free_bytes") or 0), float(disk.get("total_bytes") or 0)
    words = f"{_size(free)} of {_size(total)} free"
    hint = "free some space there; old logs and package caches are the usual finds"
    if free < _NO_DISK_BYTES:
        return Finding("disk", Verdict.FAILED, f"disk full: {words}", hint)
    if free < _LITTLE_DISK_BYTES or free < total * _LITTLE_DISK_SHARE:
        return Finding("disk", Verdict.NOTE, f"disk nearly full: {words}", hint)
    return Finding("disk", Verdict.WELL, f"disk {words}")


def judge_cgroup(status: Mapping[str, Any]) -> Finding:
    """Whether the kernel could limit what a job takes."""
    limits = status.get("limits")
    if not isinstance(limits, Mapping):
        return Finding("cgroup", Verdict.NOT_REACHED, "cgroups: this agent does not tell")
    version = limits.get("cgroup")
    if version == "none":
        hint = "limits of a job are rlimits only: set job_memory_bytes in its agent.toml"
        return Finding("cgroup", Verdict.NOTE, "no control groups", hint)
    lacking = [name for name in ("memory", "cpu", "tasks") if not _of(limits, name).get("available")]
    if "memory" in lacking:
        hint = (
            "limits of a job's memory are rlimits only: set job_memory_bytes in its agent.toml, or on a "
            "Raspberry Pi add cgroup_enable=memory to /boot/firmware/cmdline.txt and reboot"
        )
        return Finding("cgroup", Verdict.NOTE, f"cgroup {version} does not control memory", hint)
    without = f" without {' and '.join(lacking)}" if lacking else ""
    return Finding("cgroup", Verdict.WELL, f"cgroup {version}{without}")


def judge_limits(status: Mapping[str, Any]) -> Finding:
    """What limits the agent and its jobs, as far as the kernel keeps it."""
    limits = status.get("limits")
    if not isinstance(limits, Mapping):
        return Finding("limits", Verdict.NOT_REACHED, "limits: this agent does not tell")
    memory = _of(limits, "memory")
    limit = memory.get("limit_bytes")
    if limit is not None and memory.get("counted") is False:
        words = f"a memory limit of {limit / _MIB:.0f} MiB is set, but the kernel does not keep it"
        hint = "set job_memory_bytes in its agent.toml: an rlimit holds everywhere"
        return Finding("limits", Verdict.NOTE, words, hint)
    parts = [
        f"memory {limit / _MIB:.0f} MiB" if limit is not None else "",
        _amount(_of(limits, "cpu").get("limit_cores"), "cores"),
        _amount(_of(limits, "tasks").get("limit"), "tasks"),
        _amount(_of(limits, "rlimits").get("open_files"), "open files"),
    ]
    given = ", ".join(filter(None, parts))
    return Finding("limits", Verdict.WELL, f"limits: {given}" if given else "no limits set")


def _of(limits: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = limits.get(name)
    return value if isinstance(value, Mapping) else {}


def _amount(value: object, unit: str) -> str:
    return "" if value is None else f"{value} {unit}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
