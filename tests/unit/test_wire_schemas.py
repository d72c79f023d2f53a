"""The generated schemas: no drift, good examples, agreement with the codec, and what other tools demand of them."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.wire.asyncapi import asyncapi_document
from worker.wire.codec import decode_batch
from worker.wire.commands import COMMANDS, Command, decode_command, decode_reply
from worker.wire.events import EVENTS, decode_event, event_id, routing_key
from worker.wire.reasons import Rejection
from worker.wire.records import Batch
from worker.wire.schemas import all_files, main, records_schema
from worker.wire.yamltext import to_yaml

SCHEMAS = Path(__file__).parents[2] / "schemas"
EXAMPLES = sorted((SCHEMAS / "examples").glob("*.json"))
RECORDS = jsonschema.Draft202012Validator(records_schema())
ACTION: dict[str, Any] = {"type": "action", "task_id": "t", "tick": 1, "worker_id": 2, "action": "look"}
STATS: dict[str, Any] = {
    "type": "learn_stats", "session_id": "s", "stats_json": {}, "outcome": {"kind": "unknown"},
    "total_ticks": 1, "total_actions": 2,
}  # fmt: skip


def schema_of(example: Path) -> str:
    """The schema file that an example belongs to: `records.v1.serde.json` to `records.v1.schema.json`."""
    return example.name.partition(".v1.")[0] + ".v1.schema.json"


def test_the_files_are_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Else run `make schemas`."""
    assert main(["--check", str(SCHEMAS)]) == 0, capsys.readouterr().out


def test_drift_is_found_and_mended(tmp_path: Path) -> None:
    """A missing, a changed and a superfluous file; examples are left alone."""
    said: list[str] = []
    assert main([str(tmp_path)], said.append) == 0
    (tmp_path / "reply.v1.schema.json").unlink()
    (tmp_path / "asyncapi.yaml").write_text("x")
    (tmp_path / "command.dance.v1.schema.json").write_text("{}")
    assert main(["--check", str(tmp_path)], said.append) == 1
    assert len([line for line in said if "differs from the code" in line]) == 3
    assert main([str(tmp_path)], said.append) == 0
    assert main(["--check", str(tmp_path)], said.append) == 0
    assert main([], said.append) == 64


@pytest.mark.parametrize("name", [name for name in all_files() if name.endswith(".json")])
def test_a_schema_is_valid_and_portable(name: str) -> None:
    r"""Draft 2020-12, every reference leads somewhere, and no pattern uses Python's own `\Z` or `(?P`."""
    text = all_files()[name]
    schema = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(schema)
    for place in re.findall(r'"\$ref": "#/\$defs/(\w+)"', text):
        assert place in schema["$defs"]
    for definition in schema.get("$defs", {}):
        assert f'"#/$defs/{definition}"' in text
    assert r"\\Z" not in text
    assert "(?P" not in text


def test_every_kind_of_message_has_an_example() -> None:
    """Somebody who writes a client begins with one."""
    assert {schema_of(example) for example in EXAMPLES} == {name for name in all_files() if name.endswith(".json")}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_valid_and_is_taken(example: Path) -> None:
    """By its schema, and by the decoder."""
    body = example.read_bytes()
    schema = json.loads(all_files()[schema_of(example)])
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    assert list(validator.iter_errors(json.loads(body))) == []
    kind = example.name.partition(".")[0]
    if kind == "records":
        batch = decode_batch(body, scenario="grid")
        assert isinstance(batch, Batch), batch
        assert batch.unknown_fields == 0
    elif kind == "learning":
        event = decode_event(body)
        assert event.id == event_id("run-0190b9e4", event.type)
        assert not isinstance(event.data, dict)
    elif kind == "command":
        command = decode_command(body)
        assert isinstance(command, Command), command
    else:
        assert decode_reply(body).status == "done"


REFUSED_RECORDS: list[Any] = [
    None, {}, ACTION | {"type": "dance"}, ACTION | {"tick": -1}, ACTION | {"tick": "1"}, ACTION | {"tick": None},
    ACTION | {"task_id": ""}, ACTION | {"propensity": 0}, ACTION | {"propensity": 1.01}, ACTION | {"candidates": [1]},
    ACTION | {"output": "x" * 65_537}, {"Action": {}}, {"Dance": {}}, {"Action": {}, "Llm": {}},
    STATS | {"outcome": "Success"}, STATS | {"outcome": {"kind": "success"}}, STATS | {"outcome": {"Success": {}}},
    STATS | {"outcome": None}, STATS | {"stats_json": 1}, STATS | {"stats_json": {"ngram_stats": []}},
    {name: value for name, value in STATS.items() if name != "stats_json"},
]  # fmt: skip
REFUSED: list[Any] = [
    [],
    {},
    {"schema_version": 1},
    {"schema_version": 1, "records": []},
    {"schema_version": 2, "records": [ACTION]},
    {"schema_version": 1, "records": [ACTION], "producer_id": "../x"},
    {"schema_version": 1, "records": [ACTION], "batch_seq": -1},
    {"schema_version": 1, "records": [ACTION], "batch_id": ""},
    *({"schema_version": 1, "records": [record]} for record in REFUSED_RECORDS),
]


@pytest.mark.parametrize("message", REFUSED)
def test_what_the_schema_refuses_the_codec_refuses(message: Any) -> None:
    """By hand, for the cases that a client's author runs into."""
    assert not RECORDS.is_valid(message)
    assert isinstance(decode_batch(json.dumps(message).encode(), scenario="S"), Rejection)


def _mutants() -> st.SearchStrategy[bytes]:
    """The good and the almost good messages of the codec's own property tests."""
    path = Path(__file__).with_name("test_wire_properties.py")
    spec = importlib.util.spec_from_file_location("wire_properties", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.get("wire_properties") or importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    strategy: st.SearchStrategy[bytes] = module._mutants()
    return strategy


@settings(max_examples=150, deadline=None)
@given(_mutants())
def test_the_schema_refuses_nothing_that_the_codec_takes(body: bytes) -> None:
    """A client that validates before it sends is never held back for nothing."""
    if isinstance(decode_batch(body, scenario="S"), Batch):
        RECORDS.validate(json.loads(body))


def test_every_field_of_a_record_says_what_it_is() -> None:
    """The schema is the documentation of the wire."""
    for name, definition in records_schema()["$defs"].items():
        fields: dict[str, Any] = definition.get("properties", {})
        if name.startswith("Serde") and fields:
            [fields] = [variant["properties"] for variant in fields.values()]
        if name != "LearnStats":
            for field, schema in fields.items():
                assert schema.get("description"), f"{name}.{field}"


# ---------------------------------------------------------------- AsyncAPI


def test_the_asyncapi_document_reads_back_as_it_was_meant() -> None:
    """The small YAML writer against a real reader."""
    assert yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text()) == asyncapi_document()


TEXT = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"]))
YAML_KEY = st.text("abcdefyno: -'\"#&*!|>%@`1.", max_size=5)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(YAML_KEY, inner, max_size=3),
    max_leaves=10,
)


@given(st.fixed_dictionaries({"tree": TREES}))
def test_yaml_that_we_write_means_what_we_wrote(tree: dict[str, Any]) -> None:
    """Whatever the strings look like: yes, 1.0, - a, # b."""
    assert yaml.safe_load(to_yaml(tree)) == tree


def test_the_asyncapi_references_lead_somewhere() -> None:
    """Inside the document, and to the schema files beside it."""
    document = asyncapi_document()
    for reference in re.findall(r"'\$ref': '([^']+)'", str(document)):
        if reference.startswith("#/"):
            node: Any = document
            for step in reference[2:].split("/"):
                node = node[step]
        else:
            assert reference.removeprefix("./") in all_files()


def test_the_asyncapi_document_names_every_message_and_its_address() -> None:
    """Each event has a channel of its own; each command stands on every channel of its road."""
    document = asyncapi_document()
    addresses = {channel["address"]: channel["messages"] for channel in document["channels"].values()}
    for type_ in EVENTS:
        assert routing_key(type_, "{scenario}") in addresses
    for road, places in (
        ("job", ["job.{scenario}"]),
        ("broadcast", ["all", "scenario.{scenario}", "worker.{worker_id}"]),
    ):
        for place in places:
            assert len(addresses[place]) == len([kind for kind in COMMANDS.values() if kind.road == road])
