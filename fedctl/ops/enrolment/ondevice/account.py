"""Runs on a device as root, under its own Python: the account of a system's agent. Standard library only.

The source text of this module is sent over the admin's login and executed there, so it imports nothing
of fedctl. The account's home directory is the agent's state directory: by that it is known as ours.
"""

import grp
import os
import pwd
import shutil
import subprocess
from typing import Any

_SYSTEM_DIRECTORIES = "/usr/sbin:/sbin"  # not on every root's PATH
_DEADLINE_S = 30.0


def prepare(account: str, state: str, login: str) -> dict[str, Any]:
    """Make user and group `account`, and let `login` into the group, as far as that is not so yet.

    Returns:
        `made` and `joined`: what was done.
    """
    made = account not in _users()
    if made:
        group = ["--gid", account] if account in _groups() else ["--user-group"]
        shell = shutil.which("nologin", path=_path()) or "/bin/false"
        words = ("--system", "--no-create-home", "--home-dir", state, "--shell", shell)
        _run("useradd", *words, *group, account)
    elif pwd.getpwnam(account).pw_dir != state:
        raise OSError(f"there is an account {account} of somebody else's here")
    joined = login != "root" and login not in grp.getgrnam(account).gr_mem
    if joined:
        _run("usermod", "--append", "--groups", account, login)
    return {"made": made, "joined": joined}


def undo(account: str, login: str, *, made: bool, joined: bool) -> None:
    """Take back what `prepare` did."""
    if joined:
        _leave(account, login)
    if made:
        _delete(account)


def withdraw(account: str, state: str, login: str, *, delete: bool) -> None:
    """Take `login` out of the group; with `delete` the account goes, too, where it is ours."""
    if account not in _users() or pwd.getpwnam(account).pw_dir != state:
        return
    if login in grp.getgrnam(account).gr_mem:
        _leave(account, login)
    if delete:
        _delete(account)


def _leave(account: str, login: str) -> None:
    _run("gpasswd", "--delete", login, account)


def _delete(account: str) -> None:
    _run("userdel", account)
    if account in _groups():  # others are members of it
        _run("groupdel", account)


def _users() -> set[str]:
    return {entry.pw_name for entry in pwd.getpwall()}


def _groups() -> set[str]:
    return {entry.gr_name for entry in grp.getgrall()}


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_DIRECTORIES}"


def _run(*words: str) -> None:
    environment = {**os.environ, "PATH": _path()}
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=_DEADLINE_S, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        raise OSError(f"{words[0]}: {lines[-1]}")
