"""Quantities as people read them; JSON always has the plain number."""

from __future__ import annotations


def byte_count(count: int) -> str:
    """Bytes in decimal units with two to four characters, e.g. `14 kB`, `1.7 MB`."""
    if count < 1000:
        return f"{count} B"
    value, unit = float(count), "B"
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5 or unit == "TB":
            break
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def fixed(value: float | None, digits: int) -> str | None:
    """A number with so many digits after the point, without a leading zero: `.871`; None stays."""
    if value is None:
        return None
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def duration(seconds: float | None) -> str | None:
    """Seconds as `.31 s`, `12 s` or `9 min 58 s`; None stays."""
    if seconds is None:
        return None
    if seconds < 9.95:
        return f"{fixed(seconds, 2 if seconds < 1 else 1)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
