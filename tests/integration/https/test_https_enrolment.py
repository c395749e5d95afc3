"""Enrolling over HTTPS where something else than an honest agent answers."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedctl.core.errors import TrustError, UsageError
from fedctl.core.home import Home
from fedctl.ops import devices
from fedctl.ops.devices import NewDevice
from fedctl.ops.enrolment.https import EnrolmentToken
from fedctl.ops.fleet import init
from fedctl.store import Store
from fedctl_wire.signing import key_id, private_key_from_pem, public_key
from tests.fakes.agent_server import FakeAgent, error
from tests.fakes.tls_place import Fleet, TlsPlace

SECRET = "abcdefghijklmnopqrstuvwxyz234567"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    init(made)
    return made


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    with Store.open(home) as opened:
        yield opened


class Newcomer:
    """A device that is in no fleet, with a token of its own, whose agent says what a test wants."""

    def __init__(self, directory: Path) -> None:
        files, self.pin = Fleet(directory).device()
        self.key = public_key(private_key_from_pem(files.key.read_bytes(), what="key"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        self.agent = FakeAgent(TlsPlace(context))
        self.agent.identity = replace(self.agent.identity, identity_key=self.key)

    def add(self, store: Store, home: Home) -> devices.AddResult:
        assert isinstance(self.agent.place, TlsPlace)
        new = NewDevice(name="watch-1", url=self.agent.place.url)
        return devices.add(store, home, new, token=f"fedctl-{SECRET}-{self.pin}\n")


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    made = Newcomer(tmp_path / "device")
    with made.agent:
        yield made


@pytest.mark.parametrize("said", ["cd" * 32, "none"])
def test_a_device_that_proves_one_key_and_claims_another(
    store: Store, home: Home, newcomer: Newcomer, said: str
) -> None:
    newcomer.agent.identity = replace(newcomer.agent.identity, identity_key=said)
    with pytest.raises(TrustError, match="proves one identity key and says that it has another"):
        newcomer.add(store, home)
    assert all(method == "GET" for method, _ in newcomer.agent.requests)
    assert store.devices() == ()


def test_what_the_device_says_of_the_token_is_told(store: Store, home: Home, newcomer: Newcomer) -> None:
    newcomer.agent.answers["/enrolment"] = error(401, "token", "the token has expired")
    with pytest.raises(TrustError, match="watch-1: the token has expired") as caught:
        newcomer.add(store, home)
    assert caught.value.code == "token"
    assert store.devices() == ()
    assert store.fleet().roster_serial == 0


def test_the_secret_goes_to_the_device_and_nowhere_else(store: Store, home: Home, newcomer: Newcomer) -> None:
    token = EnrolmentToken.parse(f"  fedctl-{SECRET}-{newcomer.pin}\n")
    assert (token.secret, token.pin) == (SECRET, key_id(newcomer.key))
    assert SECRET not in repr(token)
    newcomer.add(store, home)
    assert newcomer.agent.authorizations == [f"Bearer {SECRET}"]
    assert SECRET not in str(store.events())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fedctl",
        f"fedctl-{SECRET}",
        f"fedctl-{SECRET.upper()}-{'0' * 64}",
        f"fedctl-{SECRET[:-1]}-{'0' * 64}",
        f"fedctl-{SECRET[:-1]}1-{'0' * 64}",
        f"fedctl-{SECRET}-{'0' * 63}",
        f"fedctl-{SECRET}-{'0' * 64} trailing",
    ],
)
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="no enrolment token") as caught:
        EnrolmentToken.parse(text)
    assert SECRET[:-1] not in caught.value.message + caught.value.hint
