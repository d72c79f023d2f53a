"""What producers send in a simulated world, and the oracle: everything that was issued, and what was confirmed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, TypeAlias, get_args

from msgspec import Raw
from msgspec.structs import replace

from worker.store.quarantine_rows import message_of
from worker.wire.codec import encode_batch, record_to_json
from worker.wire.records import (
    ActionRecord,
    DependencyGraphRecord,
    Failure,
    LearnStatsRecord,
    Record,
    Success,
)

#: `late` adds to a task that was sent before, `recut` sends known records in another batch, `conflict` another content
#: under a known record's name, `same_seq` another content under a known batch's number.
Kind: TypeAlias = Literal[
    "task", "open", "session", "late", "recut", "graph", "conflict", "same_seq", "no_json", "bad_record", "version"
]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(slots=True)
class Sent:
    """One message that a producer made, and keeps for its retries."""

    number: int
    scenario: str
    body: bytes
    sha256: bytes
    #: The batch's number at its producer; None: it is no batch.
    seq: int | None
    records: Sequence[Record] = ()
    confirmed: bool = False
    #: Found stored or quarantined once, so for good.
    settled: bool = False


@dataclass
class Traffic:
    """The producers: one a scenario, with its counter."""

    random: Random
    sent: list[Sent] = field(default_factory=list)
    #: Every form in which a record was issued, by its identity; a conflict adds a second form.
    issued: dict[tuple[str, bytes], int] = field(default_factory=dict)
    #: SHA-256 of everything that may be in the quarantine.
    bodies: set[str] = field(default_factory=set)
    _tasks: dict[str, list[list[ActionRecord]]] = field(default_factory=dict)
    _sessions: int = 0
    _seqs: dict[str, int] = field(default_factory=dict)

    def make(self, scenario: str, kind: Kind) -> Sent:
        """A new message."""
        match kind:
            case "no_json":
                return self._keep(scenario, f'{{"records": [{len(self.sent)}'.encode(), None, ())
            case "bad_record":
                return self._no_batch(scenario, schema_version=1, records=[{"type": "x"}])
            case "version":
                return self._no_batch(scenario, schema_version=99, records=[])
            case "same_seq":
                records = self._records(scenario, "task")
                return self._batch(scenario, records, seq=self._a_seq_of_before(scenario))
            case _:
                return self._batch(scenario, self._records(scenario, kind), seq=None)

    def _records(self, scenario: str, kind: Kind) -> list[Record]:
        tasks = self._tasks.setdefault(scenario, [])
        random = self.random
        match kind:
            case "late" if tasks:
                known = random.choice(tasks)
                added = self._action(known[0].task_id, len(known), random.choice(("look", "open", "done")))
                known.append(added)
                return [added]
            case "recut" if tasks:
                known = random.choice(tasks)
                return [*random.sample(known, random.randint(1, len(known)))]
            case "conflict" if tasks:
                taken = random.choice(random.choice(tasks))
                return [replace(taken, action="wait"), *self._task(scenario, closed=True)]
            case "session":
                self._sessions += 1
                session_id = f"s{self._sessions}"
                actions = [
                    replace(action, session_id=session_id)
                    for action in self._task(scenario, closed=random.random() < 0.5)
                ]
                tasks[-1][:] = actions
                outcome = Success(1.0) if random.random() < 0.7 else Failure("no")
                ended = LearnStatsRecord(
                    session_id=session_id, stats_json=Raw(b"{}"), outcome=outcome, total_ticks=3,
                    total_actions=len(actions),
                )  # fmt: skip
                # Also its end before its actions, in one batch; in two batches it is the network that reorders.
                return [ended, *actions] if random.random() < 0.5 else [*actions, ended]
            case "graph":
                return [
                    DependencyGraphRecord(
                        prompt="p", response="r", available_actions=["look", "open"], discover_order=["look"],
                        not_discover_order=["open"], model="m", endpoint="e", latency_ms=1,
                        record_id=f"g{len(self.sent)}",
                    )
                ]  # fmt: skip
            case _:
                return [*self._task(scenario, closed=kind != "open")]

    def _task(self, scenario: str, *, closed: bool) -> list[ActionRecord]:
        tasks = self._tasks.setdefault(scenario, [])
        task_id = f"t{scenario}{len(tasks)}"
        names = [self.random.choice(("look", "open", "guess")) for _ in range(self.random.randint(1, 3))]
        if closed:
            names.append(self.random.choice(("done", "give_up")))
        actions = [self._action(task_id, place, name) for place, name in enumerate(names)]
        tasks.append(actions)
        return list(actions)

    def _action(self, task_id: str, place: int, name: str) -> ActionRecord:
        return ActionRecord(
            task_id=task_id, tick=place, worker_id=0, action=name, event_id=place, success=name != "guess"
        )

    def _a_seq_of_before(self, scenario: str) -> int | None:
        seqs = [sent.seq for sent in self.sent if sent.scenario == scenario and sent.seq is not None]
        return self.random.choice(seqs) if seqs else None

    def _no_batch(self, scenario: str, **envelope: Any) -> Sent:
        body = json.dumps({"batch_id": f"b{len(self.sent)}", **envelope})
        return self._keep(scenario, body.encode(), None, ())

    def _batch(self, scenario: str, records: Sequence[Record], *, seq: int | None) -> Sent:
        if seq is None:
            seq = self._seqs.get(scenario, 0)
            self._seqs[scenario] = seq + 1
        body = encode_batch(records, producer_id="p", producer_epoch=0, batch_seq=seq)
        return self._keep(scenario, body, seq, records)

    def _keep(self, scenario: str, body: bytes, seq: int | None, records: Sequence[Record]) -> Sent:
        digest = hashlib.sha256(body)
        sent = Sent(len(self.sent), scenario, body, digest.digest(), seq, records)
        self.sent.append(sent)
        self.bodies.add(digest.hexdigest())
        for record in records:
            form = record_to_json(record)
            self.issued[scenario, form] = sent.number
            # A record in conflict is quarantined alone, as a message of its own.
            self.bodies.add(hashlib.sha256(message_of(record)).hexdigest())
        return sent
