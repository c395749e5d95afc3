"""Runs functions of the modules in `ondevice` on a device under its own Python, over the admin's login.

The module's source, the call and its data go over stdin; the answer is one marked line of JSON, so
that what a chatty shell start-up file prints before it does not matter. Nothing is left on the device.
"""

from __future__ import annotations

import inspect
import json
import shlex
from types import ModuleType

from fedctl.core.errors import DeviceError, ExitCode
from fedctl.transport import AdminSession, why_no_commands
from fedctl_wire.codec import Json, dump_bytes

_MARK = "fedctl-answer: "
_DEADLINE_S = 120.0
# In words that Python 2 understands too: an old Python must say that it is old. The working
# directory is taken off sys.path: a file of the user's there must not stand in for a module.
_BOOT = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; v = sys.version_info[:2]; "
    'v < (3, 11) and sys.exit("fedctl-python-%d.%d" % v); '
    'exec(compile(sys.stdin.buffer.read({size}), "fedctl", "exec"))'
)
_TAIL = f"""
import json, sys, zipfile
_call = json.loads(sys.stdin.buffer.readline())
try:
    _answer = {{"ok": globals()[_call["verb"]](**_call["arguments"])}}
except (OSError, ValueError, zipfile.BadZipFile, subprocess.SubprocessError) as _error:
    _answer = {{"error": str(_error)}}
sys.stdout.write("\\n{_MARK}" + json.dumps(_answer) + "\\n")
"""


class DeviceShell:
    """The admin's login on one device; its calls run as the user by whom fedctl logs in there.

    Attributes:
        device: The device's name.
    """

    def __init__(self, session: AdminSession, device: str, *, sudo: bool = False) -> None:
        self.device = device
        self._session = session
        self._sudo = sudo

    def by_sudo(self) -> DeviceShell:
        """The same login, whose calls run as root; each is refused where sudo wants a password."""
        return DeviceShell(self._session, self.device, sudo=True)

    def call(
        self,
        module: ModuleType,
        verb: str,
        *,
        data: bytes = b"",
        timeout_s: float | None = None,
        **arguments: Json,
    ) -> Json:
        """Run `module.verb(**arguments)` there and return its answer.

        Args:
            module: A module that imports only the standard library.
            verb: One of its functions.
            data: What the function may read from stdin.
            timeout_s: Until when it must have ended; two minutes when None.
            arguments: Plain JSON values.

        Raises:
            DeviceError: Python is missing or too old, or the step failed, with its reason.
            UnreachableError: The connection broke.
        """
        program = (inspect.getsource(module) + _TAIL).encode()
        request = dump_bytes({"verb": verb, "arguments": arguments}) + b"\n"
        command = self._command(len(program))
        done = self._session.run(command, stdin=program + request + data, timeout_s=timeout_s or _DEADLINE_S)
        last = (done.stdout.decode(errors="replace").splitlines() or [""])[-1]
        if last.startswith(_MARK):
            return self._answer(last.removeprefix(_MARK), verb)
        raise self._no_answer(done.code, done.stderr.decode(errors="replace"), verb)

    def _command(self, program_bytes: int) -> str:
        """The command line that starts Python as the right user, with that user's own PATH."""
        python = ["python3", "-c", _BOOT.format(size=program_bytes)]
        root, other = self._session.user == "root", self._session.acts_for
        if self._sudo:
            return shlex.join(python if root else ["sudo", "-n", "--", *python])
        if other is None:
            return shlex.join(python)
        if root:
            return shlex.join(["su", "-s", "/bin/sh", "-", other, "-c", shlex.join(python)])
        return shlex.join(["sudo", "-n", "-H", "-u", other, "--", *python])

    def _answer(self, text: str, verb: str) -> Json:
        answer = json.loads(text)
        if "error" in answer:
            raise DeviceError(
                f"{self.device}: {verb.replace('_', ' ')} failed: {answer['error']}", subject=self.device
            )
        return answer["ok"]

    def _no_answer(self, code: int, errors: str, verb: str) -> DeviceError:
        lines = [line for line in errors.strip().splitlines() if line.strip()]
        old = [line for line in lines if line.startswith("fedctl-python-")]
        if old:
            return self._unsuitable(f"has Python {old[-1].removeprefix('fedctl-python-')}, 3.11 is needed")
        if self._session.acts_for and any(line.startswith(("su: ", "sudo: ")) for line in lines):
            return self._no_other_user(lines[-1])
        if self._sudo and (code == 127 or any("sudo:" in line for line in lines)):
            return self._no_sudo(lines[-1].partition("sudo: ")[2] if lines else "")
        if code == 127 or any("not found" in line for line in lines):
            return self._unsuitable("has no python3")
        forbidden = why_no_commands(self._session, self.device)
        return forbidden or self._failed(verb, lines[-1] if lines else f"exit {code}, and no answer")

    def _failed(self, verb: str, reason: str) -> DeviceError:
        return DeviceError(f"{self.device}: {verb.replace('_', ' ')} failed: {reason}", subject=self.device)

    def _no_other_user(self, reason: str) -> DeviceError:
        user, other = self._session.user, self._session.acts_for
        return DeviceError(
            f"device {self.device}: {user} cannot act for {other}: {reason}",
            hint=f"--via needs a login as root, or one that sudo -n lets run commands as {other}",
            subject=self.device,
            exit_code=ExitCode.CONFIG,
            code="sudo",
        )

    def _no_sudo(self, reason: str) -> DeviceError:
        return DeviceError(
            f"device {self.device}: an agent of the system needs root, and sudo -n refuses it"
            + (f": {reason}" if reason else ""),
            hint="log in as root, let the login use sudo without a password (NOPASSWD), or use --user",
            subject=self.device,
            exit_code=ExitCode.CONFIG,
            code="sudo",
        )

    def _unsuitable(self, what: str) -> DeviceError:
        return DeviceError(
            f"device {self.device} {what}",
            hint="install Python 3.11 or newer there as python3",
            subject=self.device,
            exit_code=ExitCode.CONFIG,
            code="python",
        )
