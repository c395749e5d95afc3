"""Which devices a command means: names and globs, narrowed by `-l key=value` labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Self

from fedctl.core.errors import NotFoundError, UsageError
from fedctl.core.records import Device, Role
from fedctl_wire.errors import WireError
from fedctl_wire.names import Name

_VALUE = re.compile(r"[A-Za-z0-9._-]{1,63}")
_GLOB = frozenset("*?[")
_LOOK_ALIKES = 3  # names that an error offers


@dataclass(frozen=True, slots=True)
class Selector:
    """A choice of devices: any of `patterns` (all devices when empty) that carries every label."""

    patterns: tuple[str, ...] = ()  # names, or globs with `*`, `?`, `[...]`
    labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, names: Sequence[str], labels: Sequence[str]) -> Self:
        """Read the words of a command line; labels are `key=value`.

        Raises:
            UsageError: When a label is not `key=value`.
        """
        pairs = tuple(dict.fromkeys(_pair(label) for label in labels))
        return cls(tuple(dict.fromkeys(names)), pairs)

    def __str__(self) -> str:
        """The selector as it would be typed."""
        return " ".join([*self.patterns, *(f"-l {key}={value}" for key, value in self.labels)])

    def select(self, devices: Iterable[Device]) -> tuple[Device, ...]:
        """The devices that are meant, by name.

        Without patterns and labels that is every device, and none of none is no error.

        Raises:
            NotFoundError: When a name or glob, or the selector as a whole, matches nothing.
        """
        known = sorted(devices, key=lambda device: device.name)
        for pattern in self.patterns:
            self._check_matches(pattern, known)
        found = tuple(d for d in known if self._means(d))
        if not found and (self.patterns or self.labels):
            raise NotFoundError(
                f"no device matches {str(self)!r}", hint=self._label_hint(known), subject=str(self)
            )
        return found

    def _means(self, device: Device) -> bool:
        named = not self.patterns or any(fnmatchcase(device.name, p) for p in self.patterns)
        return named and all(device.labels.get(key) == value for key, value in self.labels)

    def _check_matches(self, pattern: str, known: Sequence[Device]) -> None:
        if any(fnmatchcase(device.name, pattern) for device in known):
            return
        names = [device.name for device in known]
        hint = near_misses(pattern, names) or "see: fedctl devices list"
        what = "device matches" if _GLOB.intersection(pattern) else "device is named"
        raise NotFoundError(f"no {what} {pattern!r}", hint=hint, subject=pattern)

    def _label_hint(self, known: Sequence[Device]) -> str:
        for key, value in self.labels:
            values = sorted({d.labels[key] for d in known if key in d.labels})
            if not values:
                keys = sorted({k for d in known for k in d.labels})
                return near_misses(key, keys) or f"no device has the label {key!r}"
            if value not in values:
                return near_misses(value, values) or f"{key} is one of: {', '.join(values[:10])}"
        return "each part matches a device, but none matches all of them; see: fedctl devices list"


def parse_label_changes(words: Sequence[str]) -> dict[str, str | None]:
    """Read `key=value` (set) and `key-` (remove); a removed label has the value None.

    Raises:
        UsageError: When a word is neither, a key comes twice, or `role` gets a value that means nothing.
    """
    changes: dict[str, str | None] = {}
    for word in words:
        key, value = _pair(word) if "=" in word or not word.endswith("-") else (_key(word[:-1], word), None)
        if key in changes:
            raise UsageError(f"label {key!r} is given twice", subject=word)
        # A misspelt `role=hold-out` would quietly train on a device meant for evaluation only.
        if key == "role" and value is not None and value not in set(Role):
            raise UsageError(f"label role is {' or '.join(Role)}, not {value!r}", subject=word)
        changes[key] = value
    return changes


def near_misses(text: str, known: Sequence[str]) -> str:
    """A hint with the known names that look most like `text`; empty when none does."""
    import difflib

    plain = text.lower().replace("*", "").replace("?", "")
    alike = difflib.get_close_matches(plain, known, n=_LOOK_ALIKES, cutoff=0.6)
    return f"did you mean {' or '.join(alike)}?" if alike else ""


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise UsageError(
            f"label {word!r} is not of the form key=value", hint="for example: site=lab", subject=word
        )
    if not _VALUE.fullmatch(value):
        raise UsageError(
            f"label {word!r}: the value must be 1 to 63 letters, digits, '.', '_' and '-'", subject=word
        )
    return _key(key, word), value


def _key(key: str, word: str) -> str:
    try:
        return Name(key, what="label key")
    except WireError as error:
        raise UsageError(str(error), subject=word) from error
