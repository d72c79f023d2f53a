"""YAML for people and for diffs: a plain tree written in one way only, without a YAML library at run time."""

from __future__ import annotations

import json
import re
from typing import Any

#: What stands without quotes and means the same string to every YAML reader.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*(?: [A-Za-z0-9_./-]+)*")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def to_yaml(tree: dict[str, Any]) -> str:
    """The document. Strings, numbers, booleans, lists and objects only; keys keep their order."""
    return "".join(f"{line}\n" for line in _lines(tree))


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict) and value:
        lines = []
        for key, item in value.items():
            inner = _lines(item)
            if isinstance(item, dict | list) and item:
                lines += [f"{_scalar(key)}:", *(f"  {line}" for line in inner)]
            else:
                lines.append(f"{_scalar(key)}: {inner[0]}")
        return lines
    if isinstance(value, list) and value:
        lines = []
        for item in value:
            first, *rest = _lines(item)
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
        return lines
    return [_scalar(value)]


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)  # a JSON scalar is a YAML scalar
