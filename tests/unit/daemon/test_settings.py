"""`agent.toml`: where the agent listens for HTTPS."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fedctl_agent.settings import Address, https_address, write_https
from fedctl_agent.state import StateDir
from fedctl_wire.errors import WireError


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("0.0.0.0:7443", "0.0.0.0", 7443),  # noqa: S104
        ("[::]:7443", "::", 7443),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("watch.local:443", "watch.local", 443),
    ],
)
def test_an_address_is_read_and_written_again(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == Address(host, port)
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "7443", ":7443", "::1:7443", "host", "host:", "host:70000", "a b:1", "h:1\n"]
)
def test_what_is_no_address_is_named(text: str) -> None:
    with pytest.raises(WireError, match="is not ADDRESS:PORT"):
        Address.parse(text)


def test_without_file_or_line_there_is_no_https(state: StateDir) -> None:
    assert https_address(state) is None
    state.settings.write_text("job_memory_bytes = 9\n")
    assert https_address(state) is None


@pytest.mark.parametrize("text", ["https = 7443", "https = 'x'", "https = ", "https"])
def test_a_mistake_in_the_file_is_named(state: StateDir, text: str) -> None:
    state.settings.write_text(text)
    with pytest.raises(WireError):
        https_address(state)


@pytest.mark.parametrize(
    "before",
    [
        "",
        "job_memory_bytes = 9",
        "https = '1.2.3.4:5'\njob_memory_bytes = 9\n[a]\nhttps = 'other'\n",
        "[a]\nb = 1\n",
    ],
)
def test_writing_it_leaves_everything_else(state: StateDir, before: str) -> None:
    state.settings.write_text(before)
    write_https(state, Address("::1", 7443))
    after = tomllib.loads(state.settings.read_text())
    assert after == tomllib.loads(before) | {"https": "[::1]:7443"}
    assert https_address(state) == Address("::1", 7443)
