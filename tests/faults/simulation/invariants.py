"""What must hold in a simulated world after every step (`each_step`), and once its faults have stopped (`at_rest`).

The store is looked at from inside and counted anew: what it says of itself proves nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from typing import Any

from tests.faults.simulation.faulty_store import at_once
from tests.faults.simulation.node import IDLE, MODELS, RULES, SCENARIOS
from tests.faults.simulation.registers import KINDS, Registers
from tests.faults.simulation.traffic import Sent
from tests.faults.simulation.world import REPLIES, World
from worker.broker.topology import jobs_queue, records_queue
from worker.client.following import LiveModel
from worker.learning.counts import BucketedCounts
from worker.models.files import ModelFiles
from worker.projector.item import project_item
from worker.store.port import ModelKind, OutboxEvent, StoredRecord, alias_of
from worker.wire.codec import record_to_json
from worker.wire.commands import COMMANDS, decode_reply
from worker.wire.events import decode_event, event_id
from worker.wire.names import LEARNING_EXCHANGE
from worker.wire.records import ActionRecord, LearnStatsRecord

_RUN_EVENTS = {"trained": "learning.trained", "failed": "learning.failed", "skipped": "learning.skipped"}


class Invariants:
    """Checks one world; remembers how far it has looked, since what is stored stays."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._store: Any = world.store  # looked at from inside
        self._looked_at_writes = -1
        #: Messages that were neither stored nor quarantined yet.
        self.unsettled: list[Sent] = []
        self._sent_seen = 0
        self._records_seen: Counter[str] = Counter()
        self._identities: set[tuple[object, ...]] = set()
        self._quarantined: set[str] = set()
        self._published_seen = 0
        #: Events as the journal got them, by id.
        self.delivered: dict[str, bytes] = {}
        self._replies_seen = 0
        self._answers: dict[tuple[str, object], tuple[str, str]] = {}
        self._refused: set[str] = set()
        self._ids: dict[tuple[str, str], str] = {}
        self.registers = Registers(world.store)

        world.after_write = self._after_write

    def _after_write(self, call: str, args: tuple[Any, ...]) -> None:
        """State and event are one transaction: not a callback may come between them."""
        self.registers.written(call, args)
        if call in ("finish_run", "deploy"):
            self._events_agree_with_the_state()

    def each_step(self) -> None:
        """I1, I2, I3, I5 and the counters, as of now."""
        world = self._world
        assert not world.problems, world.problems
        assert not world.loop.reported, world.loop.reported
        if world.writes != self._looked_at_writes:
            self._looked_at_writes = world.writes
            self._stored_records_are_issued_and_single()
            self._counters_equal_a_recount()
            self._runs_are_single()
            self._events_agree_with_the_state()
            self.registers.files_are_kept()
        self._nothing_confirmed_is_lost()
        self._events_on_the_wire_are_stored()
        self._answers_agree()
        self._commands_are_kept()

    # ------------------------------------------------------------ records

    def _stored_records_are_issued_and_single(self) -> None:
        """I2 and I3: each record was issued in just this form, and none is there twice."""
        for scenario in SCENARIOS:
            records = self._store._state.log(scenario).records
            seen = self._records_seen[scenario]
            for stored in records[seen:]:
                form = record_to_json(stored.record)
                assert (scenario, form) in self._world.traffic.issued, f"nobody sent {form!r}"
                identity = (scenario, *_identity(stored))
                assert identity not in self._identities, f"{identity} is stored twice"
                self._identities.add(identity)
            self._records_seen[scenario] = len(records)
        for entry in self._store._quarantine.values():
            if entry.sha256 not in self._quarantined:
                assert entry.sha256 in self._world.traffic.bodies, f"nobody sent {entry.body!r}"
                self._quarantined.add(entry.sha256)

    def _nothing_confirmed_is_lost(self) -> None:
        """I1: what was confirmed is stored or quarantined, or still with the broker."""
        sent = self._world.traffic.sent
        self.unsettled += sent[self._sent_seen :]
        self._sent_seen = len(sent)
        if not self.unsettled:
            return
        waiting = self.waiting()
        left = []
        for message in self.unsettled:
            if self._is_settled(message):
                continue
            left.append(message)
            if message.confirmed:
                assert f"m{message.number}" in waiting, f"m{message.number} was confirmed and is lost: {message.body!r}"
        self.unsettled = left

    def waiting(self) -> set[str]:
        """Ids of records messages that are with the broker: ready, or unacknowledged."""
        found: set[str] = set()
        for scenario in SCENARIOS:
            queue = self._world.broker.queues[records_queue(scenario)]
            found.update(held.message.message_id for held in queue.ready)
            for consumer in queue.wake:
                found.update(held.message.message_id for held in consumer.outstanding.values())
        return found

    def _is_settled(self, message: Sent) -> bool:
        if message.sha256.hex() in self._quarantined:
            return True
        if message.seq is None:
            return False
        log = self._store._state.log(message.scenario)
        stored = log.batches.get(("seq", "p", 0, message.seq))
        if stored is None or stored[1] != message.sha256:
            return False
        for record in message.records:
            known = log.by_key.get(_key(record))
            assert known is not None, f"the batch m{message.number} is stored, and its record {record} is not"
        return True

    def _counters_equal_a_recount(self) -> None:
        """Facts are counted along the way; counted at once they are the same."""
        store = self._store
        quarantined = Counter(entry.scenario for entry in store._quarantine.values())
        trained = Counter(run.scenario for run in store._runs.values() if run.state == "trained")
        applied = Counter(
            row.scenario for row in store._deployments.values() if row.action == "apply" and row.state == "verified"
        )
        for scenario in SCENARIOS:
            facts, log = store._state.copy_of_facts(scenario), store._state.log(scenario)
            told = {
                "records": facts.records, "batches": facts.batches, "sessions": facts.sessions,
                "episodes": facts.episodes, "open_tasks": facts.open_tasks, "quarantined": facts.quarantined,
                "trainings": facts.trainings_completed, "applied": facts.models_applied,
            }  # fmt: skip
            counted = {
                "records": len(log.records),
                "batches": len(log.batches),
                "sessions": sum(type(stored.record) is LearnStatsRecord for stored in log.records),
                "episodes": sum(map(len, log.episodes.values())),
                "open_tasks": sum(bool(task.actions) and not task.projected_upto for task in log.tasks.values()),
                "quarantined": quarantined[scenario],
                "trainings": trained[scenario],
                "applied": applied[scenario],
            }
            assert told == counted, f"facts of {scenario}: {told}, counted {counted}"

    # ------------------------------------------------------------ runs, models, events

    def _runs_are_single(self) -> None:
        """I3: one run per scenario, window and nonce; one at a time; one model per run, and versions without a gap."""
        runs = list(self._store._runs.values())
        windows = Counter((run.scenario, run.kind, run.window_hi, run.nonce) for run in runs)
        assert all(times == 1 for times in windows.values()), windows
        running = Counter(run.scenario for run in runs if run.state == "running")
        assert all(times == 1 for times in running.values()), running
        models = list(self._store._models.values())
        trained = {run.run_id: run.model_id for run in runs if run.state == "trained"}
        assert {model.run_id: model.model_id for model in models} == trained
        assert len(models) == len(trained)
        for scenario in SCENARIOS:
            versions = [model.version for model in models if model.scenario == scenario]
            assert versions == list(range(1, len(versions) + 1)), versions
        for scenario, aliases in self._store._aliases.items():
            for alias, model_id in aliases.items():
                model = self._store._models[model_id]
                assert alias.startswith("lora-") == (model.kind == "lora"), (alias, model)
            for kind in KINDS:
                champion = aliases.get(alias_of("champion", kind))
                verified = {
                    row.model_id
                    for row in self._store._deployments.values()
                    if row.scenario == scenario
                    and row.state == "verified"
                    and self._store._models[row.model_id].kind == kind
                }
                assert (champion in verified) if champion else not verified, (scenario, kind, champion, verified)

    def _events_agree_with_the_state(self) -> None:
        """I5: an event for each end of a run and a deployment, committed with it, and no other."""
        store = self._store
        expected: dict[str, str] = {}
        for run in store._runs.values():
            if run.state in _RUN_EVENTS and (run.state != "skipped" or run.trigger.get("kind") == "command"):
                expected[self._id(run.run_id, _RUN_EVENTS[run.state])] = f"run {run.run_id} {run.state}"
        failed = set()
        for row in store._deployments.values():
            if row.state == "verified":
                type_ = "learning.applied" if row.action == "apply" else "learning.rolled_back"
                expected[self._id(row.deployment_id, type_)] = f"deployment {row.deployment_id} {row.state}"
            elif row.state == "failed":
                expected[self._id(row.deployment_id, "learning.failed")] = f"deployment {row.deployment_id} failed"
                failed.add(self._id(row.deployment_id, "learning.rolled_back"))
        events = store._events.keys()
        assert events >= expected.keys(), f"no event for {[expected[id_] for id_ in expected.keys() - events]}"
        extra = events - expected.keys() - failed
        assert not extra, f"events of what did not happen: {[store._events[id_] for id_ in extra]}"

    def _id(self, subject: str, type_: str) -> str:
        known = self._ids.get((subject, type_))
        if known is None:
            known = self._ids[subject, type_] = event_id(subject, type_)
        return known

    def _events_on_the_wire_are_stored(self) -> None:
        """I5: what subscribers got is in the outbox, the same each time; what is marked sent was delivered."""
        published = self._world.broker.published
        for message in published[self._published_seen :]:
            if message.exchange == LEARNING_EXCHANGE:
                event: OutboxEvent | None = self._store._events.get(message.message_id)
                assert event is not None, f"{message.message_id} was published and is not in the outbox"
                assert event.body == message.body
                self.delivered.setdefault(message.message_id, message.body)
        self._published_seen = len(published)
        unsent = [id_ for id_, event in self._store._events.items() if event.sent_at_ms and id_ not in self.delivered]
        assert not unsent, f"marked as sent, and nobody got them: {unsent}"

    # ------------------------------------------------------------ commands

    def _commands_are_kept(self) -> None:
        """I1 for commands that one worker carries out: in the ledger, refused, or still with the broker."""
        world = self._world
        waiting: set[str] = set()
        for scenario in SCENARIOS:
            queue = world.broker.queues[jobs_queue(scenario)]
            waiting.update(held.message.message_id for held in queue.ready)
            for consumer in queue.wake:
                waiting.update(held.message.message_id for held in consumer.outstanding.values())
        for command_id, message in world.commands.items():
            if message.routing_key.startswith("job."):
                kept = command_id in self._store._commands or command_id in waiting or command_id in self._refused
                assert kept, f"{command_id} is lost"

    def _answers_agree(self) -> None:
        """The same command twice gives the same answer, and it is the stored one."""
        replies = list(self._world.broker.queues[REPLIES].ready)
        for held in replies[self._replies_seen :]:
            reply = decode_reply(held.message.body)
            if reply.status == "accepted":
                continue
            if reply.status == "refused" and "reason" in reply.result:  # at the door; sent again it may be taken
                self._refused.add(reply.command_id)
                continue
            name = json.loads(self._world.commands[reply.command_id].body)["command"]
            if name == "shutdown":  # answered whatever the store does: once by who stops, once by who starts
                continue
            worker = held.message.headers["worker"] if COMMANDS[name].road == "broadcast" else None
            answer = (reply.status, f"{reply.result} {reply.error}")
            first = self._answers.setdefault((reply.command_id, worker), answer)
            assert first == answer, f"{name} {reply.command_id} was answered {first}, then {answer}"
        self._replies_seen = len(replies)
        rolled_back = Counter(row.by for row in self._store._deployments.values() if row.action == "rollback")
        assert all(times == 1 for times in rolled_back.values()), f"rolled back twice: {rolled_back}"

    # ------------------------------------------------------------ at rest

    def carried_out(self, command_ids: list[str]) -> bool:
        """Whether the ledger has the end of each."""
        ends = [self._store._commands.get(command_id) for command_id in command_ids]
        return all(end is not None and end.status != "accepted" for end in ends)

    @property
    def answers(self) -> dict[str, str]:
        """What came of commands, by id."""
        return {command_id: " ".join(answer) for (command_id, _), answer in self._answers.items()}

    def unrest(self) -> list[str]:
        """What still waits for something; empty once everything has drained."""
        store, world = self._store, self._world
        found = [f"{id_} waits" for id_ in sorted(self.waiting())]
        found += [f"run {run.run_id} is {run.state}" for run in store._runs.values() if run.state not in _RUN_EVENTS]
        found += [f"event {id_} is unsent" for id_, event in store._events.items() if event.sent_at_ms is None]
        found += [f"command {id_}" for id_, command in store._commands.items() if command.status == "accepted"]
        found += [f"{row.deployment_id} is started" for row in store._deployments.values() if row.state == "started"]
        now_ms = max([world.now_ms(), *(node.clock.now_ms() for node in world.nodes.values())])
        pending = at_once(store.pending(now_ms=now_ms, idle_ms=round(IDLE * 1000), limit=1000))
        found += [f"{len(pending)} items to project"] if pending else []
        for scenario, kind in product(SCENARIOS, KINDS):
            served, live = self._served_and_live(scenario, kind)
            found += [] if served == live else [f"{served} is served in {scenario}, {live} is live"]
        found += self.registers.forgotten()
        open_tasks = sum(store._state.copy_of_facts(scenario).open_tasks for scenario in SCENARIOS)
        return found + ([f"{open_tasks} open tasks"] if open_tasks else [])

    def at_rest(self) -> None:
        """Everything arrived, and what was derived step by step is what comes of the log at once."""
        self.each_step()
        assert not self.unsettled, f"neither stored nor quarantined: {self.unsettled}"
        assert set(self._store._events) == set(self.delivered)
        files = ModelFiles(self._world.data_dir)
        for scenario in SCENARIOS:
            for alias, model_id in self._store._aliases.get(scenario, {}).items():
                assert files.read(self._store._models[model_id]), alias
            for kind in KINDS:
                served, live = self._served_and_live(scenario, kind)
                assert served == live, f"{served} is served in {scenario}, {live} is live"
            self._projections_equal_a_recompute(scenario)
        if len(self._world.workers) == 1:
            self._subscribers_know_what_is_live()

    def _served_and_live(self, scenario: str, kind: ModelKind) -> tuple[str | None, str | None]:
        champion = self._store._aliases.get(scenario, {}).get(alias_of("champion", kind))
        live = None if champion is None else self._store._models[champion].sha256
        return self._world.applicators[kind]._served.get(scenario), live

    def _subscribers_know_what_is_live(self) -> None:
        """One relay keeps the order of the outbox, so who drops copies knows the live model in the end."""
        stored = [id_ for id_ in self._store._events if id_ in self.delivered]
        assert list(self.delivered) == stored, "events came in another order than they were stored in"
        for scenario in SCENARIOS:
            live = LiveModel(scenario)
            for body in self.delivered.values():
                live.take(decode_event(body))
            known = None if live.current is None else live.current.model_id
            assert known == self._store._aliases.get(scenario, {}).get("champion")

    def _projections_equal_a_recompute(self, scenario: str) -> None:
        store = self._store
        log = store._state.log(scenario)
        counts: BucketedCounts = {bucket: +found for bucket, found in log.counts.items() if +found}
        episodes = {origin: list(made) for origin, made in log.episodes.items() if made}
        at_once(store.rebuild(scenario))
        now_ms = self._world.now_ms() + 10**9
        while items := at_once(store.pending(now_ms=now_ms, idle_ms=0, limit=10_000)):
            made = [project_item(item, RULES, MODELS) for item in items]
            assert not any(faults for _, faults in made)
            at_once(store.project([projection for projection, _ in made]))
        again = {bucket: +found for bucket, found in log.counts.items() if +found}
        assert counts == again, f"aggregates of {scenario}: {_difference(counts, again)}"
        assert episodes == {origin: list(made) for origin, made in log.episodes.items() if made}


def _difference(one: BucketedCounts, other: BucketedCounts) -> list[Any]:
    return [
        (bucket, one.get(bucket), other.get(bucket))
        for bucket in one.keys() | other.keys()
        if one.get(bucket) != other.get(bucket)
    ]


def _identity(stored: StoredRecord) -> tuple[object, ...]:
    return _key(stored.record)


def _key(record: Any) -> tuple[object, ...]:
    """A record's identity, as the design says (3.1)."""
    if isinstance(record, ActionRecord):
        return ("action", record.task_id, record.event_id)
    if isinstance(record, LearnStatsRecord):
        return ("session", record.session_id)
    return ("record", record.record_id)
