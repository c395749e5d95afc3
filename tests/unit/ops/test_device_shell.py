"""Calls on a device: the program travels over stdin, the answer is found in whatever a shell prints."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fedctl.core.errors import DeviceError, ExitCode, FedctlError
from fedctl.ops.enrolment.ondevice import files as device_files
from fedctl.ops.enrolment.ondevice import probe as device_probe
from fedctl.ops.enrolment.ondevice import service as device_service
from fedctl.ops.enrolment.shell import DeviceShell
from fedctl.ops.enrolment.survey import Placement, Probe, find_site, probe_device
from fedctl.transport import AdminSession, Completed
from fedctl_wire.codec import from_json


class LocalSession(AdminSession):
    """Runs command lines by this machine's own shell, after `prefix`, with programs from `path`."""

    def __init__(self, prefix: str = "", path: str | None = None) -> None:
        self._prefix = prefix
        self._environment = {"PATH": path} if path else None

    def run(self, argv: str, *, stdin: bytes = b"", timeout_s: float = 60.0) -> Completed:
        done = subprocess.run(
            ["/bin/sh", "-c", self._prefix + argv],
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env=self._environment,
        )
        return Completed(done.returncode, done.stdout, done.stderr)


def fake_python(directory: Path, text: str) -> str:
    path = directory / "python3"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return f"{directory}:/usr/bin:/bin"


def test_the_probe_describes_this_very_machine() -> None:
    facts = probe_device(DeviceShell(LocalSession(), "here"))
    assert facts.python >= (3, 11)
    assert facts.platform.glibc >= (2, 17)
    assert facts.free_disk_bytes > 0
    assert facts.system in facts.sentence


def test_a_chatty_start_up_file_does_not_matter() -> None:
    chatter = "echo 'Welcome! fedctl-answer: {}'; printf 'no newline'; echo noise >&2; "
    shell = DeviceShell(LocalSession(prefix=chatter), "here")
    assert from_json(Probe, shell.call(device_probe, "probe", distributions=[])).importable == {}


def test_a_file_in_the_home_directory_cannot_stand_in_for_a_module(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')")
    shell = DeviceShell(LocalSession(prefix=f"cd {tmp_path} && "), "here")
    assert shell.call(device_probe, "probe", distributions=[])["home"]


def test_a_step_that_fails_there_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match=r"here: add source failed: .*Not a directory"):
        DeviceShell(LocalSession(), "here").call(
            device_files, "add_source", state=str(tmp_path / "file"), name="a.toml", text=""
        )


def test_a_wheel_that_is_no_zip_is_an_answer_not_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="unpack failed: File is not a zip file"):
        DeviceShell(LocalSession(), "here").call(
            device_files,
            "unpack",
            data=b"junk",
            prefix=str(tmp_path / "p"),
            version="1",
            launcher="",
            sizes=[4],
            byte_compile=False,
        )
    assert list((tmp_path / "p" / "versions").iterdir()) == []


@pytest.mark.parametrize(
    ("program", "message", "exit_code"),
    [
        ('echo "fedctl-python-3.9" >&2; exit 1', "has Python 3.9, 3.11 is needed", ExitCode.CONFIG),
        ("exit 127", "has no python3", ExitCode.CONFIG),
        ('echo "Segmentation fault" >&2; exit 139', "Segmentation fault", ExitCode.PARTIAL),
    ],
)
def test_a_python_that_will_not_do_is_named_with_the_reason(
    tmp_path: Path, program: str, message: str, exit_code: ExitCode
) -> None:
    shell = DeviceShell(LocalSession(path=fake_python(tmp_path, program)), "watch-1")
    with pytest.raises(DeviceError, match="watch-1") as error:
        shell.call(device_probe, "probe", distributions=[])
    assert message in error.value.message
    assert error.value.exit_code == exit_code


def test_an_old_python_is_told_by_words_that_it_understands() -> None:
    """The boot line is checked by running it with a version check that this Python fails."""
    from fedctl.ops.enrolment import shell as device_shell

    line = device_shell._BOOT.format(size=0).replace("(3, 11)", "(99, 0)")
    done = subprocess.run(
        ["/usr/bin/env", "python3", "-c", line], capture_output=True, text=True, check=False
    )
    assert done.stderr.startswith("fedctl-python-3.")
    compile(line, "boot", "exec")


def change(**facts: object) -> Callable[..., object]:
    def answer(_self: DeviceShell, _module: object, _verb: str, **_words: object) -> object:
        return {**device_probe.probe([]), **facts}

    return answer


@pytest.mark.parametrize(
    ("key", "value", "message", "exit_code"),
    [
        ("libc", "musl", "has musl; wheels need glibc", ExitCode.CONFIG),
        ("libc", "", "an unknown C library", ExitCode.CONFIG),
        ("home", "/home/o'brien", "cannot be quoted", ExitCode.CONFIG),
        ("python", "3.11", "probe.python", ExitCode.PARTIAL),
    ],
)
def test_a_device_that_cannot_carry_an_agent_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, key: str, value: object, message: str, exit_code: ExitCode
) -> None:
    monkeypatch.setattr(DeviceShell, "call", change(**{key: value}))
    with pytest.raises(DeviceError) as error:
        probe_device(DeviceShell(LocalSession(), "watch-1"))
    assert message in error.value.message
    assert error.value.exit_code == exit_code


def test_nothing_runs_at_a_socket_that_is_not_there(tmp_path: Path) -> None:
    shell = DeviceShell(LocalSession(), "here")
    words = {"socket": str(tmp_path / "none.sock"), "unit": "", "system": False}
    assert shell.call(device_service, "survey", **words)["state"] == "stopped"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ('echo "sudo: a password is required" >&2; exit 1', "sudo -n refuses it: a password is required"),
        ("exit 127", "needs root"),
    ],
)
def test_a_sudo_that_asks_is_told_with_the_ways_out(tmp_path: Path, program: str, reason: str) -> None:
    (tmp_path / "sudo").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "sudo").chmod(0o755)
    shell = DeviceShell(LocalSession(path=f"{tmp_path}:/usr/bin:/bin"), "watch-1").by_sudo()
    with pytest.raises(DeviceError, match=reason) as error:
        probe_device(shell)
    assert (error.value.code, error.value.exit_code) == ("sudo", ExitCode.CONFIG)
    assert "--user" in error.value.hint


SYSTEM, USER = "/usr/lib/fedctl-agent/bin/fedctl-agent", "~/.local/share/fedctl/agent/bin/fedctl-agent"


@pytest.mark.parametrize(
    ("facts", "wanted", "system"),
    [
        ({"root": False}, "auto", False),
        ({"root": True}, "auto", True),
        ({"root": True, "systemd_system": False}, "auto", False),
        ({"root": True}, "user", False),
        ({"root": True, "installed": [USER]}, "auto", False),
        ({"root": True, "installed": [SYSTEM]}, "auto", True),
    ],
)
def test_where_an_agent_goes(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, object], wanted: Placement, *, system: bool
) -> None:
    monkeypatch.setattr(DeviceShell, "call", change(**{"systemd_system": True, **facts}))
    site = find_site(DeviceShell(LocalSession(), "watch-1"), wanted)
    assert site.places.system is system


@pytest.mark.parametrize(
    ("facts", "wanted", "code"),
    [
        ({"installed": [USER]}, "system", "placement"),
        ({"installed": [SYSTEM]}, "user", "placement"),
        ({"systemd_system": False}, "system", "systemd"),
    ],
)
def test_a_place_that_an_agent_cannot_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, object], wanted: Placement, code: str
) -> None:
    monkeypatch.setattr(DeviceShell, "call", change(**{"root": True, "systemd_system": True, **facts}))
    with pytest.raises(FedctlError) as error:
        find_site(DeviceShell(LocalSession(), "watch-1"), wanted)
    assert error.value.code == code
