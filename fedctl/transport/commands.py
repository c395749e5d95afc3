"""Why a login runs none of the commands it is given: its shell, sshd's ForceCommand, only file transfer."""

from __future__ import annotations

from fedctl.core.errors import DeviceError, ExitCode
from fedctl.transport.admin import AdminSession
from fedctl.transport.answers import printable

_WORD = b"fedctl-runs-commands"
_SFTP_HELLO = b"\0\0\0\5\1\0\0\0\3"  # SSH_FXP_INIT, version 3
_SFTP_ANSWER = b"\2"  # SSH_FXP_VERSION, behind four bytes of length
_SHOWN_CHARS = 80
_DEADLINE_S = 20.0


def why_no_commands(session: AdminSession, device: str) -> DeviceError | None:
    """Try a harmless command; the error that says what runs instead, or None where it works.

    Args:
        session: The login.
        device: Named in the error.

    Raises:
        UnreachableError: The connection broke.
        DeviceError: The login may have no session at all.
    """
    done = session.run(f"echo {_WORD.decode()}", stdin=_SFTP_HELLO, timeout_s=_DEADLINE_S)
    if _WORD in done.stdout:
        return None
    lines = (done.stdout.strip() or done.stderr).decode("utf-8", "replace").strip().splitlines()
    said = printable(lines[-1])[:_SHOWN_CHARS] if lines else ""
    if done.stdout[4:5] == _SFTP_ANSWER or "sftp connections only" in said:
        what = "sshd's ForceCommand internal-sftp lets it only move files"
        hint = "exempt it from ForceCommand in sshd_config, or log in as another user"
    elif "not available" in said:
        what = f"the account's shell is nologin ({said})"
        hint = f"give it a shell there (usermod -s /bin/sh {session.user}), or log in as another user"
    elif not said:
        what = f"every command ends with exit code {done.code} and prints nothing"
        hint = (
            "the account's shell is /bin/false or the like, or sshd's ForceCommand runs something silent; "
            "log in as another user"
        )
    else:
        what = f"something else runs instead, and prints {said!r}"
        hint = (
            "sshd_config has a ForceCommand for it, or your key's line in its authorized_keys has command=; "
            "log in as another user or with another key"
        )
    return DeviceError(
        f"device {device}: {session.user} may not run commands: {what}",
        hint=hint,
        subject=device,
        exit_code=ExitCode.CONFIG,
        code="no_commands",
    )
