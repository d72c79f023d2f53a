"""The ledger's structs as rows and back: columns carry the names of the fields, what is nested becomes JSON text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import orjson
from msgspec import Struct

from worker.errors import DataRefused
from worker.store.port import Deployment, Model, Run, StoredCommand, TriggerState

S = TypeVar("S", bound=Struct)

#: Fields that are nested: no query looks inside them.
_JSON: Mapping[type[Struct], frozenset[str]] = {
    Run: frozenset({"trigger"}),
    Model: frozenset({"lineage", "metrics", "gate_reasons"}),
    StoredCommand: frozenset({"result"}),
    TriggerState: frozenset({"trained_by_model"}),
}
#: Fields that SQLite, which knows no booleans, gives back as 0 or 1.
_BOOLEAN: Mapping[type[Struct], frozenset[str]] = {
    Run: frozenset({"apply"}),
    Deployment: frozenset({"forced", "stranded"}),
    TriggerState: frozenset({"paused"}),
}
_NONE: frozenset[str] = frozenset()


def to_row(struct: Struct) -> dict[str, Any]:
    """Field name to value as a database takes it; `DataRefused` where a nested value is no JSON."""
    json = _JSON.get(type(struct), _NONE)
    return {
        field: to_json(getattr(struct, field), field) if field in json else getattr(struct, field)
        for field in struct.__struct_fields__
    }


def from_row(type_: type[S], row: Mapping[str, Any]) -> S:
    """The struct of a row; columns that are no fields are left out."""
    json, boolean = _JSON.get(type_, _NONE), _BOOLEAN.get(type_, _NONE)
    values: dict[str, Any] = {}
    for field in type_.__struct_fields__:
        value = row[field]
        if field in json:
            value = orjson.loads(value)
        elif field in boolean and value is not None:
            value = bool(value)
        values[field] = value
    return type_(**values)


def kept(struct: S) -> S:
    """The struct as it comes back from a store: nobody's later change reaches it, tuples have become lists."""
    return from_row(type(struct), to_row(struct))


def to_json(value: object, field: str) -> str:
    """JSON text; `DataRefused` names the field of a value that has none (a lone surrogate, an integer over 64 bits)."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:
        raise DataRefused(f"{field} cannot be stored as JSON ({error}); give it plain JSON values") from error
