"""The JSON Schemas and the AsyncAPI document, made of the wire's own types.

`python -m worker.wire.schemas DIR` writes them, with `--check` it says which differ. Dialect is draft 2020-12. A schema
refuses nothing that the codec takes. The codec refuses a little more: what no schema can say (depth, NUL, integers
written as 1.0, the content of `stats_json`).
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from worker.wire.asyncapi import asyncapi_document
from worker.wire.careful import SERDE_OUTCOMES, SERDE_RECORDS, Envelope
from worker.wire.commands import COMMANDS, CommandEnvelope, Reply
from worker.wire.descriptions import FIELDS
from worker.wire.events import EVENTS, CloudEvent
from worker.wire.limits import MAX_RECORDS
from worker.wire.records import MAX_STRING, SCHEMA_VERSION, LearnStatsRecord
from worker.wire.yamltext import to_yaml

Schema = dict[str, Any]
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def all_files() -> dict[str, str]:
    """Every generated file: name to text."""
    schemas = {"records.v1.schema.json": records_schema(), "reply.v1.schema.json": reply_schema()}
    schemas |= {f"{type_}.v1.schema.json": event_schema(type_, data) for type_, data in EVENTS.items()}
    schemas |= {f"command.{name}.v1.schema.json": command_schema(name) for name in COMMANDS}
    files = {name: json.dumps(schema, indent=2, ensure_ascii=False) + "\n" for name, schema in schemas.items()}
    return files | {"asyncapi.yaml": to_yaml(asyncapi_document())}


def records_schema() -> Schema:
    """One records message, in both spellings."""
    defs = _definitions(*SERDE_RECORDS.values(), Envelope)
    envelope = defs.pop("Envelope")
    for names, tag in ((SERDE_RECORDS, "type"), (SERDE_OUTCOMES, "kind")):
        for variant, type_ in names.items():
            defs[type_.__name__].pop("additionalProperties", None)  # unknown fields are ignored
            defs[f"Serde{variant}"] = _serde(defs[type_.__name__], variant, tag)
    defs["SerdeUnknown"] = {"description": "Unknown, as serde writes it.", "const": "Unknown"}
    outcomes = [_ref(type_.__name__) for type_ in SERDE_OUTCOMES.values()]
    defs["Outcome"] = {
        "description": "How a session ended; in this worker's spelling, or in the one of a Rust swarm's serde.",
        "oneOf": outcomes + [_ref(f"Serde{variant}") for variant in SERDE_OUTCOMES],
    }
    defs["LearnStats"] = _learn_stats()
    for name in (LearnStatsRecord.__name__, "SerdeLearnStats"):
        fields = defs[name]["properties"]
        fields = fields.get("LearnStats", {}).get("properties", fields)
        fields["outcome"] = {"description": FIELDS["outcome"], **_ref("Outcome")}
        fields["stats_json"] = {
            "description": FIELDS["stats_json"],
            "oneOf": [
                {"type": "string", "maxLength": MAX_STRING, "contentMediaType": "application/json"},
                _ref("LearnStats"),
            ],
        }
    properties = envelope["properties"]
    properties["schema_version"] = {"const": SCHEMA_VERSION}
    records = [_ref(type_.__name__) for type_ in SERDE_RECORDS.values()]
    properties["records"] = {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_RECORDS,
        "items": {"oneOf": records + [_ref(f"Serde{variant}") for variant in SERDE_RECORDS]},
    }
    schema = {
        "$schema": _DIALECT,
        "title": "Records message",
        "description": (
            "One batch of records, published to the exchange swarm.records with the scenario as routing key. Identity "
            "of a batch: producer_id, producer_epoch and batch_seq, else batch_id, else the SHA-256 of the body. "
            "Fields that are not listed are ignored and counted. At most 8 MB after decompression, 32 levels deep, "
            "strings of 65,536 characters; no NUL, no lone surrogates, no NaN, integers in 64 bits without a fraction."
        ),
        "type": "object",
        "properties": properties,
        "required": ["schema_version", "records"],
        "$defs": defs,
    }
    _describe(schema)
    return schema


def event_schema(type_: str, data: type[Struct]) -> Schema:
    """One learning event: CloudEvents 1.0, structured mode."""
    defs = _definitions(CloudEvent, data)
    envelope = defs.pop("CloudEvent")
    if "model" in defs[data.__name__]["properties"]:
        defs[data.__name__]["properties"]["model"] = {
            "type": "object",
            "description": "The offline model itself where it is at most 64 KB; sha256 is of exactly these bytes.",
        }
    properties = envelope["properties"]
    properties |= {
        "id": {"type": "string", "format": "uuid", "description": "Constant when the event is sent again."},
        "type": {"const": type_},
        "subject": {"type": "string", "description": "The scenario."},
        "time": {"type": "string", "format": "date-time"},
        "datacontenttype": {"const": "application/json"},
        "data": _ref(data.__name__),
    }
    return {
        "$schema": _DIALECT,
        "title": type_,
        "description": f"{data.__doc__} CloudEvents 1.0 in structured JSON mode.",
        "type": "object",
        "properties": properties,
        "required": ["specversion", "id", "source", "type", "subject", "time", "data"],
        "$defs": defs,
    }


def command_schema(name: str) -> Schema:
    """One command with its arguments."""
    kind = COMMANDS[name]
    defs = _definitions(CommandEnvelope, kind.args)
    envelope = defs.pop("CommandEnvelope")
    job = kind.road == "job"
    properties = envelope["properties"] | {
        "schema_version": {"const": SCHEMA_VERSION},
        "command": {"const": name},
        "args": {"anyOf": [_ref(kind.args.__name__), {"type": "null"}]},
    }
    if job:
        properties["scenario"] = {key: value for key, value in properties["scenario"].items() if key != "type"} | {
            "type": "string"
        }
    road = "exactly one worker of the scenario, with routing key job.<scenario>" if job else (
        "every worker that it reaches, with routing key all, scenario.<scenario> or worker.<worker id>"
    )  # fmt: skip
    return {
        "$schema": _DIALECT,
        "title": f"Command {name}",
        "description": f"{kind.args.__doc__} Published to the exchange swarm.control for {road}.",
        "type": "object",
        "properties": properties,
        "required": ["command", "command_id", *(["scenario"] if job else [])],
        "$defs": defs,
    }


def reply_schema() -> Schema:
    """The answer to a command."""
    defs = _definitions(Reply)
    return {"$schema": _DIALECT, **defs.pop("Reply"), "title": "Reply", "description": "What came of a command so far."}


def _definitions(*types: type[Struct]) -> dict[str, Schema]:
    """The definitions of these types and all they use, tidied."""
    _, components = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    return {name: _tidy(schema) for name, schema in components.items()}


def _tidy(node: Any) -> Any:
    """A schema of msgspec's as a person would write it."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _tidy(value) for key, value in node.items() if key not in {"discriminator", "title"}}
    if isinstance(node.get("description"), str):
        # From 3.13 on the compiler strips a docstring's indentation itself; the files must not depend on that.
        node["description"] = inspect.cleandoc(node["description"])
    if node.get("default", 0) is None:
        del node["default"]
    if len(node.get("enum", ())) == 1:
        node["const"] = node.pop("enum")[0]
    if "pattern" in node:
        node["pattern"] = node["pattern"].replace(
            r"\Z", "$"
        )  # ECMA-262 knows no \Z; a look-ahead would be an error in RE2
    return _merge_alternatives(node)


def _merge_alternatives(node: Schema) -> Schema:
    """Plain types side by side become one: integer or number is number, string or null is [string, null]."""
    options = node.get("anyOf")
    if not options or not all(isinstance(option.get("type"), str) and "enum" not in option for option in options):
        return node
    names = {option["type"] for option in options}
    if "number" in names:
        options = [option for option in options if option["type"] != "integer"]
    solid = [option for option in options if option["type"] != "null"]
    if len(solid) != 1:
        return node
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    return {**solid[0], **({"type": [solid[0]["type"], "null"]} if "null" in names else {}), **rest}


def _serde(tagged: Schema, variant: str, tag: str) -> Schema:
    """A type as serde writes a variant by default: under its name, and without the tag."""
    fields = {name: field for name, field in tagged["properties"].items() if name != tag}
    required = [name for name in tagged.get("required", ()) if name != tag]
    return {
        "description": f"{variant}, as a Rust swarm's serde writes it.",
        "type": "object",
        "properties": {variant: {"type": "object", "properties": fields, "required": required}},
        "required": [variant],
        "not": {"required": [tag]},
    }


def _learn_stats() -> Schema:
    """By hand: maps keyed by tuples are written in several ways, which no type says."""

    def table(keys: str, value: str) -> Schema:
        return {
            "description": f'Rows [{keys}, {value}], or an object whose keys are joined by "->", "|" or ",".',
            "type": ["array", "object", "null"],
            "items": {"type": "array"},
        }

    def part(description: str, **properties: Schema) -> Schema:
        return {"description": description, "type": ["object", "null"], "properties": properties}

    count = {"type": ["integer", "null"], "minimum": 0}
    return {
        "description": "Statistics of one session; every part may be absent or null.",
        "type": "object",
        "properties": {
            "episode_transitions": part(
                "How often one action followed another, in episodes that succeeded and that failed.",
                success_transitions=table("from, to", "count"),
                failure_transitions=table("from, to", "count"),
                success_episodes=count,
                failure_episodes=count,
            ),
            "ngram_stats": part(
                "Sequences of three and four actions with [successes, failures].",
                trigrams=table("a, b, c", "[successes, failures]"),
                quadgrams=table("a, b, c, d", "[successes, failures]"),
            ),
            "selection_performance": part(
                "How the selection strategies did.",
                strategy_stats={
                    "description": "Strategy to {visits, successes, failures, episodes_success, episodes_failure}.",
                    "type": ["object", "null"],
                },
                switch_history={
                    "description": "Rows {from, to, visits, success_rate}; the first comes from null.",
                    "type": ["array", "null"],
                    "items": {"type": "object", "required": ["to"]},
                },
                current_strategy={"type": ["string", "null"]},
                strategy_start_visits=count,
                strategy_start_success_rate={"type": ["number", "null"]},
            ),
            "contextual_stats": table("previous, action", "{visits, successes, failures}"),
        },
    }


def _describe(node: Any) -> None:
    """Give every property of the records message its line."""
    if isinstance(node, dict):
        for name, field in node.get("properties", {}).items():
            if isinstance(field, dict) and name in FIELDS:
                field.setdefault("description", FIELDS[name])
        for value in node.values():
            _describe(value)
    elif isinstance(node, list):
        for item in node:
            _describe(item)


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def main(arguments: list[str], write: Callable[[str], object] = sys.stdout.write) -> int:
    """Write the files into the directory, or with `--check` say which of them differ; the exit status."""
    check = "--check" in arguments
    places = [argument for argument in arguments if argument != "--check"]
    if len(places) != 1:
        write("usage: python -m worker.wire.schemas [--check] DIR\n")
        return 64
    directory = Path(places[0])
    files = all_files()
    there = {path.name for path in directory.glob("*.schema.json")}
    stale = [name for name, text in files.items() if not _holds(directory / name, text)] + sorted(there - files.keys())
    if check:
        for name in stale:
            write(f"{directory / name} differs from the code; run `make schemas`\n")
        return 1 if stale else 0
    directory.mkdir(parents=True, exist_ok=True)
    for name in stale:
        if name in files:
            (directory / name).write_text(files[name], encoding="utf-8")
        else:
            (directory / name).unlink()
    write(f"{len(files)} files in {directory}, {len(stale)} changed\n")
    return 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
