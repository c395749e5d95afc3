"""known_hosts and the decision whether to trust a host key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import shutil
import subprocess
from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError, ExitCode, TrustError
from fedctl.transport.hostkeys import KnownHosts, check_host_key
from fedctl.transport.sshlink import fingerprint


def key(seed: str, kind: str = "ssh-ed25519") -> str:
    return f"{kind} {base64.b64encode(hashlib.sha256(seed.encode()).digest()).decode()}"


A, B, RSA = key("a"), key("b"), key("r", "ssh-rsa")


def known(tmp_path: Path, text: str, host: str = "watch", port: int = 22) -> KnownHosts:
    path = tmp_path / "known_hosts"
    path.write_text(text)
    return KnownHosts.read([tmp_path / "absent", path], host, port)


def hashed(name: str) -> str:
    salt = b"0123456789abcdefghij"
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


@pytest.mark.parametrize(
    ("patterns", "host", "port", "found"),
    [
        ("watch", "watch", 22, True),
        ("watch", "watch2", 22, False),
        ("other,watch", "watch", 22, True),
        ("WATCH", "watch", 22, True),
        ("watch-*", "watch-7", 22, True),
        ("watch-?", "watch-77", 22, False),
        ("*,!watch", "watch", 22, False),
        ("!watch,*", "watch", 22, False),
        ("[watch]:2222", "watch", 2222, True),
        ("[watch]:*", "watch", 2222, True),
        ("watch", "watch", 2222, False),
        ("[watch]:2222", "watch", 22, False),
        ("[w]*", "watch", 22, False),
        (hashed("watch"), "watch", 22, True),
        (hashed("watch"), "clock", 22, False),
        (hashed("[watch]:2222"), "watch", 2222, True),
        ("|1|broken", "watch", 22, False),
        ("|1|a|b|c", "watch", 22, False),
    ],
)
def test_names_match_as_in_openssh(
    tmp_path: Path, patterns: str, host: str, port: int, *, found: bool
) -> None:
    hosts = known(tmp_path, f"{patterns} {A} comment\n", host, port)
    assert hosts.keys == (frozenset({A}) if found else frozenset())


def test_the_hash_is_openssh_s(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "k")],
        check=True,
        capture_output=True,
    )
    shown = " ".join((tmp_path / "k.pub").read_text().split()[:2])
    path = tmp_path / "known_hosts"
    path.write_text(f"watch {shown}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(path)], check=True, capture_output=True)
    assert "watch" not in path.read_text()
    assert KnownHosts.read([path], "watch", 22).keys == {shown}
    printed = subprocess.run(
        ["ssh-keygen", "-lf", f"{tmp_path}/k.pub"], check=True, capture_output=True, text=True
    )
    assert fingerprint(shown) in printed.stdout


def test_lines_that_are_no_keys_are_skipped(tmp_path: Path) -> None:
    text = f"# watch {A}\n\nwatch\nwatch ssh-ed25519\n@cert-authority watch {B}\n\xff\xfe\nwatch {RSA}\n"
    hosts = known(tmp_path, text)
    assert hosts.keys == {RSA}
    assert hosts.key_types == ["ssh-rsa"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        KnownHosts.read([tmp_path], "watch", 22)


def check(
    shown: str,
    hosts: KnownHosts,
    *,
    accept: str | None = None,
    answer: bool | None = None,
    pinned: str | None = None,
) -> list[str]:
    asked: list[str] = []

    def ask(question: str) -> bool:
        asked.append(question)
        return bool(answer)

    check_host_key(
        shown, hosts, where="watch", accept=accept, ask=None if answer is None else ask, pinned=pinned
    )
    return asked


def test_a_known_key_is_trusted_without_a_question(tmp_path: Path) -> None:
    assert check(A, known(tmp_path, f"watch {A}\nwatch {RSA}\n"), answer=False) == []


def test_an_unknown_key_is_asked_about(tmp_path: Path) -> None:
    (question,) = check(A, known(tmp_path, ""), answer=True)
    assert fingerprint(A) in question
    assert "watch" in question
    with pytest.raises(TrustError, match="not trusted"):
        check(A, known(tmp_path, ""), answer=False)


def test_without_a_terminal_the_hint_is_the_option(tmp_path: Path) -> None:
    with pytest.raises(TrustError) as caught:
        check(A, known(tmp_path, ""))
    assert caught.value.exit_code == ExitCode.TRUST
    assert f"--accept-host-key {fingerprint(A)}" in caught.value.hint


def test_an_accepted_fingerprint_is_enough(tmp_path: Path) -> None:
    assert check(A, known(tmp_path, ""), accept=fingerprint(A), answer=False) == []
    assert check(A, known(tmp_path, ""), accept=fingerprint(A) + "=") == []
    assert check(A, known(tmp_path, f"watch {B}\n"), accept=fingerprint(A)) == []


@pytest.mark.parametrize("accept", [fingerprint(B), "SHA256:", "", "é"])
def test_another_accepted_fingerprint_is_not(tmp_path: Path, accept: str) -> None:
    with pytest.raises(TrustError) as caught:
        check(A, known(tmp_path, f"watch {A}\n"), accept=accept, answer=True)
    assert fingerprint(A) in caught.value.message


def test_a_changed_key_is_never_asked_about(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="has changed"):
        check(A, known(tmp_path, f"watch {B}\n"), answer=True)


def test_a_key_of_another_type_is_asked_about(tmp_path: Path) -> None:
    assert len(check(A, known(tmp_path, f"watch {RSA}\n"), answer=True)) == 1


def test_a_revoked_key_is_refused_even_when_accepted(tmp_path: Path) -> None:
    hosts = known(tmp_path, f"@revoked * {A}\nwatch {A}\n")
    with pytest.raises(TrustError, match="revoked"):
        check(A, hosts, accept=fingerprint(A), answer=True)


@pytest.mark.parametrize(("shown", "word"), [(A, "ed25519"), (RSA, "rsa")])
def test_an_unknown_key_comes_with_the_way_to_compare_it(tmp_path: Path, shown: str, word: str) -> None:
    with pytest.raises(TrustError) as caught:
        check(shown, known(tmp_path, ""))
    assert f"ssh-keygen -lf /etc/ssh/ssh_host_{word}_key.pub" in caught.value.hint


def test_a_pinned_key_is_trusted_whatever_known_hosts_says(tmp_path: Path) -> None:
    assert check(A, known(tmp_path, ""), pinned=A) == []
    assert check(A, known(tmp_path, f"watch {B}\n"), pinned=A) == []
    assert check(B, known(tmp_path, ""), pinned=A, accept=fingerprint(B)) == []


def test_another_key_than_the_pinned_one_is_refused_without_a_question(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="another one than at its enrolment") as caught:
        check(B, known(tmp_path, f"watch {B}\n"), pinned=A, answer=True)
    assert "--forget" in caught.value.hint
    with pytest.raises(TrustError, match="revoked"):
        check(A, known(tmp_path, f"@revoked * {A}\n"), pinned=A)
