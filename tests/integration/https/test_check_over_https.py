"""`devices check` over HTTPS: each way to break it is found at its own step."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedctl.core.check_verdicts import Verdict
from fedctl.core.errors import ExitCode
from fedctl.core.home import Home
from fedctl.ops.check import DeviceCheck, check
from fedctl.ops.devices import NewDevice, add, ping
from fedctl.ops.fleet import init
from fedctl.ops.roster import keep_roster
from fedctl.release.keys import load_root, operator_certificate_path
from fedctl.release.trust import sign_roster
from fedctl.store import Store
from fedctl_wire.signing import generate_key, public_key
from tests.fleet import prepare
from tests.integration.https.test_https_agent import HttpsAgent
from tests.system import free_port

WAY = ["name", "port", "tls", "certificate", "agent"]


class Watch:
    """An enrolled device that listens for HTTPS, and how to look at it."""

    def __init__(self, home: Home, store: Store, agent: HttpsAgent) -> None:
        self.home, self.store, self.agent = home, store, agent

    def look(self, **changes: str) -> DeviceCheck:
        (result,) = check(self.store, self.home, [replace(self.store.device("w1"), **changes)])
        return result


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    home = Home(tmp_path / "home")
    init(home)
    agent = HttpsAgent("w1", tmp_path / "w1")
    try:
        prepare(agent.state, rows=40, seed=1)
        agent.port = free_port("127.0.0.1")
        agent.start()
        with Store.open(home) as store:
            add(store, home, NewDevice(name="w1", url=agent.url), token=agent.enrol())
            yield Watch(home, store, agent)
    finally:
        agent.kill()


def ended_at(result: DeviceCheck, step: str, code: ExitCode) -> None:
    (failed,) = [f for f in result.findings if f.verdict is Verdict.FAILED]
    assert failed.check == step
    assert failed.hint
    assert not result.reached
    assert result.error is not None
    assert result.error.exit_code == code


def test_all_is_well(watch: Watch) -> None:
    result = watch.look()
    assert [finding.check for finding in result.findings[:5]] == WAY
    assert {f.verdict for f in result.findings} <= {Verdict.WELL, Verdict.NOTE}
    assert result.findings[3].text == "operator's certificate accepted"
    assert result.error is None


def test_another_key_answers(watch: Watch) -> None:
    ended_at(watch.look(identity_key=public_key(generate_key())), "tls", ExitCode.TRUST)


def test_nobody_listens(watch: Watch) -> None:
    url = f"https://127.0.0.1:{free_port('127.0.0.1')}"
    ended_at(watch.look(url=url), "port", ExitCode.UNREACHABLE)


def test_what_answers_speaks_no_tls(watch: Watch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer_in_clear, args=(listener,), daemon=True).start()
        result = watch.look(url=f"https://127.0.0.1:{listener.getsockname()[1]}")
    ended_at(result, "tls", ExitCode.PARTIAL)


def answer_in_clear(listener: socket.socket) -> None:
    """As a web server without TLS: twice, for the look at the port and for the handshake."""
    for _ in range(2):
        link, _ = listener.accept()
        with link:
            if link.recv(1):
                link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_an_operator_who_was_revoked(watch: Watch) -> None:
    fleet = watch.store.fleet()
    revoking = sign_roster(
        fleet=fleet.uuid,
        serial=fleet.roster_serial + 1,
        issued_at="2026-01-01T00:00:00.000Z",
        operator_key=public_key(generate_key()),
        devices=[],
        root_key=load_root(watch.home),
    )
    keep_roster(watch.home, revoking)
    watch.store.set_roster_serial(fleet.roster_serial + 1)
    ping(watch.store, watch.home, watch.store.devices())  # brings the roster
    ended_at(watch.look(), "certificate", ExitCode.TRUST)


def test_a_home_without_the_operators_certificate(watch: Watch) -> None:
    operator_certificate_path(watch.home).unlink()
    result = watch.look()
    ended_at(result, "certificate", ExitCode.CONFIG)
    assert next(f for f in result.findings if f.check == "tls").verdict is Verdict.NOT_REACHED
