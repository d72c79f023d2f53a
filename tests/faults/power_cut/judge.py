"""Judging what a power cut left: opened by SQLite as a restarted worker would, and held against what had been said."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.faults.power_cut.replay import Said
from tests.faults.power_cut.talk import Message
from worker.store.sqlite.check_sums import check_sum

_ACTIONS = """
    SELECT scenario.name, task.task_id, record.sequence FROM record
    JOIN task ON task.task_no = record.task_no JOIN scenario USING (scenario_no) WHERE record.kind = 0
"""
_SESSIONS = "SELECT name, session_id FROM session JOIN scenario USING (scenario_no) WHERE position IS NOT NULL"
_RECORDS = "SELECT position, kind, task_no, CAST(body AS BLOB), check_sum FROM record"


class WorkerJudge:
    """Judges disks of a worker with the data directory `data`; `scratch` is written over each time."""

    def __init__(self, data: Path, scratch: Path) -> None:
        self._data = data.resolve()
        self._scratch = scratch
        self._needs: dict[bytes, set[tuple[Any, ...]]] = {}

    def __call__(self, left: dict[str, bytes], said: Said) -> Sequence[str]:
        """LOST: what was acknowledged or told is not there. BROKEN: what is there is not sound."""
        database = str(self._data / "swarm.db")
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        for path, content in left.items():
            if path.startswith(database):
                (self._scratch / Path(path).name).write_bytes(content)
        try:
            with closing(sqlite3.connect(f"file:{self._scratch}/swarm.db?mode=rw", uri=True)) as store:
                return [*self._sound(store), *self._records(store, said), *self._models(store, left, said)]
        except sqlite3.Error as error:
            return [f"BROKEN: {error}"] if said.acked or said.published else []

    def _sound(self, store: sqlite3.Connection) -> list[str]:
        found = [f"BROKEN: {row[0]}" for row in store.execute("PRAGMA quick_check") if row != ("ok",)]
        for position, kind, task_no, body, expected in store.execute(_RECORDS):
            if check_sum(position, kind, task_no, body) != expected:
                found.append("BROKEN: a record's check sum")
        return found

    def _records(self, store: sqlite3.Connection, said: Said) -> list[str]:
        there: set[tuple[Any, ...]] = set(store.execute(_ACTIONS)) | set(store.execute(_SESSIONS))
        there |= set(store.execute("SELECT sha256 FROM quarantine"))
        needed = (self._need(message) for message in said.acked if message.exchange == "swarm.records")
        return ["LOST: an acknowledged record" for need in needed if not need <= there]

    def _need(self, message: Message) -> set[tuple[Any, ...]]:
        """What must be in the store for a body: its records by their names, or its quarantine entry."""
        if message.body not in self._needs:
            try:
                records = json.loads(message.body)["records"]
            except ValueError:
                self._needs[message.body] = {(hashlib.sha256(message.body).hexdigest(),)}
            else:
                self._needs[message.body] = {_name_of(message.key, record) for record in records}
        return self._needs[message.body]

    def _models(self, store: sqlite3.Connection, left: dict[str, bytes], said: Said) -> list[str]:
        """A row stands for a file that is there; an event for a row."""
        rows = {row[0]: row[1:] for row in store.execute("SELECT model_id, scenario, version, sha256 FROM model")}
        found = []
        for scenario, version, sha256 in rows.values():
            content = left.get(f"{self._data}/models/{scenario}/{version}/model.json", b"")
            if hashlib.sha256(content).hexdigest() != sha256:
                found.append("LOST: the file of a model whose row is there")
        events = [json.loads(message.body) for message in said.published if message.exchange == "swarm.learning"]
        for event in events:
            if event["type"] in ("learning.trained", "learning.applied") and event["data"]["model_id"] not in rows:
                found.append(f"LOST: the row of a model that {event['type']} told of")
            if event["type"] == "learning.applied" and not left.get(f"{self._data}/current/{event['subject']}.json"):
                found.append("LOST: the file of a model that was applied")
        return found


def _name_of(scenario: str, record: dict[str, Any]) -> tuple[Any, ...]:
    if record["type"] == "action":
        return scenario, record["task_id"], record["event_id"]
    return scenario, record["session_id"]
