"""`init`: once, again, half-way, and where it must not."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError, TrustError
from fedctl.core.home import Home
from fedctl.ops.authority import fleet_root, operator_identity
from fedctl.ops.fleet import both_wheels_installed, init
from fedctl.release.keys import operator_certificate_path
from fedctl.store import Store


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_it_makes_home_keys_database_and_an_event(home: Home) -> None:
    result = init(home)
    assert result.created
    assert result.root_key == home.keys / "root"
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    names = ["login", "login.pub", "operator", "operator.crt", "root"]
    assert sorted(p.name for p in home.keys.iterdir()) == names
    with Store.open(home) as store:
        assert store.fleet() == result.fleet
        (event,) = store.events()
    assert (event.verb, event.subject) == ("fleet.init", result.fleet.uuid)


def test_a_second_one_changes_nothing(home: Home) -> None:
    first = init(home)
    before = {p: p.read_bytes() for p in home.keys.iterdir()}
    second = init(home)
    assert not second.created
    assert second.fleet == first.fleet
    assert {p: p.read_bytes() for p in home.keys.iterdir()} == before


def test_no_half_written_private_key_stays(home: Home) -> None:
    home.keys.mkdir(parents=True)
    (home.keys / ".root.i1wpm_gq").write_text("half a private key")
    init(home)
    assert not list(home.keys.glob(".*"))


def test_the_root_key_may_live_elsewhere(home: Home, tmp_path: Path) -> None:
    elsewhere = tmp_path / "usb" / "root"
    init(home, root_key=elsewhere)
    assert elsewhere.exists()
    assert not (home.keys / "root").exists()
    assert init(home, root_key=elsewhere).root_key == elsewhere
    assert init(home).root_key is None  # it is not here, and nobody said where


def test_another_root_key_than_the_fleets_is_refused(home: Home, tmp_path: Path) -> None:
    init(home)
    other = Home(tmp_path / "other")
    init(other)
    for path in (other.keys / "root", tmp_path / "nothing"):
        with pytest.raises(ConfigError, match="whose root key is not"):
            init(home, root_key=path)
    assert not (tmp_path / "nothing").exists()


def test_a_lost_operator_key_is_noticed(home: Home, tmp_path: Path) -> None:
    init(home)
    other = Home(tmp_path / "other")
    init(other)
    (home.keys / "operator").write_bytes((other.keys / "operator").read_bytes())
    with pytest.raises(TrustError, match="operator"):
        init(home)


@pytest.mark.parametrize("leave", [("keys",), ("keys", "fedctl.db"), ("fedctl.db",)])
def test_one_that_was_killed_half_way_is_completed(home: Home, leave: tuple[str, ...]) -> None:
    home.path.mkdir(mode=0o700)
    if "keys" in leave:
        made = init(home)
        home.database.unlink()
        for name in ("login", "login.pub"):
            (home.keys / name).unlink()
    if "fedctl.db" in leave:
        home.database.touch()
    result = init(home)
    assert result.created
    if "keys" in leave:
        assert result.fleet.root_key == made.fleet.root_key
    assert not init(home).created


def test_two_at_once_make_one_fleet(home: Home) -> None:
    program = (
        "import sys; from pathlib import Path; from fedctl.ops.fleet import init; "
        "from fedctl.core.home import Home; print(init(Home(Path(sys.argv[1]))).fleet.root_key)"
    )
    words = [sys.executable, "-c", program, str(home.path)]
    runs = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    keys = {run.communicate()[0] for run in runs}
    assert len(keys) == 1
    assert all(run.returncode == 0 for run in runs)


def test_a_demo_home_is_refused_with_the_way_out(home: Home) -> None:
    init(home, demo=True)
    with pytest.raises(ConfigError) as caught:
        init(home)
    assert "fedctl demo --stop" in caught.value.hint
    assert init(home, demo=True).fleet.demo


def test_a_file_in_the_homes_place_is_named(home: Home) -> None:
    home.path.write_text("not a directory")
    with pytest.raises(ConfigError, match=str(home.path)):
        init(home)


def test_this_environment_has_one_of_the_two_wheels() -> None:
    assert not both_wheels_installed()


def test_both_wheels_in_one_environment_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "fedctl_agent-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fedctl-agent\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert both_wheels_installed()


# ------------------------------------------------------------------ the operator's certificate


def test_a_home_from_before_https_gets_the_operators_certificate_when_the_root_is_at_hand(
    home: Home, tmp_path: Path
) -> None:
    stick = tmp_path / "usb" / "root"
    fleet = init(home, root_key=stick).fleet
    path = operator_certificate_path(home)
    made = path.read_bytes()
    path.unlink()
    init(home)  # the root is elsewhere, and nobody said where
    with pytest.raises(ConfigError, match=r"certificate .* is missing: without it") as error:
        operator_identity(home)
    assert error.value.code == "no_certificate"
    assert "--root-key PATH" in error.value.hint
    init(home, root_key=stick)
    assert path.read_bytes() == made
    assert operator_identity(home).certificate == path
    path.write_bytes(b"a certificate of another home")
    fleet_root(home, fleet, stick)  # as every command does that adds or removes a device
    assert path.read_bytes() == made


def test_an_operator_key_that_others_can_read_is_shown_to_no_device(home: Home) -> None:
    init(home)
    (home.keys / "operator").chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        operator_identity(home)
