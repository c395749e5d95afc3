"""`devices upgrade` over a real login: nothing to do, a new agent, and the old one back when that fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedctl import __version__
from fedctl.cli.device_upgrade import upgraded
from fedctl.core.errors import ExitCode
from fedctl.core.home import Home
from fedctl.ops import devices
from fedctl.ops.devices import NewDevice
from fedctl.ops.enrolment import install
from fedctl.ops.enrolment.upgrade import UpgradeOutcome, upgrade
from fedctl.release import payload
from fedctl.store import Store
from tests.integration.install.conftest import Board

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("light")]

SOURCE = 'kind = "npz"\npath = "data"\nfeatures = "x"\nlabel = "y"\n'
SILENT = ("fedctl_agent/daemon/server.py", "import time\ndef serve(*_, **__): time.sleep(600)\n")
OTHER = ("fedctl_agent/__init__.py", "__version__ = '9.9'\nRELEASED_AT = '2026-11-24T00:00:00Z'\n")


@pytest.fixture
def launcher(store: Store, home: Home, board: Board, tmp_path: Path) -> str:
    """An enrolled device; what its launcher says."""
    source = tmp_path / "recorder.toml"
    source.write_text(SOURCE)
    new = NewDevice(name="watch-1", url=board.url, source=source)
    devices.add(store, home, new, admin=board.admin)
    return (board.prefix / "bin/fedctl-agent").read_text()


def run(store: Store, home: Home, board: Board, **options: Any) -> UpgradeOutcome:
    (outcome,) = upgrade(store, home, store.devices(), admin=board.admin, **options)
    return outcome


def assert_answers(store: Store, home: Home) -> None:
    (answer,) = devices.ping(store, home, store.devices())
    assert answer.error is None


def kept(board: Board) -> dict[str, bytes]:
    """What an upgrade must not touch."""
    names = ("identity/key.pem", "identity/root.json", "roster.json", "sources/recorder.toml")
    return {name: (board.state / name).read_bytes() for name in names}


def new_agent(monkeypatch: pytest.MonkeyPatch, module: str, text: str, *, same_name: bool = False) -> None:
    """Another agent: `text` is added to one of its modules; with `same_name` its version does not tell."""
    sources, before = payload._sources, payload.build_payload().digest

    def changed() -> Iterator[tuple[str, bytes]]:
        for name, data in sources():
            yield name, data + b"\n" + text.encode() if name == module else data

    def build(tag: str | None = None) -> payload.Payload:
        built = payload.build_payload.__wrapped__(tag)
        return replace(built, digest=before) if same_name else built

    monkeypatch.setattr(payload, "_sources", changed)
    monkeypatch.setattr(install, "build_payload", build)


def test_nothing_is_done_where_this_version_runs(
    store: Store, home: Home, board: Board, launcher: str
) -> None:
    agents, events = {p.pid for p in board.agents()}, len(store.events())
    outcome = run(store, home, board)
    assert (outcome.error, outcome.steps, outcome.before) == (None, (), __version__)
    assert agents <= {p.pid for p in board.agents()}
    assert len(store.events()) == events
    again = run(store, home, board, reinstall=True)
    assert [step.split()[0] for step in again.steps] == ["installed", "started"]
    assert not agents & {p.pid for p in board.agents()}
    assert (board.prefix / "bin/fedctl-agent").read_text() == launcher
    assert len(list((board.prefix / "versions").iterdir())) == 1
    assert store.events()[-1].verb == "device.upgrade"
    assert_answers(store, home)


def test_a_new_agent_keeps_identity_sources_and_membership(
    store: Store, home: Home, board: Board, launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, row = kept(board), store.device("watch-1")
    new_agent(monkeypatch, "fedctl_agent/__init__.py", "# newer")
    outcome = run(store, home, board)
    assert outcome.error is None
    assert outcome.verdict
    assert kept(board) == before
    assert (board.prefix / "bin/fedctl-agent").read_text() != launcher
    assert len(list((board.prefix / "versions").iterdir())) == 1
    after = store.device("watch-1")
    assert (after.identity_key, after.serial) == (row.identity_key, row.serial)
    assert after.facts["payload"] != row.facts["payload"]
    assert_answers(store, home)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(SILENT, "did not start within 4 s"), (OTHER, f"version 9.9 answers instead of {__version__}")],
)
@pytest.mark.parametrize("reinstall", [False, True])
def test_an_agent_that_does_not_answer_gives_way_to_the_old_one(
    store: Store,
    home: Home,
    board: Board,
    launcher: str,
    monkeypatch: pytest.MonkeyPatch,
    change: tuple[str, str],
    reason: str,
    *,
    reinstall: bool,
) -> None:
    before, trees = kept(board), sorted(p.name for p in (board.prefix / "versions").iterdir())
    with monkeypatch.context() as patched:
        new_agent(patched, *change, same_name=reinstall)
        outcome = run(store, home, board, patience_s=4.0, reinstall=reinstall)
    assert outcome.error is not None
    assert outcome.error.code == "rolled_back"
    assert reason in outcome.error.message
    assert f"version {__version__} was put back and answers" in outcome.error.message
    assert "left behind" not in outcome.error.hint
    assert (board.prefix / "bin/fedctl-agent").read_text() == launcher
    assert sorted(p.name for p in (board.prefix / "versions").iterdir()) == trees
    assert kept(board) == before
    assert_answers(store, home)
    assert run(store, home, board).steps == ()


def test_one_that_fails_keeps_nobody_else_back(store: Store, home: Home, board: Board, launcher: str) -> None:
    row = store.device("watch-1")
    gone = board.url.replace(str(board.sshd.port), "1")
    for number, (name, url) in enumerate({"gone": gone, "local": "unix:///run/nobody.sock"}.items(), 1):
        other = replace(row, name=name, url=url, serial=row.serial + number, facts={"admin_url": url})
        store.add_device(replace(other, identity_key=f"{number:064x}"))
    outcomes = upgrade(store, home, store.devices(), admin=board.admin, reinstall=True)
    codes = {o.device: o.error.code if o.error else None for o in outcomes}
    assert codes == {"gone": "unreachable", "local": "not_ssh", "watch-1": None}
    view = upgraded(outcomes)
    assert view.exit_code == ExitCode.PARTIAL
    assert list(view.names) == ["watch-1"]
    hints = {o.device: o.error.hint for o in outcomes if o.error}
    assert f"install fedctl-agent {__version__}" in hints["local"]


def test_a_device_that_lost_its_agent_is_told_how_it_comes_back(
    store: Store, home: Home, board: Board, launcher: str
) -> None:
    (board.prefix / "bin/fedctl-agent").unlink()
    error = run(store, home, board).error
    assert error is not None
    assert error.code == "no_agent"
    again = f"install it again: fedctl devices add watch-1 {board.url}"
    assert error.hint == f"{again} -F {board.admin.ssh_config}"
