"""The SSH test bed: real OpenSSH and Dropbear servers on loopback, for a user that exists only meanwhile.

Needs root. Enabled by CI=true or SYSTEM_TESTS=1, because it adds a user and, where a server is not
installed, unpacks Debian's package into a temporary directory: nothing is installed and no service starts.
Everything is removed at the end; what a killed run left behind, at the start of the next one.

    with ssh_bed() as bed:                    # or the session fixture `bed`, imported in a conftest.py
        key = bed.authorize(bed.bridge_command(socket_path))
        connect(device="d", url=bed.url, host_key=bed.host_key, login_key=key)
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

HOW_TO_ENABLE = "enable with: sudo SYSTEM_TESTS=1 make test"
PRIVILEGE_SEPARATION = Path("/run/sshd")  # compiled into Debian's sshd, as is its user `sshd`
PATIENCE_S = 20.0
_USER_PREFIX, _BED_PREFIX = "fedctl-test-", "fedctl-ssh-"
_LOCK_NAME = "lock"  # in a bed's directory, held while the bed is in use
_YOUNG_S = 600.0  # a bed without a lock that is younger may be one that is just being made


def system_tests_enabled() -> bool:
    """Whether tests may add a user and start sshd: as root, and when asked to."""
    asked = os.environ.get("CI") == "true" or os.environ.get("SYSTEM_TESTS") == "1"
    return asked and os.geteuid() == 0


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` is true; fails after `PATIENCE_S`, which no passing test comes near."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


@dataclass(frozen=True, slots=True)
class SshdProgram:
    """How to start sshd."""

    path: Path
    environment: dict[str, str]
    directives: tuple[str, ...]  # extra lines for its configuration


@contextlib.contextmanager
def sshd_program() -> Iterator[SshdProgram]:
    """The installed sshd, or Debian's package unpacked; skips when there is neither.

    Adds what sshd wants to find, its user and `/run/sshd`, and removes what it added.
    """
    installed = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")
    program = SshdProgram(Path(installed), {}, ()) if installed else _unpacked_sshd()
    with _prepared_for_sshd():
        yield program


@contextlib.contextmanager
def _prepared_for_sshd() -> Iterator[None]:
    """Add sshd's user and directory; the last of the beds at one time removes what was added."""
    path = Path(tempfile.gettempdir()) / "fedctl-tests-sshd"
    with path.open("a+") as shared:  # its text: what was added
        fcntl.flock(shared, fcntl.LOCK_SH)
        if not _has_user("sshd"):
            _command("useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "sshd")
            shared.write("user\n")
        if not PRIVILEGE_SEPARATION.exists():
            PRIVILEGE_SEPARATION.mkdir(mode=0o755)
            shared.write("directory\n")
        shared.flush()
        try:
            yield
        finally:
            with contextlib.suppress(BlockingIOError):  # another bed goes on
                fcntl.flock(shared, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shared.seek(0)
                added = shared.read().split()
                path.unlink()
                if "user" in added:
                    _command("userdel", "sshd")
                if "directory" in added:
                    PRIVILEGE_SEPARATION.rmdir()


@functools.cache
def _unpacked_sshd() -> SshdProgram:
    """Debian's package, fetched and unpacked once a process; removed when that ends."""
    root = _unpacked("openssh-server")
    # Since OpenSSH 9.8 sshd starts further programs, by default from where the package would be installed.
    helpers = {"SshdSessionPath": "sshd-session", "SshdAuthPath": "sshd-auth"}
    found = {word: root / "usr/lib/openssh" / name for word, name in helpers.items()}
    directives = tuple(f"{word} {path}" for word, path in found.items() if path.exists())
    return SshdProgram(root / "usr/sbin/sshd", _libraries(root), directives)


@functools.cache
def _dropbear_program() -> SshdProgram:
    """The installed Dropbear, or Debian's package unpacked; skips when there is neither."""
    installed = shutil.which("dropbear", path="/usr/sbin:/usr/local/sbin:/sbin")
    if installed and shutil.which("dropbearkey"):
        return SshdProgram(Path(installed), {}, ())
    root = _unpacked("dropbear-bin")
    return SshdProgram(root / "usr/sbin/dropbear", _libraries(root), ())


def _unpacked(package: str) -> Path:
    """A directory with Debian's package and what it lacks here; removed when the process ends."""
    if shutil.which("apt-get") is None:
        pytest.skip(f"no {package} here and no apt-get to fetch it")
    root = Path(tempfile.mkdtemp(prefix="fedctl-unpacked-"))
    atexit.register(shutil.rmtree, root)
    root.chmod(0o755)
    archives = root / "archives"
    (archives / "partial").mkdir(parents=True)
    try:
        _download(package, archives)
        for archive in archives.glob("*.deb"):
            _command("dpkg-deb", "--extract", str(archive), str(root))
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"no {package} here, and it cannot be fetched: {reason}")
    return root


def _libraries(root: Path) -> dict[str, str]:
    found = sorted({str(p.parent) for p in root.glob("usr/lib/**/*.so*")})
    return {"LD_LIBRARY_PATH": ":".join(found)} if found else {}


def _download(package: str, archives: Path) -> None:
    """Fetch a package and what it lacks here; nothing is installed, so no lock is needed."""
    options = ("-qq", "-y", "--no-install-recommends", "--download-only", "-o", "Debug::NoLocking=true")
    command = ("apt-get", "install", *options, "-o", f"Dir::Cache::archives={archives}", package)
    try:
        _command(*command)
    except subprocess.CalledProcessError:  # the package lists are missing or old
        _command("apt-get", "update", "-qq")
        _command(*command)


class Sshd:
    """One server on one loopback address and port, which lets in the keys of `authorized_keys`.

    `directives` go before the others in its configuration, so that they win.
    """

    def __init__(
        self,
        program: SshdProgram,
        directory: Path,
        *,
        address: str = "127.0.0.1",
        port: int | None = None,
        directives: Sequence[str] = (),
    ) -> None:
        directory.mkdir(mode=0o755)
        self._directives = tuple(directives)
        self.address = address
        self.port = port or free_port(address)
        self.authorized_keys = directory / "authorized_keys"
        self.program = program
        self._host_key_path = directory / "host_key"
        self._config = directory / "sshd_config"
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.authorized_keys.touch(mode=0o644)
        self.new_host_key()
        self._configure()

    @property
    def host_key(self) -> str:
        """The server's key, `ssh-ed25519 AAAA…`."""
        return " ".join(self._host_key_path.with_suffix(".pub").read_text().split()[:2])

    @property
    def log(self) -> str:
        """What it logged, for the message of a failing test."""
        return self._log.read_text(errors="replace")

    def new_host_key(self) -> None:
        """Take another host key, as after a re-flash; in force from the next start."""
        self._host_key_path.unlink(missing_ok=True)
        make_key(self._host_key_path)

    def start(self) -> None:
        """Start it and wait until it listens."""
        command = self._command()
        with self._log.open("ab") as log:
            environment = {**os.environ, **self.program.environment}
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        eventually(self._listens, f"sshd listens: {self.log}")

    def stop(self) -> None:
        """End it and every session it carries."""
        if self._process is not None:
            end_tree(self._process)
            self._process = None

    def sessions(self) -> list[psutil.Process]:
        """Its processes that serve a connection."""
        assert self._process is not None
        return psutil.Process(self._process.pid).children(recursive=True)

    def _command(self) -> list[str]:
        return [str(self.program.path), "-D", "-e", "-f", str(self._config)]

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"sshd ended: {self.log}"
        with _loopback_socket(self.address) as probe:
            return probe.connect_ex((self.address, self.port)) == 0

    def _configure(self) -> None:
        place = f"[{self.address}]" if ":" in self.address else self.address
        lines = [
            *self._directives,
            f"ListenAddress {place}:{self.port}",
            f"HostKey {self._host_key_path}",
            f"AuthorizedKeysFile {self.authorized_keys}",
            "StrictModes no",  # the directories belong to root, the login to the test user
            "PidFile none",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PrintMotd no",
            "LogLevel VERBOSE",
            *self.program.directives,
        ]
        self._config.write_text("\n".join(lines) + "\n")


class Dropbear(Sshd):
    """The small server of many boards; it lets in the keys of the user's own `~/.ssh/authorized_keys`."""

    def __init__(self, directory: Path, home: Path, *, address: str, options: Sequence[str] = ()) -> None:
        self._options = tuple(options)
        super().__init__(_dropbear_program(), directory, address=address)
        self.authorized_keys.unlink()
        self.authorized_keys = home / ".ssh" / "authorized_keys"

    def new_host_key(self) -> None:
        """Take another host key, in Dropbear's own form; in force from the next start."""
        self._host_key_path.unlink(missing_ok=True)
        maker = shutil.which("dropbearkey") or str(self.program.path.parents[1] / "bin" / "dropbearkey")
        environment = {**os.environ, **self.program.environment}
        words = [maker, "-t", "ed25519", "-f", str(self._host_key_path)]
        done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
        (line,) = [text for text in done.stdout.splitlines() if text.startswith("ssh-")]
        self._host_key_path.with_suffix(".pub").write_text(f"{line}\n")

    def _command(self) -> list[str]:
        where = f"{self.address}:{self.port}"
        pid_file = self._config.with_name("pid")
        words = [str(self.program.path), "-F", "-E", "-s", "-p", where, "-r", str(self._host_key_path)]
        return [*words, "-P", str(pid_file), *self._options]

    def _configure(self) -> None:
        """It has no configuration file."""


class SshBed:
    """One user and one running server; `directory` can be entered by both root and the user."""

    def __init__(self, directory: Path, user: str, home: Path, sshd: Sshd) -> None:
        self.directory = directory
        self.user = user
        self.home = home
        self.sshd = sshd
        self._keys = 0

    @property
    def url(self) -> str:
        """The server as a device URL."""
        return f"ssh://{self.user}@{self.sshd.address}:{self.sshd.port}"

    @property
    def host_key(self) -> str:
        """The server's present host key."""
        return self.sshd.host_key

    def new_directory(self, name: str) -> Path:
        """A fresh directory that the user may enter, for a socket that both sides open."""
        path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.directory))
        path.chmod(0o711)
        return path

    def authorize(self, command: str | None, *, passphrase: str = "") -> Path:
        """Make a key that may log in: to run only `command`, or anything when it is None."""
        self._keys += 1
        path = make_key(self.directory / f"key-{self._keys}", passphrase=passphrase)
        quoted = "" if command is None else command.replace("\\", "\\\\").replace('"', '\\"')
        limit = "" if command is None else f'restrict,command="{quoted}" '
        with self.sshd.authorized_keys.open("a") as lines:
            lines.write(limit + path.with_suffix(".pub").read_text())
        return path

    def bridge_command(self, socket_path: Path) -> str:
        """The command line of `dial-stdio` to that socket, from a copy that the user may read."""
        copy = self.directory / "lib" / "dial_stdio.py"
        if not copy.exists():
            from fedctl_agent import dial_stdio

            copy.parent.mkdir(mode=0o755)
            shutil.copy(dial_stdio.__file__, copy)
            copy.chmod(0o644)
        program = f"import sys; sys.path.insert(0, {str(copy.parent)!r}); import dial_stdio; "
        program += f"sys.exit(dial_stdio.run({str(socket_path)!r}))"
        return shlex.join([str(python_for_all()), "-I", "-S", "-c", program])

    def processes(self) -> list[psutil.Process]:
        """The user's running processes."""
        uid = pwd.getpwnam(self.user).pw_uid
        return [p for p in psutil.process_iter(["uids"]) if p.info["uids"] and p.info["uids"].real == uid]


@contextlib.contextmanager
def ssh_bed() -> Iterator[SshBed]:
    """Make user, keys and server; skips where system tests are not enabled."""
    if not system_tests_enabled():
        pytest.skip(f"needs root, a test user and sshd; {HOW_TO_ENABLE}")
    remove_stale_beds()
    with contextlib.ExitStack() as undo:
        directory = Path(tempfile.mkdtemp(prefix=_BED_PREFIX))
        undo.callback(shutil.rmtree, directory)
        directory.chmod(0o711)
        lock = undo.enter_context((directory / _LOCK_NAME).open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel gives it up however this process ends
        program = undo.enter_context(sshd_program())
        user = f"{_USER_PREFIX}{secrets.token_hex(4)}"
        home = directory / "home"
        # A password of "*" admits none but, unlike the default "!", does not lock the account for keys.
        _command("useradd", "-m", "-d", str(home), "-s", "/bin/bash", "-p", "*", user)
        undo.callback(_remove_user, user)
        sshd = Sshd(program, directory / "sshd")
        undo.callback(sshd.stop)
        sshd.start()
        yield SshBed(directory, user, home, sshd)


@pytest.fixture(scope="session")
def bed() -> Iterator[SshBed]:
    """One bed for all tests of a session."""
    with ssh_bed() as made:
        yield made


def make_key(path: Path, *, passphrase: str = "") -> Path:
    """A fresh Ed25519 key pair: `path` and `path.pub`."""
    _command("ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "test", "-f", str(path))
    return path


def free_port(address: str) -> int:
    """A port that nobody listens on at `address` right now."""
    with _loopback_socket(address) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def _loopback_socket(address: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)


def python_for_all() -> Path:
    """An interpreter that every user can run: this one, else the system's; skips when there is none."""
    for python in (Path(sys.executable).resolve(), Path("/usr/bin/python3"), Path("/usr/local/bin/python3")):
        if python.exists() and all(parent.stat().st_mode & 0o001 for parent in (python, *python.parents)):
            return python
    pytest.skip("there is no Python that the test user can run")


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGKILL)
    process.kill()
    process.wait()


def remove_stale_beds() -> None:
    """End the servers of test runs that were killed, and remove their users and directories."""
    users = {Path(entry.pw_dir): entry.pw_name for entry in pwd.getpwall() if _is_test_user(entry)}
    directories = {home.parent for home in users} | set(Path(tempfile.gettempdir()).glob(f"{_BED_PREFIX}*"))
    for directory in sorted(directories):
        if not _abandoned(directory):
            continue
        for process in psutil.process_iter(["cmdline"]):
            if f"{directory}/" in " ".join(process.info["cmdline"] or ()):  # sshd's is one rewritten title
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        if directory / "home" in users:
            with contextlib.suppress(KeyError, subprocess.CalledProcessError):  # another run was faster
                _remove_user(users[directory / "home"])
        shutil.rmtree(directory, ignore_errors=True)


def _is_test_user(entry: pwd.struct_passwd) -> bool:
    home = Path(entry.pw_dir)
    return entry.pw_name.startswith(_USER_PREFIX) and home.parent.name.startswith(_BED_PREFIX)


def _abandoned(directory: Path) -> bool:
    """Whether the process that made this bed has ended."""
    try:
        with (directory / _LOCK_NAME).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return not directory.exists() or time.time() - directory.stat().st_mtime > _YOUNG_S
    return True


def _remove_user(user: str) -> None:
    """End the user's processes, wait until they are gone, and remove the account."""
    uid = pwd.getpwnam(user).pw_uid
    left = [p for p in psutil.process_iter(["uids"]) if p.info["uids"] and p.info["uids"].real == uid]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=PATIENCE_S)
    _command("userdel", "--force", user)


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
