"""Durations as people write them, `10s`, `250ms`, `1h30m`: read from settings and triggers, and written back."""

from __future__ import annotations

import re

_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
#: So few digits that no sum of them leaves the range of a float.
_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(ms|s|m|h|d)\s*")


def parse_milliseconds(text: str) -> float:
    """The duration in milliseconds; ValueError with an example for what is none."""
    if not re.fullmatch(f"(?:{_PART.pattern})+", text):
        raise ValueError(f"{text!r} is no duration; write it like 10s, 250ms, 15m, 1h, 1h30m or 2d")
    return sum(float(number) * _UNITS_MS[unit] for number, unit in _PART.findall(text))


def duration_text(milliseconds: int) -> str:
    """As it is typed; `parse_milliseconds` reads the same back."""
    parts = []
    rest = milliseconds
    for unit, size in _UNITS_MS.items():
        number, rest = divmod(rest, size)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"
