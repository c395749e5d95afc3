"""`devices check` behind a real sshd: each way to break it is found at its own step, with a way out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fedctl.core.check_verdicts import Finding, Verdict
from fedctl.core.errors import ExitCode
from fedctl.core.home import Home
from fedctl.ops.check import DeviceCheck, check
from fedctl.ops.devices import NewDevice, add
from fedctl.ops.fleet import init
from fedctl.release.keys import login_path
from fedctl.store import Store
from tests.fleet import TestAgent, prepare
from tests.system import SshBed, free_port, make_key

pytestmark = pytest.mark.system

WAY = ["name", "port", "host_key", "login", "bridge", "agent"]
THERE = ["identity", "version", "clock", "roster", "disk", "cgroup", "limits"]


@dataclass
class Watch:
    """An enrolled device behind sshd, and how to look at it."""

    bed: SshBed
    home: Home
    store: Store
    agent: TestAgent

    def look(self, **changes: object) -> DeviceCheck:
        device = self.store.device("watch-1")
        changed = replace(device, **changes)  # type: ignore[arg-type]
        (result,) = check(self.store, self.home, [changed])
        return result

    def let_in(self, command: str | None = None) -> None:
        """Put the fleet's login key into authorized_keys, as an installation does."""
        command = command or self.bed.bridge_command(self.agent.socket)
        quoted = command.replace("\\", "\\\\").replace('"', '\\"')
        public = login_path(self.home).with_suffix(".pub").read_text()
        self.bed.sshd.authorized_keys.write_text(f'restrict,command="{quoted}" {public}')


@pytest.fixture
def watch(bed: SshBed, tmp_path: Path) -> Iterator[Watch]:
    home = Home(tmp_path / "home")
    init(home)
    agent = TestAgent("watch-1", bed.new_directory("check") / "state")
    kept = bed.sshd.authorized_keys.read_text()
    try:
        prepare(agent.state, rows=40, seed=1)
        agent.start()
        agent.state.chmod(0o711)
        agent.socket.chmod(0o666)  # the login is another user than the agent
        with Store.open(home) as store:
            add(store, home, NewDevice(name="watch-1", url=f"unix://{agent.socket}"))
            at_socket = store.device("watch-1")
            store.remove_device("watch-1")
            store.add_device(replace(at_socket, url=bed.url, host_key=bed.host_key))
            made = Watch(bed, home, store, agent)
            made.let_in()
            yield made
    finally:
        agent.kill()
        bed.sshd.authorized_keys.write_text(kept)


def ended_at(result: DeviceCheck, step: str) -> Finding:
    """The one finding that failed; all before it went well, nothing behind it was reached."""
    order = [finding.check for finding in result.findings]
    assert order == WAY + THERE
    split = order.index(step)
    assert {f.verdict for f in result.findings[:split]} <= {Verdict.WELL}
    assert {f.verdict for f in result.findings[split + 1 :]} <= {Verdict.NOT_REACHED}
    failed = result.findings[split]
    assert failed.verdict is Verdict.FAILED
    assert failed.hint
    return failed


def code(result: DeviceCheck) -> ExitCode | None:
    return None if result.error is None else result.error.exit_code


def test_all_is_well(watch: Watch) -> None:
    result = watch.look()
    assert [finding.check for finding in result.findings] == WAY + THERE
    assert {f.verdict for f in result.findings} <= {Verdict.WELL, Verdict.NOTE}
    assert result.reached
    assert result.error is None
    assert watch.store.device("watch-1").last_seen is not None


def test_a_name_that_does_not_resolve(watch: Watch) -> None:
    result = watch.look(url="ssh://pi@no-such-host.invalid:22")
    assert "does not resolve" in ended_at(result, "name").text
    assert code(result) == ExitCode.UNREACHABLE


def test_a_port_where_nobody_listens(watch: Watch) -> None:
    port = free_port("127.0.0.1")
    result = watch.look(url=f"ssh://{watch.bed.user}@127.0.0.1:{port}")
    assert f"port {port} of 127.0.0.1 is closed" in ended_at(result, "port").text
    assert code(result) == ExitCode.UNREACHABLE


def test_another_host_key(watch: Watch, tmp_path: Path) -> None:
    other = " ".join(make_key(tmp_path / "other").with_suffix(".pub").read_text().split()[:2])
    result = watch.look(host_key=other)
    ended_at(result, "host_key")
    assert code(result) == ExitCode.TRUST


def test_a_login_that_is_refused(watch: Watch) -> None:
    watch.bed.sshd.authorized_keys.write_text("")
    result = watch.look()
    ended_at(result, "login")
    assert code(result) == ExitCode.TRUST


@pytest.mark.parametrize("command", ["/no/such/fedctl-agent dial-stdio", "echo hello", "exit 3"])
def test_a_bridge_that_does_not_start(watch: Watch, command: str) -> None:
    watch.let_in(command)
    result = watch.look()
    failed = next(f for f in result.findings if f.verdict is Verdict.FAILED)
    assert failed.check == "bridge"
    assert failed.hint
    assert not result.reached


def test_an_agent_that_is_down(watch: Watch) -> None:
    watch.agent.kill()
    result = watch.look()
    ended_at(result, "agent")
    assert code(result) == ExitCode.UNREACHABLE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"identity_key": "0" * 64}, "shows another identity"),
        ({"name": "watch-2"}, "is not enrolled as watch-2 any more"),
    ],
)
def test_another_device_at_its_address(watch: Watch, changes: dict[str, str], said: str) -> None:
    result = watch.look(**changes)
    assert said in ended_at(result, "identity").text
    assert code(result) == ExitCode.TRUST


def test_a_jump_host_that_is_not_there(watch: Watch, tmp_path: Path) -> None:
    config = tmp_path / "ssh_config"
    config.write_text("")
    nobody = f"ssh://{watch.bed.user}@127.0.0.1:{free_port('127.0.0.1')}"
    hops = [{"url": nobody, "host_key": watch.bed.host_key}]
    result = watch.look(facts={"jump": hops, "ssh_config": str(config)})
    assert result.findings[0].check == "jump"
    assert result.findings[0].verdict is Verdict.FAILED
    assert {f.verdict for f in result.findings[1:]} == {Verdict.NOT_REACHED}
    assert code(result) == ExitCode.UNREACHABLE
