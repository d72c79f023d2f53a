"""Text from outside as it may reach a terminal or a log: what would move the cursor or hide words is written out."""

from __future__ import annotations


def printable(text: str, *, keep: str = "\n") -> str:
    r"""The text with control characters, escape codes, line and direction marks as `\x1b`, but for those in `keep`."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else _written(one) for one in text)


def _written(one: str) -> str:
    return f"\\x{ord(one):02x}"
