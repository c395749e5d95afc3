"""The fleet's key files: made once, refused when others can read them or they are another fleet's."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from fedctl.core.errors import ConfigError, TrustError
from fedctl.core.home import Home
from fedctl.release import keys
from fedctl_wire.signing import generate_key, private_key_to_pem, public_key


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_three_different_ones_that_only_the_owner_may_read(home: Home) -> None:
    made = keys.create_keys(home)
    assert mode_of(home.keys) == 0o700
    assert [mode_of(home.keys / name) for name in ("root", "operator", "login")] == [0o600] * 3
    login = serialization.load_ssh_public_key(made.login.encode()).public_bytes_raw().hex()  # type: ignore[union-attr]
    assert len({made.root, made.operator, login}) == 3
    assert public_key(keys.load_root(home)) == made.root
    assert public_key(keys.load_operator(home)) == made.operator


def test_the_login_key_is_one_that_openssh_reads_and_fits_its_public_line(home: Home) -> None:
    made = keys.create_keys(home)
    private = serialization.load_ssh_private_key(keys.login_path(home).read_bytes(), password=None)
    public = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    assert made.login == f"{public.decode()} fedctl" == keys.login_public(home)


def test_making_keys_again_keeps_them(home: Home) -> None:
    assert keys.create_keys(home) == keys.create_keys(home)


def test_the_root_may_live_elsewhere(home: Home, tmp_path: Path) -> None:
    elsewhere = tmp_path / "stick" / "root.pem"
    made = keys.create_keys(home, elsewhere)
    assert not (home.keys / "root").exists()
    assert mode_of(elsewhere) == 0o600
    assert public_key(keys.load_root(home, elsewhere, expected=made.root)) == made.root
    with pytest.raises(ConfigError) as error:
        keys.load_root(home)
    assert str(home.keys / "root") in error.value.message
    assert "--root-key" in error.value.hint


def test_a_key_of_another_fleet_is_a_matter_of_trust(home: Home) -> None:
    keys.create_keys(home)
    for load, name in ((keys.load_root, "root"), (keys.load_operator, "operator")):
        with pytest.raises(TrustError, match=name) as error:
            load(home, expected="00" * 32)
        assert str(home.keys / name) in error.value.message
        assert error.value.code == "wrong_key"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_a_key_that_others_can_reach_is_refused_and_named(home: Home, mode: int) -> None:
    keys.create_keys(home)
    path = home.keys / "operator"
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"{mode:04o}") as error:
        keys.load_operator(home)
    assert error.value.subject == str(path)
    assert error.value.hint == f"chmod 600 {path}"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_key_of_another_user_is_refused(home: Home) -> None:
    keys.create_keys(home)
    os.chown(home.keys / "root", 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to user 65534"):
        keys.load_root(home)


@pytest.mark.parametrize(
    "content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_file_that_is_no_key_is_named(home: Home, content: bytes) -> None:
    keys.create_keys(home)
    (home.keys / "root").write_bytes(content)
    with pytest.raises(ConfigError, match="root"):
        keys.load_root(home)


def test_a_login_key_of_another_kind_is_refused(home: Home) -> None:
    home.keys.mkdir(parents=True)
    keys.login_path(home).write_bytes(private_key_to_pem(generate_key()))
    keys.login_path(home).chmod(0o600)
    with pytest.raises(ConfigError, match="OpenSSH private key"):
        keys.create_keys(home)


def test_the_line_for_a_device_forces_the_one_command(home: Home) -> None:
    made = keys.create_keys(home)
    line = keys.login_key_line(home, "/home/pi/bin/fedctl-agent dial-stdio --socket /s")
    assert line == (f'restrict,command="/home/pi/bin/fedctl-agent dial-stdio --socket /s" {made.login}')


@pytest.mark.parametrize("command", ['a" b', "a\nb", "a\\b"])
def test_a_command_that_could_break_out_of_the_line_is_refused(home: Home, command: str) -> None:
    keys.create_keys(home)
    with pytest.raises(ConfigError, match="authorized_keys"):
        keys.login_key_line(home, command)


def test_a_home_that_is_a_file_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        keys.create_keys(Home(tmp_path / "file"))
