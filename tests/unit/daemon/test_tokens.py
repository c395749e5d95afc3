"""The one-time token: how long, how often, and what is left of it on the device."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedctl_agent.state import StateDir
from fedctl_agent.tokens import LIFETIME_S, TRIES, Moment, TokenError, Tokens, moment, open_token
from fedctl_wire.signing import key_id

KEY = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
WRONG = "Bearer " + "a" * 32


class Device:
    """A state directory whose clock the test moves."""

    def __init__(self, path: Path) -> None:
        self.state = StateDir(path)
        self.state.create()
        self.state.identity_public.write_text(KEY + "\n")
        self.now = moment()
        self.tokens = self.restarted()

    def restarted(self) -> Tokens:
        return Tokens(self.state, now=lambda: self.now)

    def open(self) -> str:
        """Open a token; what goes into the header."""
        _, secret, _ = open_token(self.state).split("-")
        self.now = moment()
        return f"Bearer {secret}"

    def later(self, seconds: float) -> None:
        self.now = Moment(self.now.boot_id, self.now.since_boot_s + seconds)

    def refusal(self, authorization: str | None) -> str:
        with pytest.raises(TokenError) as caught:
            self.tokens.check(authorization)
        return str(caught.value)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "state")


def test_it_carries_the_fingerprint_of_the_key_and_160_random_bits(device: Device) -> None:
    first, second = open_token(device.state), open_token(device.state)
    word, secret, fingerprint = first.split("-")
    assert (word, len(secret), fingerprint) == ("fedctl", 32, key_id(KEY))
    assert secret.isalnum()
    assert secret == secret.lower()
    assert first != second


def test_the_device_does_not_keep_it(device: Device) -> None:
    authorization = device.open()
    kept = device.state.token.read_text()
    assert authorization.removeprefix("Bearer ") not in kept.lower()
    assert device.state.token.stat().st_mode & 0o777 == 0o600


def test_the_right_one_opens_and_only_the_latest_counts(device: Device) -> None:
    earlier = device.open()
    device.tokens.check(device.open())
    assert device.refusal(earlier) == "the token is wrong; tries left: 3"


def test_without_any_there_is_nothing_to_guess(device: Device) -> None:
    assert device.refusal(WRONG) == "no token is open on this device"
    device.open()
    assert device.refusal(None) == "enrolment over HTTPS needs a token"


@pytest.mark.parametrize("scheme", ["", "Basic ", "Token ", "Bearer  "])
def test_it_comes_in_the_form_of_a_bearer_token(device: Device, scheme: str) -> None:
    secret = device.open().removeprefix("Bearer ")
    assert "wrong" in device.refusal(scheme + secret)


def test_it_is_void_after_five_tries_also_across_restarts(device: Device) -> None:
    authorization = device.open()
    for left in reversed(range(TRIES)):
        assert device.refusal(WRONG) == f"the token is wrong; tries left: {left}"
        device.tokens = device.restarted()
    assert device.refusal(authorization) == "the token is void after 5 tries"


def test_the_right_one_is_a_try_as_well(device: Device) -> None:
    authorization = device.open()
    for _ in range(TRIES):
        device.tokens.check(authorization)
    assert "void" in device.refusal(authorization)


def test_it_holds_for_15_minutes(device: Device) -> None:
    authorization = device.open()
    device.later(LIFETIME_S - 5)
    device.tokens.check(authorization)
    device.later(10)
    assert device.refusal(authorization) == "the token has expired: it holds for 15 minutes"


def test_it_does_not_outlive_a_boot(device: Device) -> None:
    authorization = device.open()
    device.now = Moment("another boot", device.now.since_boot_s)
    assert "expired" in device.refusal(authorization)


def test_used_it_opens_nothing_any_more(device: Device) -> None:
    authorization = device.open()
    device.tokens.check(authorization)
    device.tokens.use_up()
    device.tokens = device.restarted()
    assert device.refusal(authorization) == "the token has been used already"
    device.tokens.check(device.open())


def test_using_up_what_was_never_opened_is_nothing(device: Device) -> None:
    device.tokens.use_up()
    assert not device.state.token.exists()


@pytest.mark.parametrize("content", [b"", b'{"sha256": "ab', b"[]", b"\0" * 64])
def test_a_damaged_file_is_no_token_and_the_way_out_is_named(device: Device, content: bytes) -> None:
    authorization = device.open()
    device.state.token.write_bytes(content)
    assert device.refusal(authorization) == (
        "this device's token.json is damaged: run fedctl-agent enrol again"
    )
    device.tokens.use_up()  # an enrolment at the socket is not held up by it
    device.tokens.check(device.open())
