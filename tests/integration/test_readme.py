"""README.md and deploy/README.md are true: examples run; commands, settings, links and files are there."""

from __future__ import annotations

import asyncio
import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
import pytest

from worker.broker.port import OutgoingMessage
from worker.broker.publisher import RabbitPublisher
from worker.broker.topology import ensure_topology, scenario_objects, shared_objects
from worker.cli import cli
from worker.life import Worker
from worker.settings import Settings
from worker.wire.codec import decode_batch
from worker.wire.names import LEARNING_EXCHANGE
from worker.wire.records import Batch

ROOT = Path(__file__).parents[2]
PLACES = [ROOT / "README.md", ROOT / "deploy/README.md"]
README, OPERATORS = (place.read_text() for place in PLACES)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def example_event(name: str) -> OutgoingMessage:
    """The schemas' example, of the README's scenario and under an id of its own."""
    event = json.loads((ROOT / f"schemas/examples/learning.{name}.v1.example.json").read_text())
    event |= {"id": str(uuid4())}
    event["data"]["scenario"] = "checkout"
    if name == "trained":
        event["data"]["model"]["scenario"] = "checkout"
        event["data"]["sha256"] = sha256(compact(event["data"]["model"])).hexdigest()
    return OutgoingMessage(
        exchange=LEARNING_EXCHANGE, routing_key=f"learning.{name}.checkout", message_id=event["id"],
        body=compact(event),
    )  # fmt: skip


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def test_the_example_message_is_decoded() -> None:
    (example,) = blocks("json")
    batch = decode_batch(example.encode(), scenario="checkout")
    assert isinstance(batch, Batch)
    assert (len(batch.records), batch.unknown_fields) == (4, 0)


async def test_the_client_example_publishes_a_session(amqp_url: str, tmp_path: Path, new_session: Any) -> None:
    """Its three actions and the session's end are one batch, confirmed when it returns; and another when run again."""
    session = await new_session("control")

    await ensure_topology(session, [*shared_objects(), *scenario_objects("checkout")], "auto")
    space: dict[str, Any] = {}
    exec(blocks("python")[0], space)  # noqa: S102 - our own README
    channel = await session.open_channel()
    sessions = set()
    for _ in range(2):  # a second end of the same session would be quarantined
        await asyncio.to_thread(space["act"], amqp_url, tmp_path)
        message = await channel.basic_get("swarm.records.checkout")
        batch = decode_batch(message.body, scenario="checkout")
        assert isinstance(batch, Batch)
        assert [type(record).__name__ for record in batch.records] == ["ActionRecord"] * 3 + ["LearnStatsRecord"]
        sessions |= {record.session_id for record in batch.records}
    assert len(sessions) == 2


async def test_the_follower_example_prints_what_became_live(
    amqp_url: str, new_session: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The examples of the schemas, as a worker would send them, until the example has said its word."""
    session = await new_session("publish")
    await ensure_topology(session, shared_objects(), "auto")
    publisher = RabbitPublisher(session)
    space: dict[str, Any] = {}
    exec(blocks("python")[1], space)  # noqa: S102 - our own README
    following = asyncio.create_task(space["follow"](amqp_url))
    said = ""
    try:
        async with asyncio.timeout(30):
            while "model " not in said and not following.done():
                for message in (example_event("trained"), example_event("applied")):
                    await publisher.publish(message, mandatory=False)
                await asyncio.sleep(0.2)
                said += capsys.readouterr().out
    finally:
        following.cancel()
    assert "model 3: after ReadLogs ['Restart']\n" in said


def test_the_builder_example_builds_a_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SWARM_DATA_DIR", str(tmp_path))
    space: dict[str, Any] = {}
    exec(blocks("python")[2], space)  # noqa: S102 - our own README
    assert isinstance(space["build"](), Worker)


def test_every_command_and_setting_it_names_exists() -> None:
    named = set(re.findall(r"swarm-worker ((?:[a-z-]+(?: \| )?)+)", README + OPERATORS))
    commands = {word for group in named for word in group.split(" | ")} - {"run ", ""}
    assert {command.split()[0] for command in commands if command.strip()} <= set(cli.list_commands(click.Context(cli)))
    settings = {f"SWARM_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"SWARM_[A-Z_]+[A-Z]", README + OPERATORS)) <= settings


def test_every_file_it_links_to_or_lists_is_there() -> None:
    for place in PLACES:
        links = [target for target in re.findall(r"\]\(([^)]+)\)", place.read_text()) if "://" not in target]
        assert links
        assert [target for target in links if not (place.parent / target.partition("#")[0]).exists()] == []
    listed = re.findall(r"^      ([a-z]+(?:\.py|/)) ", README, re.MULTILINE)
    assert listed
    assert [name for name in listed if not (ROOT / "worker" / name).exists()] == []


def test_every_make_target_it_names_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert {name for name in re.findall(r"make ([a-z-]+)", README) if f"\n{name}:" not in makefile} == set()
