"""The agent behind a real sshd: trust, the restricted key, the bridge's life."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fedctl.core.errors import ConfigError, DeviceError, ExitCode, TrustError, UnreachableError
from fedctl.transport import AgentClient, Endpoint, connect, sweep
from fedctl.transport.sshlink import fingerprint
from tests.fakes.agent_server import FakeAgent, RawPeer
from tests.system import SshBed, Sshd, eventually, make_key

pytestmark = pytest.mark.system


def client_of(
    bed: SshBed, command: str, *, host_key: str | None = None, url: str | None = None, timeout_s: float = 30
) -> AgentClient:
    return connect(
        device="watch-1",
        url=url or bed.url,
        host_key=host_key or bed.host_key,
        login_key=bed.authorize(command),
        timeout_s=timeout_s,
    )


def test_the_fast_cipher_is_agreed_on_and_small_packets_are_not_delayed(
    bed: SshBed, agent: FakeAgent
) -> None:
    with client_of(bed, bed.bridge_command(agent.socket_path)) as client:
        client.health()
        link = client._transport._link  # type: ignore[attr-defined]  # the SSH one
        assert link.remote_cipher == link.local_cipher == "aes128-gcm@openssh.com"
        assert link.host_key_type == "ssh-ed25519"
        assert link.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_dead_address_does_not_take_all_the_time(
    bed: SshBed, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = socket.getaddrinfo
    with contextlib.ExitStack() as stack:
        dead = stack.enter_context(socket.socket())
        dead.bind(("127.0.0.2", bed.sshd.port))
        dead.listen(0)
        for _ in range(4):  # more than its queue holds: whoever comes now hears nothing
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(dead.getsockname())

        def two(host: str, port: int, *words: int, **more: int) -> list[tuple[object, ...]]:
            return [*found("127.0.0.2", port, *words, **more), *found(host, port, *words, **more)]

        monkeypatch.setattr(socket, "getaddrinfo", two)
        with client_of(bed, bed.bridge_command(agent.socket_path), timeout_s=6) as client:
            assert client.health().boot_id == "boot-1"


def test_little_is_on_the_way_when_a_connection_is_cut(bed: SshBed, agent: FakeAgent) -> None:
    with client_of(bed, bed.bridge_command(agent.socket_path)) as client:
        client.health()
        link = client._transport._link  # type: ignore[attr-defined]  # the SSH one
        (channel,) = link._channels.values()
        assert 0 < channel.out_window_size <= 256 * 1024


def test_another_host_key_than_the_pinned_one(bed: SshBed, agent: FakeAgent, tmp_path: Path) -> None:
    other = " ".join(make_key(tmp_path / "other").with_suffix(".pub").read_text().split()[:2])
    with (
        client_of(bed, bed.bridge_command(agent.socket_path), host_key=other) as client,
        pytest.raises(TrustError) as caught,
    ):
        client.health()
    assert caught.value.exit_code == ExitCode.TRUST
    assert caught.value.code == "host_key"
    assert fingerprint(bed.host_key) in caught.value.message
    assert fingerprint(other) in caught.value.message
    assert agent.requests == []


@pytest.mark.parametrize("pinned", ["", "nonsense", "ssh-ed25519 !!!", "ssh-rsa AAAA"])
def test_a_pinned_key_that_is_none_trusts_nobody(bed: SshBed, agent: FakeAgent, pinned: str) -> None:
    login_key = bed.authorize(bed.bridge_command(agent.socket_path))
    with (
        connect(device="watch-1", url=bed.url, host_key=pinned, login_key=login_key) as client,
        pytest.raises(TrustError, match="watch-1"),
    ):
        client.health()


def test_a_changed_host_key_ends_it(bed: SshBed, agent: FakeAgent) -> None:
    sshd = Sshd(bed.sshd.program, bed.new_directory("changing") / "sshd", address="127.0.0.2")
    try:
        sshd.start()
        url, pinned = f"ssh://{bed.user}@{sshd.address}:{sshd.port}", sshd.host_key
        client = client_of(bed, bed.bridge_command(agent.socket_path), host_key=pinned, url=url)
        sshd.authorized_keys.write_text(bed.sshd.authorized_keys.read_text())
        with client:
            client.health()
            sshd.stop()
            with pytest.raises(UnreachableError, match="watch-1"):
                client.health()
            sshd.new_host_key()
            sshd.start()
            with pytest.raises(TrustError, match="another host key than when it was enrolled"):
                client.health()
    finally:
        sshd.stop()


def test_a_refused_login(bed: SshBed, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    with (
        connect(device="watch-1", url=bed.url, host_key=bed.host_key, login_key=stranger) as client,
        pytest.raises(TrustError) as caught,
    ):
        client.health()
    assert caught.value.code == "login"
    assert bed.user in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("content", [None, "no key", "encrypted"])
def test_a_login_key_that_cannot_be_used(bed: SshBed, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "login"
    if content == "encrypted":
        make_key(path, passphrase="secret")
    elif content is not None:
        path.write_text(content)
    with (
        connect(device="watch-1", url=bed.url, host_key=bed.host_key, login_key=path) as client,
        pytest.raises(ConfigError, match=f"{path} cannot be used: ") as caught,
    ):
        client.health()
    assert ("it is encrypted" in caught.value.message) is (content == "encrypted")


def test_the_restricted_key_can_do_nothing_else(bed: SshBed, agent: FakeAgent) -> None:
    """Whatever the caller asks to run, the forced command runs."""
    key = bed.authorize(bed.bridge_command(agent.socket_path))
    command = ["ssh", "-i", str(key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    command += ["-o", "IdentitiesOnly=yes", "-F", "none", "-p", str(bed.sshd.port)]
    done = subprocess.run(
        [*command, f"{bed.user}@{bed.sshd.address}", "id"],
        input=b"GET /v1/health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        capture_output=True,
        check=False,
    )
    assert b"uid=" not in done.stdout
    assert done.stdout.startswith(b"fedctl-agent dial-stdio 1\nHTTP/1.1 200 ")


@pytest.fixture
def bashrc(bed: SshBed) -> Iterator[Path]:
    """The user's start-up file, which bash reads even for the forced command."""
    start_up = bed.home / ".bashrc"
    before = start_up.read_text()
    yield start_up
    start_up.write_text(before)


@pytest.mark.parametrize(
    "command",
    [
        "echo 'welcome to this watch'",
        "printf '\\033[2Jwatch'",
        "printf 'no end of line'",
        "seq 5000",
        "echo oops >&2",
        "echo 'fedctl-agent dial-stdio is here'",
    ],
)
def test_a_chatty_start_up_file_is_heard_out(
    bed: SshBed, agent: FakeAgent, bashrc: Path, command: str
) -> None:
    bashrc.write_text(f"{command}\n")
    with client_of(bed, bed.bridge_command(agent.socket_path)) as client:
        assert client.health().boot_id == "boot-1"
        assert client.health().boot_id == "boot-1"


def test_a_chatty_start_up_file_does_not_hide_why_the_agent_is_down(bed: SshBed, bashrc: Path) -> None:
    bashrc.write_text("echo welcome\n")
    command = bed.bridge_command(bed.new_directory("nobody") / "agent.sock")
    with client_of(bed, command) as client, pytest.raises(UnreachableError) as caught:
        client.health()
    assert caught.value.code == "agent_down"


def test_a_start_up_file_that_prints_without_end_is_named(
    bed: SshBed, agent: FakeAgent, bashrc: Path
) -> None:
    bashrc.write_text("yes 'watch\033[2J'\n")
    command = bed.bridge_command(agent.socket_path)
    with client_of(bed, command) as client, pytest.raises(DeviceError) as caught:
        client.health()
    assert caught.value.code == "chatty_login"
    assert "prints 'watch" in caught.value.message
    assert caught.value.message.isprintable()
    assert "start-up file" in caught.value.hint


@pytest.mark.parametrize(
    ("command", "error", "code", "words"),
    [
        ("/nowhere/fedctl-agent dial-stdio", DeviceError, "no_agent", "/nowhere/fedctl-agent"),
        ("echo 'fedctl-agent dial-stdio 2'", DeviceError, "bad_answer", "dial-stdio 2"),
        ("exit 0", UnreachableError, "unreachable", "exit code 0"),
        ("echo broken >&2; exit 3", UnreachableError, "unreachable", "broken"),
        ("kill -9 $$", UnreachableError, "unreachable", "hung up"),
        ("printf 'fedctl-agent dial-stdio: EACCES: no'", TrustError, "socket_mode", "may not open"),
    ],
)
def test_what_is_no_bridge_is_named(
    bed: SshBed, command: str, error: type[Exception], code: str, words: str
) -> None:
    with client_of(bed, command) as client, pytest.raises(error) as caught:
        client.health()
    assert getattr(caught.value, "code", None) == code
    assert words in str(caught.value)
    assert "watch-1" in str(caught.value)


def test_a_socket_that_the_login_may_not_open(bed: SshBed, agent: FakeAgent) -> None:
    agent.socket_path.chmod(0o600)
    with client_of(bed, bed.bridge_command(agent.socket_path)) as client, pytest.raises(TrustError) as caught:
        client.health()
    assert bed.user in caught.value.message


def test_a_bridge_that_hangs_before_its_banner(bed: SshBed, agent: FakeAgent) -> None:
    with client_of(bed, "cat > /dev/null") as client:
        client._timeout_s = 1.0
        with pytest.raises(UnreachableError, match="watch-1"):
            client.health()
    eventually(lambda: not bridges(bed, "cat"), "the command ended with its connection")


def bridges(bed: SshBed, word: str = "dial_stdio") -> list[psutil.Process]:
    """The user's processes with that word in their command line."""
    found = []
    for process in bed.processes():
        try:
            line = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if word in line and "sshd:" not in line:
            found.append(process)
    return found


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_no_bridge_is_left_behind(bed: SshBed, how: str) -> None:
    """The caller goes in the middle of a long poll; the agent has nothing to say."""
    path = bed.new_directory("poll") / "agent.sock"
    asked = threading.Event()

    def serve(link: object) -> None:
        asked.set()
        peer.closing.wait()

    with RawPeer(path, serve) as peer:
        key = bed.authorize(bed.bridge_command(path))
        program = (
            "import sys; from pathlib import Path; from fedctl.transport import connect; "
            "url, host_key, key = sys.argv[1:]; "
            "connect(device='d', url=url, host_key=host_key, login_key=Path(key)).task('ab' * 32, wait_s=600)"
        )
        caller = subprocess.Popen(
            [sys.executable, "-c", program, bed.url, bed.host_key, str(key)], stderr=subprocess.PIPE
        )
        try:
            assert asked.wait(30)
            assert len(bridges(bed)) >= 1
            caller.send_signal(9 if how == "killed" else 2)
        finally:
            caller.communicate()
        eventually(lambda: not bridges(bed), f"no bridge is left: {bridges(bed)}")


def test_a_lost_connection_is_made_anew(bed: SshBed, agent: FakeAgent) -> None:
    with client_of(bed, bed.bridge_command(agent.socket_path)) as client:
        client.health()
        for process in bed.sshd.sessions():
            process.kill()
        client.health()
        assert len(agent.requests) == 2


@pytest.mark.parametrize("what", ["closed port", "silent", "no ssh", "hangs up"])
def test_what_answers_is_no_sshd(bed: SshBed, what: str) -> None:
    closing = threading.Event()

    def serve() -> None:
        link, _ = listener.accept()
        with link:
            if what == "no ssh":
                link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100)
            if what == "silent":
                closing.wait()

    with socket.create_server(("127.0.0.3", 0)) as listener:
        port = listener.getsockname()[1]
        if what == "closed port":
            listener.close()
            thread = threading.Thread()
        else:
            thread = threading.Thread(target=serve)
        thread.start()
        client = client_of(bed, "true", url=f"ssh://{bed.user}@127.0.0.3:{port}", timeout_s=1.0)
        with client, pytest.raises(UnreachableError, match="watch-1"):
            client.health()
        closing.set()
        thread.join()


def test_paramiko_writes_nothing_to_stderr(bed: SshBed) -> None:
    program = (
        "import sys; from pathlib import Path; from fedctl.transport import connect\n"
        "try:\n"
        "    key, host_key = Path(sys.argv[1]), 'ssh-ed25519 AAAA'\n"
        "    connect(device='d', url='ssh://a@127.0.0.4:1', host_key=host_key, login_key=key).health()\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
        "try:\n"
        "    connect(device='d', url=sys.argv[2], host_key=host_key, login_key=key).health()\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
    )
    key = bed.authorize("true")
    done = subprocess.run(
        [sys.executable, "-c", program, str(key), bed.url], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["UnreachableError", "TrustError"]
    assert done.stderr == ""


def test_a_sweep_over_good_and_bad_devices(bed: SshBed, agent: FakeAgent) -> None:
    good = bed.authorize(bed.bridge_command(agent.socket_path))
    calls: dict[str, Callable[[], AgentClient]] = {
        "good": lambda: connect(device="good", url=bed.url, host_key=bed.host_key, login_key=good),
        "down": lambda: connect(
            device="down", url="ssh://127.0.0.4:1", host_key=bed.host_key, login_key=good
        ),
        "false": lambda: connect(device="false", url=bed.url, host_key="ssh-ed25519 AAAA", login_key=good),
    }

    def ping(name: str) -> str:
        with calls[name]() as client:
            return client.health().boot_id

    outcomes = dict(sweep(calls, ping))
    assert outcomes["good"] == "boot-1"
    assert isinstance(outcomes["down"], UnreachableError)
    assert isinstance(outcomes["false"], TrustError)
    assert Endpoint.parse(bed.url).user == bed.user
