"""A simulated world: producers, a broker, a store, workers in processes that fail; every step of it can be repeated."""

from __future__ import annotations

import hashlib
import random as global_random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import copy_context
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.simulation.faults import DeathPoint, Faults, PublishEnd
from tests.faults.simulation.faulty_store import at_once
from tests.faults.simulation.loop import SimulatedLoop
from tests.faults.simulation.node import SCENARIOS, Node
from tests.faults.simulation.process import START_MS, Life, Process
from tests.faults.simulation.server import UnsteadyServer
from tests.faults.simulation.traffic import Kind, Sent, Traffic
from worker.broker.memory import MemoryBroker
from worker.broker.port import OutgoingMessage
from worker.broker.topology import Queue, records_queue
from worker.errors import StoreUnavailable
from worker.models.applicators.noop import NoopApplicator
from worker.sink.sink import Sink
from worker.store.memory import MemoryStore
from worker.store.port import ModelKind
from worker.wire.commands import Args, Command, encode_command, routing_key_for
from worker.wire.names import CONTROL_EXCHANGE, RECORDS_EXCHANGE

#: Where everybody's answers go, and are read by the invariants.
REPLIES = "swarm.reply.simulation"
#: After so many virtual seconds the broker gives up a client that answers no heartbeat.
_HEARTBEATS = 12.0
#: How long the broker may take to see that a process is gone, in s: at once, or when the whole machine went.
_NOTICED = (0.0, 0.0, 0.0, _HEARTBEATS)


class World:
    """One run of everything, decided by `seed` and by what is done to it. `close` it."""

    def __init__(
        self,
        seed: int,
        data_dir: Path,
        *,
        workers: Sequence[str],
        store: type[MemoryStore] = MemoryStore,
        sink: type[Sink] = Sink,
    ) -> None:
        """`workers` by name. `store` and `sink` may have a fault of their own, to see that it is found.

        One worker has its store alone, as with SQLite: who opens it knows that whoever had it before is dead.
        """
        self.seed = seed
        self.workers = tuple(workers)
        self.trace: list[str] = []
        #: Found wrong where no exception could be raised; looked at after every step.
        self.problems: list[str] = []
        self.data_dir = data_dir
        self.loop = SimulatedLoop(Random(f"order {seed}"))
        self.traffic = Traffic(Random(f"traffic {seed}"))
        self.faults = Faults(Random(f"faults {seed}"), self.kill)
        self.store = store(self)
        at_once(self.store.open())
        self.broker = MemoryBroker()
        for scenario in SCENARIOS:
            self.broker.declare_scenario(scenario)
        self.broker.declare(Queue(name=REPLIES, arguments={}, bindings=[]))
        self.nodes: dict[str, Node] = {}
        self.writes = 0
        #: Called after each write that was done: what must hold within a transaction is looked at before the next.
        self.after_write: Callable[[str, tuple[Any, ...]], None] = lambda *_: None
        #: Commands by id, as they were sent.
        self.commands: dict[str, OutgoingMessage] = {}
        self.boots = 0
        self._sink = sink
        self.applicators: dict[ModelKind, NoopApplicator] = {
            "offline": NoopApplicator(),
            "lora": UnsteadyServer(self.faults),
        }
        self._offsets_ms: dict[str, int] = {}
        self._furthest_ms = 0
        self._nodes_ever: list[Node] = []
        self._outside = copy_context()
        self._closing = ExitStack()
        # tenacity and the writer's jitter draw from the global generator.
        self._closing.callback(global_random.setstate, global_random.getstate())
        global_random.seed(f"global {seed}")

    # ------------------------------------------------------------ time

    def now_ms(self) -> int:
        """The time that nobody changes, as the store's own clock."""
        return START_MS + round(self.loop.now * 1000)

    def monotonic(self) -> float:
        """Virtual seconds."""
        return self.loop.now

    def run(self, *, turns: int = 1_000_000, seconds: float = 0.0) -> None:
        """Let callbacks run, and time pass once nothing is ready."""
        self.loop.advance(turns=turns, seconds=seconds)

    def jump(self, name: str | None, seconds: float) -> None:
        """Somebody sets the wall clock, of one worker's machine or of all."""
        for each in [name] if name else self.workers:
            self._offsets_ms[each] = self._offsets_ms.get(each, 0) + round(seconds * 1000)
            self._furthest_ms = max(self._furthest_ms, self._offsets_ms[each])
        self.note(f"clock of {name or 'all'} {seconds:+}")

    def mend_clocks(self) -> None:
        """All clocks show the same, and nothing that was stored lies in their future."""
        self._offsets_ms = dict.fromkeys(self.workers, self._furthest_ms)

    # ------------------------------------------------------------ workers

    def start(self, name: str) -> None:
        """Start a worker, unless it lives."""
        if name in self.nodes or name not in self.workers:
            return
        self.boots += 1
        process = Process(name, self.boots)
        self.note(f"start {process}")
        node = Node(
            process,
            loop=self.loop,
            store=self.store,
            broker=self.broker,
            faults=self.faults,
            witness=self._saw,
            alone=len(self.workers) == 1,
            data_dir=self.data_dir,
            applicators=self.applicators,
            clock_offset_ms=lambda: self._offsets_ms.get(name, 0),
            sink=self._sink,
        )
        self.nodes[name] = node
        self._nodes_ever.append(node)
        node.task.add_done_callback(lambda _: self._ended(node), context=self._outside)

    def kill(self, process: Process) -> None:
        """kill -9: whatever it had in memory is gone."""
        node = self.nodes.get(process.name)
        if node is None or node.process is not process:
            return
        self.note(f"kill {process}")
        self.faults.note("killed")
        process.life = Life.DEAD
        del self.nodes[process.name]
        wait = self.faults.random.choice(_NOTICED)
        self.loop.call_later(wait, node.leave, context=self._outside)

    def freeze(self, name: str) -> None:
        """SIGSTOP; the broker gives it up after some heartbeats."""
        node = self.nodes.get(name)
        if node is None or node.process.life is not Life.ALIVE:
            return
        self.note(f"freeze {node.process}")
        self.faults.note("frozen")
        node.process.life = Life.FROZEN
        self.loop.call_later(_HEARTBEATS, self._give_up, node, context=self._outside)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        node = self.nodes.get(name)
        if node is None or node.process.life is not Life.FROZEN:
            return
        self.note(f"thaw {node.process}")
        node.process.life = Life.ALIVE
        parked, node.process.parked = node.process.parked, []
        self.loop.unpark(parked)

    def cut(self) -> None:
        """Every connection to the broker is gone, for a moment."""
        self.note("all connections cut")
        for name in sorted(self.nodes):
            self.nodes[name].cut()

    def doom(self, name: str, point: DeathPoint, hit: int) -> None:
        """The worker will die at the `hit`-th time it comes to this point."""
        node = self.nodes.get(name)
        if node is not None:
            self.faults.doomed[node.process] = (point, hit)

    def strike_after(self, name: str, turns: int, *, fatal: bool) -> None:
        """Kill or freeze the worker after so many of its callbacks: between any two steps of anything it does."""
        node = self.nodes.get(name)
        if node is None:
            return
        process = node.process

        def strike() -> None:
            self.faults.note("struck between two callbacks")
            if fatal:
                self.kill(process)
            else:
                self.freeze(name)

        process.countdown, process.strike = turns, strike

    def stop(self, name: str) -> None:
        """SIGTERM: it drains."""
        node = self.nodes.get(name)
        if node is not None:
            self.note(f"stop {node.process}")
            node.process.context.run(node.worker.request_stop, "SIGTERM")

    def _give_up(self, node: Node) -> None:
        if node.process.life is Life.FROZEN:
            node.cut()

    def _ended(self, node: Node) -> None:
        """A worker's `run` returned or raised; a supervisor would start it again."""
        if node.process.life is Life.DEAD or node.process.unwinding:
            return
        error = node.task.exception()
        self.note(f"end {node.process} {type(error).__name__}")
        self.faults.note(f"ended {type(error).__name__}")
        if error is not None and not isinstance(error, StoreUnavailable):
            self.problems.append(f"{node.process} ended by itself: {error!r}")
        node.process.life = Life.DEAD
        self.nodes.pop(node.process.name, None)
        node.leave()

    # ------------------------------------------------------------ messages

    def publish(self, scenario: str, kind: Kind, end: PublishEnd = "confirmed") -> Sent:
        """A producer makes a message and sends it, once."""
        sent = self.traffic.make(scenario, kind)
        self.send(sent, end)
        return sent

    def send(self, sent: Sent, end: PublishEnd = "confirmed") -> None:
        """Send a message, for the first time or again."""
        self.note(f"send m{sent.number} {end}")
        if end in ("nacked", "returned"):
            return
        sent.confirmed |= end == "confirmed"
        self.broker.send(
            OutgoingMessage(
                exchange=RECORDS_EXCHANGE, routing_key=sent.scenario, body=sent.body, message_id=f"m{sent.number}"
            )
        )

    def command(self, name: str, args: Args, *, scenario: str | None, again: str | None = None) -> str:
        """An operator sends a command, or the one of id `again` once more; its id."""
        if again is not None:
            message = self.commands[again]
        else:
            command_id = f"c{len(self.commands)}"
            body = encode_command(Command(command=name, command_id=command_id, args=args, scenario=scenario))
            key = routing_key_for(name, scenario=scenario)
            message = OutgoingMessage(
                exchange=CONTROL_EXCHANGE, routing_key=key, body=body, message_id=command_id, reply_to=REPLIES
            )
        self.commands[message.message_id] = message
        self.note(f"command {message.message_id} {name}")
        self.broker.send(message, mandatory=False)
        return message.message_id

    def reorder(self, scenario: str) -> None:
        """The queue gives its messages in another order."""
        ready = list(self.broker.queues[records_queue(scenario)].ready)
        self.faults.random.shuffle(ready)
        queue = self.broker.queues[records_queue(scenario)].ready
        queue.clear()
        queue.extend(ready)

    # ------------------------------------------------------------ what happened

    def note(self, what: str) -> None:
        """A line of the trace."""
        self.trace.append(f"{self.loop.now:.3f} {what}")

    def digest(self) -> str:
        """What tells two runs apart: everything that happened, and how much chance it took."""
        told = [*self.trace, repr(self.loop.turns), repr(self.faults.random.random()), repr(self.loop.draw())]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()

    def _saw(self, process: Process, call: str, args: tuple[Any, ...], outcome: object) -> None:
        self.writes += 1
        self.note(f"{process} {call} {_brief(outcome)}")
        if call == "finish_run" and outcome is None:
            run = args[0]
            held = self.store._leases[f"training.{run.scenario}"]
            if held.epoch != run.epoch:
                self.problems.append(f"{process} ended run {run.run_id} under epoch {run.epoch}, the lease's is {held}")
        if isinstance(outcome, Exception):
            return
        try:
            self.after_write(call, args)
        except AssertionError as broken:  # not to be met by the product
            self.problems.append(f"after {call} by {process}: {broken}")

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Clear everything away. What is left of dead processes unwinds now, and nobody hears of it."""
        with self._closing:
            self.faults.stop()
            for node in self._nodes_ever:
                process = node.process
                process.unwinding, process.life, process.countdown = True, Life.ALIVE, 0
                parked, process.parked = process.parked, []
                self.loop.unpark(parked)
                for task in process.tasks:
                    task.cancel()
            self.loop.advance(turns=200_000, seconds=100_000.0)
            left = [task for node in self._nodes_ever for task in node.process.tasks if not task.done()]
            self.loop.close()
            if left:
                raise AssertionError(f"tasks that do not end when they are cancelled: {left[:3]}")


def _brief(outcome: object) -> str:
    if isinstance(outcome, list):
        return ",".join(type(each).__name__ for each in outcome)
    if isinstance(outcome, Exception):
        return f"{type(outcome).__name__}: {outcome}"[:160]
    return repr(outcome) if isinstance(outcome, bool | int | None) else type(outcome).__name__
