"""Statements by name: SQL lives in .sql files, as blocks that start with `-- name --`."""

from __future__ import annotations

import re
from pathlib import Path
from types import MappingProxyType

_NAME = re.compile(r"^-- ([a-z][a-z0-9_]*) --[ \t]*$", re.MULTILINE)


def load_statements(*files: Path) -> MappingProxyType[str, str]:
    """The statements of these files, by name; a name given twice or a block without a statement is a `ValueError`."""
    found: dict[str, str] = {}
    for file in files:
        parts = _NAME.split(file.read_text(encoding="utf-8"))
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            statement = text.strip().removesuffix(";")
            if name in found or not statement:
                raise ValueError(f"{file.name}: the statement {name!r} is empty or there twice")
            found[name] = statement
    return MappingProxyType(found)
