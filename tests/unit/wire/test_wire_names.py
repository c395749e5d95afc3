import pytest

from fedctl_wire.errors import WireError
from fedctl_wire.names import Name, check_sha256


@pytest.mark.parametrize("text", ["a", "0", "watch-01", "a" * 63, "9-", "a--b"])
def test_names_within_the_grammar(text: str) -> None:
    name = Name(text)
    assert name == text
    assert hash(name) == hash(text)
    assert isinstance(name, str)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-a",
        "a" * 64,
        "Watch",
        "a b",
        "a/b",
        "..",
        ".",
        "a.b",
        "a_b",
        "a'b",
        'a"b',
        "a\n",
        "a\x00",
        "$a",
        "ä",
        "é",  # decomposed
        "a\u2010b",  # a hyphen that is not '-'
        "\u0661",  # a digit, but not of ASCII
    ],
)
def test_names_outside_it(text: str) -> None:
    with pytest.raises(WireError, match="is not allowed") as caught:
        Name(text)
    assert (caught.value.code, caught.value.subject) == ("name", text)


def test_the_error_says_what_was_named_and_stays_short() -> None:
    with pytest.raises(WireError, match=r"^device 'B") as caught:
        Name("B" * 100_000, what="device")
    assert len(str(caught.value)) < 250


def test_a_sha256_is_64_lower_case_digits() -> None:
    assert check_sha256("0a" * 32) == "0a" * 32


@pytest.mark.parametrize("text", ["", "0a" * 31, "0A" * 32, "0g" * 32, "0a" * 32 + "\n", "../" * 20])
def test_anything_else_is_no_sha256(text: str) -> None:
    with pytest.raises(WireError, match=r"hash of x .* is not 64 lower-case"):
        check_sha256(text, what="hash of x")
