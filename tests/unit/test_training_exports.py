"""Training data out of a store: SFT and DPO lines of what the learn models make of their episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.unit.training_world import CONFIG, opened, worker_over
from worker.episodes.projection import learn_models
from worker.episodes.rules import Rules
from worker.settings import LEARN_MODELS
from worker.store.port import EpisodeFilter, IncomingBatch, Stored
from worker.training.exports import TrainingDataExport
from worker.wire.codec import decode_batch, encode_batch
from worker.wire.records import ActionRecord, Batch, DependencyGraphRecord

RULES = Rules(holdout=CONFIG.holdout)


async def lines_of(
    export: TrainingDataExport, where: EpisodeFilter | None = None
) -> list[dict[str, Any]]:  # fmt: skip
    return [json.loads(line) async for line in export.lines(where)]


async def test_each_learn_model_gives_its_form_of_lines(tmp_path: Path) -> None:
    """Sequences, tasks and graphs as conversations, groups as preferences; the rest is counted with reasons."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        records: list[Any] = [
            ActionRecord(
                task_id=f"t{n}", group_id="g1", tick=tick, worker_id=0, action=name, event_id=tick, target="db"
            )
            for n, names in enumerate((("look", "open", "done"), ("guess", "open", "give_up")))
            for tick, name in enumerate(names)
        ]
        graph: dict[str, Any] = {
            "available_actions": ["a", "b"],
            "not_discover_order": ["b"],
            "model": "m",
            "endpoint": "e",
        }
        records += [
            DependencyGraphRecord(prompt="order?", response="a", discover_order=["a"], latency_ms=1, **graph),
            DependencyGraphRecord(prompt="bad", response="", discover_order=[], latency_ms=1, error="x", **graph),
        ]
        body = encode_batch(records, producer_id="p", producer_epoch=0, batch_seq=0)
        batch = decode_batch(body, scenario="S")
        assert isinstance(batch, Batch)
        incoming = IncomingBatch(
            scenario="S", batch=batch, body=body, received_at_ms=1, terminal_tasks=frozenset({"t0", "t1"})
        )
        assert isinstance((await store.ingest([incoming]))[0], Stored)
        await world.project()

        export = TrainingDataExport(store, "S", models=learn_models(LEARN_MODELS, RULES), rules=RULES)
        lines = await lines_of(export)
        sft = [line["messages"] for line in lines if "messages" in line]
        dpo = [line for line in lines if "rejected" in line]
        assert [messages[-1]["content"] for messages in sft] == ["look -> open -> done", "look -> open -> done", "a"]
        assert sft[2][1]["content"] == "order?"
        assert [(line["chosen"], line["rejected"]) for line in dpo] == [
            ("look -> open -> done", "guess -> open -> give_up")
        ]
        assert export.examples == 4
        assert len(export.excluded) == 3  # the failure, in two models, and the bad graph

        none = TrainingDataExport(store, "S", models=learn_models(LEARN_MODELS, RULES), rules=RULES)
        assert await lines_of(none, EpisodeFilter(task_id="nobody")) == []
