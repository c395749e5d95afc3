"""The line that describes a device before it is added."""

from __future__ import annotations

from dataclasses import replace

from fedctl.ops.enrolment.survey import Probe

PROBE = Probe(
    python=(3, 11, 2),
    executable="/usr/bin/python3",
    cache_tag="cpython-311",
    bytecode_magic="a70d0d0a",
    machine="aarch64",
    libc="glibc 2.36",
    system="Debian 12",
    user="pi",
    home="/home/pi",
    importable={},
    free_memory_bytes=412_000_000,
    free_disk_bytes=8_300_000_000,
    systemd_user=True,
    systemd_system=True,
    root=False,
    installed=(),
    package_manager="apt-get",
)


def test_free_memory_and_free_disk_are_told_apart() -> None:
    assert PROBE.sentence == (
        "Debian 12, aarch64, Python 3.11.2, 412 MB of memory free, 8300 MB of disk free, systemd"
    )
    assert "memory" not in replace(PROBE, free_memory_bytes=None).sentence
