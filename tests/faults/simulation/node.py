"""One start of one worker in a simulated world: the product's own parts, as `worker.app` puts them together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from tests.faults.simulation.faults import Faults
from tests.faults.simulation.faulty_store import FaultyStore, Witness
from tests.faults.simulation.loop import SimulatedLoop
from tests.faults.simulation.network import SimulatedControl, SimulatedPublisher, SimulatedSubscriber
from tests.faults.simulation.process import Process, SimulatedClock
from tests.faults.simulation.trainer import ScriptedAdapterTrainer, ScriptedTrainer
from worker.broker.memory import MemoryBroker
from worker.broker.port import Delivery
from worker.clock import Clock
from worker.control.admission import Admission
from worker.control.control import Control
from worker.control.operations import Operations
from worker.episodes.model import LearnModel
from worker.episodes.projection import learn_models
from worker.episodes.rules import Rules
from worker.intake import Intake
from worker.learning.trigger_text import parse_trigger
from worker.life import Parts, Worker
from worker.models.announce import Announcer
from worker.models.applicators.noop import NoopApplicator
from worker.models.applier import Applier, ApplyMode
from worker.models.files import ModelFiles
from worker.models.gate import GateConfig
from worker.models.keeper import AdapterKeeper
from worker.models.registry import Registry
from worker.outbox import OutboxRelay
from worker.projector.projector import Projector
from worker.settings import LEARN_MODELS, Settings, load_settings
from worker.sink.batcher import Limits
from worker.sink.sink import Sink
from worker.sink.trial import Trial
from worker.store.memory import MemoryStore
from worker.store.port import ModelKind
from worker.store.retention import Retention
from worker.training.execution import Timing, Tools
from worker.training.inputs import TrainingConfig
from worker.training.lora.inputs import LoraConfig
from worker.training.lora.recipe import LoraPlan, lora_recipe
from worker.training.offline import offline_recipe
from worker.training.recipe import Recipe
from worker.training.runs import RunManager
from worker.training.scheduler import TriggerScheduler
from worker.training.trigger_book import TriggerBook

#: Scenarios of every world, each named for its apply mode.
APPLY_MODES: Mapping[str, ApplyMode] = {"auto": "auto", "manual": "manual"}
SCENARIOS = tuple(APPLY_MODES)
#: A task without records for so long is closed, in s.
IDLE = 4.0
#: All waits are shorter than in production, in the same proportion: a virtual second costs real time too.
LEASE_TTL = 6.0
RULES = Rules(holdout=0.3)
MODELS: Sequence[LearnModel] = learn_models(LEARN_MODELS, RULES)
MAX_HISTORY = 2
_TRIGGER = parse_trigger("count(2)")
_CONFIG = TrainingConfig(max_sessions=20, holdout=0.3, gate=GateConfig(min_samples=1))
_PREFETCH = 6


@lru_cache
def _settings() -> Settings:
    return load_settings(scenarios=",".join(SCENARIOS), applicator="noop")


class _NoTrial(Trial):
    """Suspects are let off: to try them is to start a process, and no body here ends its decoder."""

    async def verdict(self, *_: object, **__: object) -> str | None:
        """It survived."""
        return None


class _Nothing:
    """Stands where the worker serves HTTP and tells its status: neither changes anything."""

    draining = False

    async def start(self) -> int:
        return 0

    async def stop(self) -> None:
        """Nothing runs."""

    async def report(self) -> dict[str, Any]:
        return {}


class _Worker(Worker):
    def alone(self) -> AbstractContextManager[None]:
        """A lock of the machine's: it would not end with a simulated process, nor know the simulated directories."""
        return nullcontext()


class Node:
    """A worker in a process of its own."""

    def __init__(
        self,
        process: Process,
        *,
        loop: SimulatedLoop,
        store: MemoryStore,
        broker: MemoryBroker,
        faults: Faults,
        witness: Witness,
        alone: bool,
        data_dir: Path,
        applicators: Mapping[ModelKind, NoopApplicator],
        clock_offset_ms: Callable[[], int],
        sink: type[Sink] = Sink,
    ) -> None:
        """`sink` may be one with a fault, to see that it is found."""
        self.process = process
        self._loop = loop
        self._broker = broker
        self._faults = faults
        self._applicators = applicators
        self._data_dir = data_dir
        self._sink_type = sink
        self.clock: Clock = SimulatedClock(loop.time, clock_offset_ms)
        self.store = FaultyStore(store, process, loop, faults, witness, alone=alone)
        self._deployments = 0
        self.subscribers: dict[str, SimulatedSubscriber] = {}
        self.control: SimulatedControl | None = None
        self.intake: Intake | None = None
        boot = f"b{process.boot}"
        worker = self.worker = _Worker(_settings(), self._assemble, boot_id=boot)
        self.task: asyncio.Task[None] = process.context.run(loop.create_task, worker.run())

    def cut(self) -> None:
        """All its connections to the broker are gone, for a moment."""
        for subscriber in self.subscribers.values():
            subscriber.cut()
        if self.control is not None:
            self.control.cut()

    def leave(self) -> None:
        """The broker has noticed that the process is gone."""
        for subscriber in self.subscribers.values():
            subscriber.leave()
        if self.control is not None:
            self.control.forget()

    def _assemble(self, worker: Worker) -> Parts:
        process, loop, broker, faults, clock = self.process, self._loop, self._broker, self._faults, self.clock
        store = self.store.as_store()
        inbox: asyncio.Queue[Delivery] = asyncio.Queue()
        subscribers = self.subscribers = {
            name: SimulatedSubscriber(
                broker, name, inbox, prefetch=_PREFETCH, process=process, loop=loop, faults=faults
            )
            for name in SCENARIOS
        }
        listener = self.control = SimulatedControl(
            broker, process=process, boot_id=worker.boot_id, scenarios=SCENARIOS, loop=loop
        )
        intake = self.intake = Intake(subscribers)
        events = SimulatedPublisher(broker, process, loop, faults)
        relay = OutboxRelay(store, events, clock)
        sink = self._sink_type(
            store,
            clock,
            lambda _: RULES,
            settle=self._settle,
            trial=_NoTrial(),
            limits=Limits(messages=4),
            on_stored=lambda: projector.wake(),  # noqa: PLW0108 - made below
            on_store_down=lambda reason: intake.hold("store", f"store: {reason}"),
            on_store_up=lambda: intake.release("store"),
        )
        projector = Projector(
            store,
            clock,
            rules_of=lambda _: RULES,
            models_of=lambda _: MODELS,
            idle_ms=round(IDLE * 1000),
            busy=sink.busy,
        )
        registry = Registry(store, ModelFiles(self._data_dir))
        announcer = Announcer(process.name)
        applier = Applier(
            store=store,
            registry=registry,
            applicators=self._applicators,
            announcer=announcer,
            clock=clock,
            mode_of=APPLY_MODES.__getitem__,
            max_history=MAX_HISTORY,
            on_event=relay.wake,
            new_id=self._new_deployment_id,
        )
        book = TriggerBook(store)
        plan = LoraPlan(
            config=LoraConfig(base_model="tiny"), models_of=lambda _, __: MODELS, rules_of=lambda _: RULES,
            runs_dir=self._data_dir / "lora/data", outputs_dir=self._data_dir / "lora/adapters", checkpoint_steps=50,
        )  # fmt: skip
        recipes: dict[ModelKind, Recipe] = {
            "offline": offline_recipe(
                store, registry, config=_CONFIG, launcher=ScriptedTrainer(faults, process),
                runs_dir=self._data_dir / "runs",
            ),
            "lora": lora_recipe(store, registry, plan, ScriptedAdapterTrainer(faults, process)),
        }  # fmt: skip
        tools = Tools(
            store=store,
            book=book,
            registry=registry,
            announcer=announcer,
            clock=clock,
            recipes=recipes,
            owner=f"{process.name}.{worker.boot_id}",
            timing=Timing(lease_ttl=LEASE_TTL, renew=LEASE_TTL / 3, first_backoff=2.0),
        )
        runs = RunManager(tools, applier, scenarios=SCENARIOS, on_event=relay.wake)
        adapters = AdapterKeeper(applier, scenarios=SCENARIOS, recover=runs.recover)
        scheduler = TriggerScheduler(
            store=store,
            book=book,
            runs=runs,
            clock=clock,
            triggers=dict.fromkeys(SCENARIOS, _TRIGGER),
            interval=4.0,
            learn_models=dict.fromkeys(SCENARIOS, MODELS[0].name),
        )
        nothing: Any = _Nothing()
        operations = Operations(
            scenarios=SCENARIOS,
            store=store,
            clock=clock,
            runs=runs,
            book=book,
            applier=applier,
            registry=registry,
            projector=projector,
            intake=intake,
            rules_of=lambda _: RULES,
            dead=nothing,
            status=nothing.report,
            producers=None,
            stop_and_drain=worker.stop_and_drain,
        )
        control = Control(
            listener,
            store,
            clock,
            operations.carry_out,
            worker_id=process.name,
            scenarios=frozenset(SCENARIOS),
            admission=Admission(clock, worker_id=process.name, scenarios=frozenset(SCENARIOS), keys={}),
        )
        return Parts(
            store=store,
            applicators=self._applicators,
            sessions=(),
            inbox=inbox,
            subscribers=cast("Any", subscribers),
            watchdogs={},
            intake=intake,
            sink=sink,
            projector=projector,
            scheduler=scheduler,
            runs=runs,
            applier=applier,
            adapters=adapters,
            registry=registry,
            relay=relay,
            events=cast("Any", events),
            retention=Retention(store, clock),
            listener=cast("Any", listener),
            control=control,
            status=nothing,
            http=nothing,
        )

    async def _settle(self, deliveries: Sequence[Delivery]) -> None:
        for name, subscriber in self.subscribers.items():
            group = [delivery for delivery in deliveries if delivery.scenario == name]
            if group:
                await subscriber.ack_many(group)

    def _new_deployment_id(self) -> str:
        self._deployments += 1
        return f"{self.process}-{self._deployments}"
