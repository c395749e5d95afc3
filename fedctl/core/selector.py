"""Which devices a command means: names and globs, narrowed by conditions on labels and a greatest number.

Conditions are those of kubectl's `-l`: `key=value`, `key!=value`, `key in (a,b)`, `key notin (a,b)`, `key`
and `!key`, commas between them mean "and". As there, a device without the label meets `!=` and `notin`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Self

from fedctl.core.errors import NotFoundError, UsageError
from fedctl.core.records import Device, DeviceState, Role
from fedctl_wire.errors import WireError
from fedctl_wire.names import Name

_VALUE = re.compile(r"[A-Za-z0-9._-]{1,63}")
_GLOB = frozenset("*?[")
_LISTED = re.compile(r"(\S+)\s+(in|notin)\s*\((.*)\)")
_COMPARED = re.compile(r"([^=!]*?)\s*(==|!=|=)\s*(.*)")
_COMMA = re.compile(r",(?![^(]*\))")  # between conditions, not within a list of values
_FORMS = "use key=value, key!=value, 'key in (a,b)', 'key notin (a,b)', key or '!key'"
_LOOK_ALIKES = 3  # names that an error offers
_LISTED_NAMES = 5  # in a command that a hint spells out


@dataclass(frozen=True, slots=True)
class Condition:
    """What a label must be: one of `values`, or with `negated` none of them; no values mean any value."""

    key: str
    values: tuple[str, ...] = ()
    negated: bool = False

    @classmethod
    def parse(cls, word: str) -> Self:
        """Read one condition.

        Raises:
            UsageError: When it has none of the forms.
        """
        if listed := _LISTED.fullmatch(word):
            key, operator, values = listed[1], listed[2], [value.strip() for value in listed[3].split(",")]
            return cls(_key(key, word), _values(values, word), negated=operator == "notin")
        if compared := _COMPARED.fullmatch(word):
            key, operator, value = compared.groups()
            return cls(_key(key, word), _values([value], word), negated=operator == "!=")
        return cls(_key(word.removeprefix("!").strip(), word), negated=word.startswith("!"))

    def __str__(self) -> str:
        """The condition as it would be typed."""
        if not self.values:
            return f"{'!' if self.negated else ''}{self.key}"
        if len(self.values) == 1:
            return f"{self.key}{'!=' if self.negated else '='}{self.values[0]}"
        return f"{self.key} {'notin' if self.negated else 'in'} ({','.join(self.values)})"

    def met_by(self, device: Device) -> bool:
        """Whether the device's label is as it must be; every device has a role, also without the label."""
        value = device.role.value if self.key == "role" else device.labels.get(self.key)
        found = value is not None if not self.values else value in self.values
        return found is not self.negated

    def why_unmet(self, devices: Sequence[Device]) -> str:
        """A hint when no device meets it; empty when one does."""
        if any(self.met_by(device) for device in devices):
            return ""
        if self.negated:
            return f"every device has {self.key}" + (" with one of those values" if self.values else "")
        present = sorted({d.labels[self.key] for d in devices if self.key in d.labels})
        if not present:
            keys = sorted({key for d in devices for key in d.labels})
            return near_misses(self.key, keys) or f"no device has the label {self.key!r}"
        return near_misses(self.values[0], present) or f"{self.key} is one of: {', '.join(present[:10])}"


@dataclass(frozen=True, slots=True)
class Selector:
    """A choice of devices: any of `patterns` (all when empty) that meets every condition, up to `limit`."""

    patterns: tuple[str, ...] = ()  # names, or globs with `*`, `?`, `[...]`
    conditions: tuple[Condition, ...] = ()
    limit: int | None = None  # the first so many, by name

    @classmethod
    def parse(cls, names: Sequence[str], labels: Sequence[str], limit: int | None = None) -> Self:
        """Read the words of a command line; each of `labels` holds conditions with commas between them.

        Raises:
            UsageError: When a condition has none of the forms, or the limit is not above 0.
        """
        if limit is not None and limit < 1:
            raise UsageError(f"--limit is {limit}", hint="it must be at least 1", subject="--limit")
        parts = [(word, part.strip()) for word in labels for part in _COMMA.split(word)]
        conditions = [_within(word, part) for word, part in parts]
        return cls(tuple(dict.fromkeys(names)), tuple(dict.fromkeys(conditions)), limit)

    def __str__(self) -> str:
        """The selector as it would be typed."""
        labels = [f"-l {_quoted(str(condition))}" for condition in self.conditions]
        return " ".join([*self.patterns, *labels])

    def select(self, devices: Iterable[Device]) -> tuple[Device, ...]:
        """The devices that are meant, by name, the first `limit` of them.

        Without patterns and conditions that is every device, and none of none is no error.

        Raises:
            NotFoundError: When a name or glob, or the selector as a whole, matches nothing.
        """
        return self.first(self.matches(devices))

    def matches(self, devices: Iterable[Device]) -> tuple[Device, ...]:
        """Like `select`, without the limit."""
        known = sorted(devices, key=lambda device: device.name)
        for pattern in self.patterns:
            self._check_matches(pattern, known)
        found = tuple(d for d in known if self._means(d))
        if not found and (self.patterns or self.conditions):
            raise NotFoundError(
                f"no device matches {str(self)!r}", hint=self._label_hint(known), subject=str(self)
            )
        return found

    def first(self, devices: tuple[Device, ...]) -> tuple[Device, ...]:
        """At most `limit` of the devices."""
        return devices[: self.limit]

    def _means(self, device: Device) -> bool:
        named = not self.patterns or any(fnmatchcase(device.name, p) for p in self.patterns)
        return named and all(condition.met_by(device) for condition in self.conditions)

    def _check_matches(self, pattern: str, known: Sequence[Device]) -> None:
        if any(fnmatchcase(device.name, pattern) for device in known):
            return
        names = [device.name for device in known]
        hint = near_misses(pattern, names) or "see: fedctl devices list"
        what = "device matches" if _GLOB.intersection(pattern) else "device is named"
        raise NotFoundError(f"no {what} {pattern!r}", hint=hint, subject=pattern)

    def _label_hint(self, known: Sequence[Device]) -> str:
        hints = [condition.why_unmet(known) for condition in self.conditions]
        return next(
            filter(None, hints),
            "each part matches a device, but none matches all of them; see: fedctl devices list",
        )


def without_maintenance(devices: Sequence[Device]) -> tuple[tuple[Device, ...], tuple[Device, ...]]:
    """Those that work may be given to, and those that are left out because they are in maintenance.

    Raises:
        NotFoundError: When devices were chosen and all of them are in maintenance.
    """
    left_out = tuple(d for d in devices if d.state is DeviceState.MAINTENANCE)
    ready = tuple(d for d in devices if d.state is not DeviceState.MAINTENANCE)
    if left_out and not ready:
        names = " ".join(device.name for device in left_out[:_LISTED_NAMES])
        message = "the chosen device is" if len(left_out) == 1 else f"all {len(left_out)} chosen devices are"
        raise NotFoundError(
            f"{message} in maintenance",
            hint=f"end it with: fedctl devices maintenance {names} off",
            subject=left_out[0].name,
            code="maintenance",
        )
    return ready, left_out


def parse_label_changes(words: Sequence[str]) -> dict[str, str | None]:
    """Read `key=value` (set) and `key-` (remove); a removed label has the value None.

    Raises:
        UsageError: When a word is neither, a key comes twice, or `role` gets a value that means nothing.
    """
    changes: dict[str, str | None] = {}
    for word in words:
        key, value = _pair(word) if "=" in word or not word.endswith("-") else (_key(word[:-1], word), None)
        if key in changes:
            raise UsageError(f"label {key!r} is given twice", hint="give each key one value", subject=word)
        # A misspelt `role=hold-out` would quietly train on a device meant for evaluation only.
        if key == "role" and value is not None and value not in set(Role):
            raise UsageError(
                f"label role is {' or '.join(Role)}, not {value!r}",
                hint="use role=holdout for a device that never trains",
                subject=word,
            )
        changes[key] = value
    return changes


def near_misses(text: str, known: Sequence[str]) -> str:
    """A hint with the known names that look most like `text`; empty when none does."""
    import difflib

    plain = text.lower().replace("*", "").replace("?", "")
    alike = difflib.get_close_matches(plain, known, n=_LOOK_ALIKES, cutoff=0.6)
    return f"did you mean {' or '.join(alike)}?" if alike else ""


def _within(word: str, part: str) -> Condition:
    """One condition of a word that may hold several; an error is about the whole word."""
    try:
        return Condition.parse(part)
    except UsageError as error:
        raise UsageError(error.message, hint=error.hint or _FORMS, subject=word) from error


def _quoted(text: str) -> str:
    return f"'{text}'" if not text.isascii() or set(text) & set(" (!") else text


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise UsageError(
            f"label {word!r} is not of the form key=value", hint="for example: site=lab", subject=word
        )
    return _key(key, word), _values([value], word)[0]


def _values(values: Sequence[str], word: str) -> tuple[str, ...]:
    for value in values:
        if not _VALUE.fullmatch(value):
            raise UsageError(
                f"label {word!r}: the value must be 1 to 63 letters, digits, '.', '_' and '-'",
                hint="for example: site=lab",
                subject=word,
            )
    return tuple(dict.fromkeys(values))


def _key(key: str, word: str) -> str:
    try:
        return Name(key, what="label key")
    except WireError as error:
        raise UsageError(str(error), hint="for example: site=lab", subject=word) from error
