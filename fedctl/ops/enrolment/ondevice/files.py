"""Runs on a device, under its own Python: the agent's files, its key line, its source. Standard library only.

The source text of this module is sent over the admin's login and executed there, so it imports
nothing of fedctl. Each public function is a step of an installation or takes one back; each can be
run again. The launcher is the one pointer to the installed version and is replaced atomically.
"""

import base64
import compileall
import contextlib
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 1024 * 1024
_TRUST_FILES = (
    *("identity/root.json", "identity/enrolment.json", "identity/key.pem", "identity/key.pub"),
    *("identity/certificate.pem", "identity/authority.pem"),
    *("policy.json", "roster.json"),
)


def inspect(launcher: str, state: str, key_line: str | None = None) -> dict[str, Any]:
    """What an earlier run left: the launcher's text, what the state directory holds, a line's fate."""
    directory = Path(state)
    return {
        **(inspect_key(key_line) if key_line else {}),
        "launcher": _read(Path(launcher)),
        "state": directory.exists(),
        "enrolled": (directory / "identity/root.json").exists(),
        **_membership(directory / "identity"),
        "trust_files": [name for name in _TRUST_FILES if (directory / name).exists()],
        "sources": sorted(path.name for path in directory.glob("sources/*.toml")),
    }


def _membership(identity: Path) -> dict[str, str | None]:
    """The pinned root and the device's name in its fleet; None where a file is missing or makes no sense."""
    root = member = None
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
        root = str(json.loads((identity / "root.json").read_bytes())["root_key"])
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
        envelope = json.loads((identity / "enrolment.json").read_bytes())
        member = str(json.loads(base64.b64decode(envelope["payload"]))["device"])
    return {"root_key": root, "member": member}


def inspect_key(line: str) -> dict[str, Any]:
    """Whether the login's authorized_keys holds `line`, and the file's bytes (base64; None: no file)."""
    keys = _authorized_keys()
    return {
        "key_line": line.encode() in keys.splitlines(),
        "authorized_keys": base64.b64encode(keys).decode() if _keys_path().exists() else None,
    }


# ------------------------------------------------------------------ the agent


def unpack(
    prefix: str, version: str, launcher: str, sizes: list[int], *, byte_compile: bool, for_all: bool = False
) -> None:
    """Unpack the zip files that follow on stdin, then point the launcher at them.

    With `for_all` every account can read them, whatever this login's umask says.
    """
    if for_all:
        os.umask(0o022)
    directory = Path(prefix, "versions", version)
    staging = directory.with_name(f".{version}.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        for size in sizes:
            _unpack_one(staging, size)
        if byte_compile:
            _compile(staging)
        if directory.exists():  # the same version again: kept for `undo_unpack`
            shutil.rmtree(_aside(directory), ignore_errors=True)
            directory.rename(_aside(directory))
        staging.rename(directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    os.sync()  # thousands of small files: one call instead of an fsync each
    path = Path(prefix, "bin", "fedctl-agent")
    path.parent.mkdir(exist_ok=True)
    _replace(path, launcher.encode(), mode=0o755)


def forget_other_versions(prefix: str, version: str) -> None:
    """Delete what the launcher no longer points at."""
    for directory in Path(prefix, "versions").iterdir():
        if directory.name != version:
            shutil.rmtree(directory, ignore_errors=True)


def undo_unpack(prefix: str, version: str, launcher: str | None) -> None:
    """Point the launcher back at what was there before, or delete the prefix when there was nothing."""
    if launcher is None:
        shutil.rmtree(prefix, ignore_errors=True)
        _remove_empty_parents(Path(prefix))
        return
    _replace(Path(prefix, "bin", "fedctl-agent"), launcher.encode(), mode=0o755)
    directory = Path(prefix, "versions", version)
    if f"versions/{version}" not in launcher:
        shutil.rmtree(directory, ignore_errors=True)
    elif _aside(directory).exists():
        shutil.rmtree(directory, ignore_errors=True)
        _aside(directory).rename(directory)


def _aside(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.before")


def keygen(launcher: str, state: str, owner: str | None = None) -> None:
    """Let the agent make its identity key, as the account `owner`; one that exists is kept."""
    if owner is not None:
        Path(state).mkdir(mode=0o700, exist_ok=True)
        shutil.chown(state, owner, owner)
    done = subprocess.run(
        [launcher, "keygen", "--state-dir", state],
        user=owner,
        group=owner,
        extra_groups=None if owner is None else [],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        raise OSError(f"fedctl-agent keygen failed: {lines[-1]}")


def undo_state(state: str, trust_files: list[str], *, existed: bool, source: str | None) -> None:
    """Leave the state directory as `inspect` found it, as far as an installation changes it."""
    directory = Path(state)
    if not existed:
        shutil.rmtree(directory, ignore_errors=True)
        _remove_empty_parents(directory)
        return
    added = [name for name in _TRUST_FILES if name not in trust_files]
    for name in added + ([f"sources/{source}"] if source else []):
        (directory / name).unlink(missing_ok=True)


def add_source(state: str, name: str, text: str, owner: str | None = None) -> bool:
    """Say where local data is, in a file of `owner`'s; refused silently (False) when a source is there."""
    directory = Path(state, "sources")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(directory.glob("*.toml")):
        return False
    _replace(directory / name, text.encode(), mode=0o600)
    if owner is not None:
        for path in (directory, directory / name):
            shutil.chown(path, owner, owner)
    return True


def unreadable(state: str, owner: str) -> list[str]:
    """What the sources name, and is there, but the account `owner` may not read."""
    found = []
    for path in _source_data(Path(state)):
        test = 'test -r "$0" -a -x "$0"' if path.is_dir() else 'test -r "$0"'
        may = subprocess.run(
            ["/bin/sh", "-c", test, str(path)], user=owner, group=owner, extra_groups=[], cwd="/", check=False
        )
        found += [str(path)] if path.exists() and may.returncode != 0 else []
    return found


# ------------------------------------------------------------------ the login key's line


def add_key(line: str) -> bool:
    """Append `line` to authorized_keys unless it is there; an outdated line of the same key is replaced."""
    path, before = _keys_path(), _authorized_keys()
    if [old.strip() for old in before.splitlines() if _same_key(old, line)] == [line.encode()]:
        return False
    kept = _without(before, line)
    separator = b"\n" if kept and not kept.endswith(b"\n") else b""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _replace(path, kept + separator + line.encode() + b"\n", mode=_mode(path))
    return True


def undo_key(line: str, before: str | None) -> None:
    """Give authorized_keys the bytes it had before (base64; None: there was no file).

    Where somebody else has changed it meanwhile, only our key is taken out.
    """
    path, now = _keys_path(), _authorized_keys()
    held = base64.b64decode(before or "")
    if _without(now, line).rstrip(b"\n") != _without(held, line).rstrip(b"\n"):
        remove_key(line)
    elif before is None:
        path.unlink(missing_ok=True)
        _remove_empty(path.parent)
    elif now != held:
        _replace(path, held, mode=_mode(path))


def remove_key(line: str) -> bool:
    """Take every line of this key out of authorized_keys; the other lines stay as they are."""
    path, before = _keys_path(), _authorized_keys()
    kept = _without(before, line)
    if kept == before:
        return False
    _replace(path, kept, mode=_mode(path))
    return True


# ------------------------------------------------------------------ removal


def delete(prefix: str, state: str, *, purge: bool) -> dict[str, Any]:
    """Delete the agent, and its state with `purge`; never a file or directory that a source names."""
    shutil.rmtree(prefix, ignore_errors=True)
    kept: list[str] = []
    if purge:
        kept = _purge(Path(state))
    _remove_empty_parents(Path(prefix))
    return {"kept": kept}


def _purge(state: Path) -> list[str]:
    data = _source_data(state)
    kept: list[str] = []
    for path in sorted(state.iterdir()) if state.is_dir() else ():
        _purge_entry(path, data, kept)
    _remove_empty(state)
    return kept


def _purge_entry(path: Path, data: list[Path], kept: list[str]) -> None:
    if path.name == "sources" and path.is_dir():
        for toml in path.glob("*.toml"):
            toml.unlink()
        _remove_empty(path)  # people put data beside the file that names it
        kept.extend([str(path)] if path.exists() else [])
    elif path.is_symlink():
        path.unlink()
    elif any(item.is_relative_to(path.resolve()) for item in data):
        kept.append(str(path))
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _source_data(state: Path) -> list[Path]:
    found = []
    for toml in state.glob("sources/*.toml"):
        # One that nobody can read names no data; a link in a circle is a RuntimeError before 3.13.
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError, RuntimeError):
            found.append((toml.parent / tomllib.loads(toml.read_text())["path"]).resolve())
    return found


# ------------------------------------------------------------------ plumbing


def _unpack_one(directory: Path, size: int) -> None:
    archive = directory / ".archive.zip"
    with archive.open("wb") as stream:
        left = size
        while left:
            block = sys.stdin.buffer.read(min(left, _BLOCK_BYTES))
            if not block:
                raise OSError("the upload ended early")
            stream.write(block)
            left -= len(block)
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(directory)
    archive.unlink()


def _compile(directory: Path) -> None:
    compileall.compile_dir(
        str(directory),
        quiet=2,
        stripdir=str(directory),
        rx=re.compile(r"/tests/"),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def _keys_path() -> Path:
    return Path("~/.ssh/authorized_keys").expanduser().resolve()  # it may be a symbolic link


def _authorized_keys() -> bytes:
    try:
        return _keys_path().read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""


def _without(keys: bytes, line: str) -> bytes:
    return b"".join(old for old in keys.splitlines(keepends=True) if not _same_key(old, line))


def _same_key(found: bytes, wanted: str) -> bool:
    blob = wanted.split()[-2].encode()  # options, type, key, comment
    return not found.lstrip().startswith(b"#") and blob in found.split()


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode & 0o7777
    except FileNotFoundError:
        return 0o600


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _replace(path: Path, data: bytes, *, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            os.fchmod(stream.fileno(), mode)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _remove_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()


def _remove_empty_parents(path: Path) -> None:
    """Up to the home directory, as far as they are empty: `mkdir` made them all. None elsewhere."""
    home = Path.home()
    for parent in path.parents:
        if parent == home or not parent.is_relative_to(home):
            return
        _remove_empty(parent)
