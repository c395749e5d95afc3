"""The agent's state directory: where everything is, and how a file is made durable.

Daemon and worker share it. Every file but a job's `progress.jsonl`, usage and logs (flash wear) is
written as temporary file, fsync, rename, fsync of the directory, or inside a directory that gets its
name last: after a power cut a reader finds the old content or the new, never half of one. `taskdir`
says which marks need less.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from fedctl_wire.codec import Json, parse_bytes
from fedctl_wire.limits import LIMITS

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
DISK_FULL_EXIT = 28  # a job's exit code when the disk had no room even for its failure
PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700
TEMPORARY_SUFFIX = ".part"  # what a crash may leave behind; no reader looks at such a file


@dataclass(frozen=True, slots=True)
class StateDir:
    """Paths below one agent's state directory; nothing but `create` touches the disk."""

    path: Path

    def create(self) -> None:
        """Make the directory and its parts, readable by their owner only, where they are missing."""
        self.path.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        for part in (self.identity, self.sources, self.blobs, self.models, self.tasks, self.spool):
            part.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)

    @property
    def identity(self) -> Path:
        """Directory of the identity key and the enrolment."""
        return self.path / "identity"

    @property
    def identity_key(self) -> Path:
        """The private key, PEM, mode 0600; read by `keygen` and the worker, and for TLS by the daemon."""
        return self.identity / "key.pem"

    @property
    def identity_public(self) -> Path:
        """The public key, 64 hex characters."""
        return self.identity / "key.pub"

    @property
    def certificate(self) -> Path:
        """What the daemon shows over TLS, PEM: self-signed until enrolment brings the root's."""
        return self.identity / "certificate.pem"

    @property
    def authority(self) -> Path:
        """The root's certificate, PEM: who may call over TLS. Came with the enrolment."""
        return self.identity / "authority.pem"

    @property
    def token(self) -> Path:
        """The hash of the one-time token of `fedctl-agent enrol`, and how often it was tried."""
        return self.identity / "token.json"

    @property
    def root_key(self) -> Path:
        """`{"root_key": hex}`: the pinned root. Its presence means that the device is enrolled."""
        return self.identity / "root.json"

    @property
    def enrolment(self) -> Path:
        """The enrolment envelope."""
        return self.identity / "enrolment.json"

    @property
    def policy(self) -> Path:
        """The root-signed policy envelope."""
        return self.path / "policy.json"

    @property
    def policy_local(self) -> Path:
        """The unsigned policy of whoever is at the device; optional, can only tighten."""
        return self.path / "policy.local.json"

    @property
    def roster(self) -> Path:
        """The root-signed roster envelope."""
        return self.path / "roster.json"

    @property
    def sources(self) -> Path:
        """Directory of `NAME.toml`: where local data is."""
        return self.path / "sources"

    @property
    def settings(self) -> Path:
        """`agent.toml`: optional limits set by whoever installed the agent."""
        return self.path / "agent.toml"

    @property
    def blobs(self) -> Path:
        """Directory of uploads: `SHA256`, and `SHA256.part` while one is unfinished."""
        return self.path / "blobs"

    @property
    def models(self) -> Path:
        """Directory of `NAME/{A,B,active}`."""
        return self.path / "models"

    @property
    def tasks(self) -> Path:
        """Directory of tasks that are queued or running."""
        return self.path / "tasks"

    @property
    def spool(self) -> Path:
        """Directory of finished tasks."""
        return self.path / "spool"

    @property
    def socket(self) -> Path:
        """Where the daemon listens unless told otherwise."""
        return self.path / "agent.sock"

    @property
    def run_lock(self) -> Path:
        """Locked by the running daemon, and holding its process id."""
        return self.path / "run.lock"

    @property
    def worker_lock(self) -> Path:
        """Locked for as long as a worker or one of its jobs lives, whoever started it."""
        return self.path / "worker.lock"

    @property
    def supervise_lock(self) -> Path:
        """Locked by the running supervisor, and holding its process id."""
        return self.path / "supervise.lock"

    @property
    def log(self) -> Path:
        """The agent's own log, JSON lines."""
        return self.path / "agent.log"

    @property
    def worker_log(self) -> Path:
        """What the worker says on stdout and stderr, outside jobs."""
        return self.path / "worker.log"


def write_durably(path: Path | str, data: bytes) -> None:
    """Replace `path` by `data` so that a crash at any point leaves the old content or the new.

    Raises:
        OSError: From the file system, e.g. ENOSPC; no temporary file is left behind.
    """
    directory, name = os.path.split(path)  # not by pathlib, here and below: its share of a task is seen
    temporary = f"{directory}/.{name}.{os.getpid()}-{threading.get_ident()}{TEMPORARY_SUFFIX}"
    try:
        write_synced(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_directory(directory)


def write_synced(path: str, data: bytes) -> None:
    """Write a file whose name no reader looks at yet, and make its content, not its name, durable.

    Raises:
        OSError: From the file system; half a file may be left.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    """Write all of `data`, however little the system takes at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_directory(path: Path | str) -> None:
    """Make the names in a directory durable: renames, creations and removals of entries."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_directory(path: str) -> None:
    """Remove a directory, be it there or not, as far as it can be; one of files only quickly."""
    try:
        for name in os.listdir(path):
            os.unlink(f"{path}/{name}")
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError:
        shutil.rmtree(path, ignore_errors=True)


def read_json(path: Path | str, *, limit: int = LIMITS.json_body_bytes) -> Json:
    """Parse a JSON file of at most `limit` bytes.

    Raises:
        FileNotFoundError: When there is no such file.
        WireError: When it is too large or not JSON.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # One byte more than there is, so that a file that is too large is seen to be.
        data = os.read(descriptor, min(os.fstat(descriptor).st_size, limit) + 1)
    finally:
        os.close(descriptor)
    return parse_bytes(data, limit=limit, what=os.path.basename(path))
