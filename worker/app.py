"""The composition root: the only module that knows everyone. Chooses the parts and puts them together."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from worker.broker.control import ControlListener
from worker.broker.dead import DeadLetters
from worker.broker.event_publisher import EventPublisher
from worker.broker.port import Delivery
from worker.broker.publisher import RabbitPublisher
from worker.broker.session import Session
from worker.broker.subscriber import Subscriber
from worker.broker.url import BrokerUrl, broker_url
from worker.broker.watchdog import Watchdog
from worker.clock import Clock, SystemClock
from worker.configuration import (
    apply_mode_of,
    base_model,
    control_keys,
    learn_models_of,
    outcome_model,
    rules_of,
    trigger_of,
)
from worker.control.admission import Admission
from worker.control.control import Control
from worker.control.operations import Operations
from worker.episodes.model import LearnModel
from worker.episodes.rules import Rules
from worker.errors import ConfigurationError
from worker.intake import Intake
from worker.learning.triggers import TrainTrigger
from worker.life import Parts, Worker
from worker.models.announce import Announcer
from worker.models.applicators.chosen import lora_applicator, offline_applicator
from worker.models.applicators.endpoint import CurrentDocuments
from worker.models.applicators.port import Applicator
from worker.models.applier import Applier
from worker.models.files import ModelFiles
from worker.models.health_window import HealthWindow
from worker.models.keeper import AdapterKeeper
from worker.models.registry import Registry
from worker.ops.health import HealthServer
from worker.ops.metrics import make_registry
from worker.outbox import OutboxRelay
from worker.projector.projector import Projector
from worker.settings import Settings, load_settings
from worker.sink.batcher import Limits
from worker.sink.producers import Producers
from worker.sink.quarantine_files import QuarantineFiles, quarantine_dir
from worker.sink.quarantine_room import QuarantineKeeper
from worker.sink.sink import Sink
from worker.status import StatusReporter
from worker.store import open_store
from worker.store.port import ModelKind, Store
from worker.store.retention import Retention
from worker.store.watch import WriteWatch
from worker.training.execution import Timing, Tools
from worker.training.lora.base_identity import ConfiguredBase
from worker.training.lora.requirements import require_lora
from worker.training.modes import ProcessorMode, parse_mode
from worker.training.planned import recipes_of
from worker.training.runs import RunManager
from worker.training.scheduler import TriggerScheduler
from worker.training.trigger_book import TriggerBook


class WorkerBuilder:
    """Makes a worker with parts of one's own (the original's `DaemonBuilder`); the rest comes from settings."""

    def __init__(self, settings: Settings | None = None, **flags: Any) -> None:
        """`flags` are settings by name, such as `scenarios="a,b"` or `apply_mode="auto"`."""
        self._settings = settings or load_settings(**flags)
        self._clock: Clock = SystemClock()
        self._store: Store | None = None
        self._applicators: dict[ModelKind, Applicator] = {}
        self._triggers: dict[str | None, TrainTrigger] = {}
        self._learn_models: dict[str | None, Sequence[LearnModel]] = {}

    def clock(self, clock: Clock) -> Self:
        """Time from elsewhere."""
        self._clock = clock
        return self

    def store(self, store: Store) -> Self:
        """A store of one's own, not opened yet."""
        self._store = store
        return self

    def trigger(self, trigger: TrainTrigger, scenario: str | None = None) -> Self:
        """A trigger for one scenario, or for all that have none of their own."""
        self._triggers[scenario] = trigger
        return self

    def learn_models(self, *models: LearnModel, scenario: str | None = None) -> Self:
        """Learn models for one scenario, or for all that have none of their own."""
        self._learn_models[scenario] = models
        return self

    def applicator(self, applicator: Applicator, kind: ModelKind = "offline") -> Self:
        """How models of a kind reach those who use them."""
        self._applicators[kind] = applicator
        return self

    def build(self) -> Worker:
        """The worker. Raises `ConfigurationError` for everything that would otherwise fail only later."""
        settings = self._settings
        mode = parse_mode(settings.processor_mode)
        if not settings.scenarios:
            raise ConfigurationError("no scenario to serve; set SWARM_SCENARIOS, for example to checkout,search")
        triggers, models = self._triggers, self._learn_models
        learn_models = {
            name: models.get(name) or models.get(None) or learn_models_of(settings, name) for name in settings.scenarios
        }
        if "lora" in mode.kinds:
            require_lora(settings, mode, learn_models, own_applicator="lora" in self._applicators)
        kit = _Kit(
            settings=settings,
            mode=mode,
            clock=self._clock,
            url=broker_url(settings),
            keys=control_keys(settings),
            store=self._store or open_store(settings.effective_store_url, self._clock),
            applicators=self._applicators,
            rules={name: rules_of(settings, name) for name in settings.scenarios},
            triggers={
                name: triggers.get(name) or triggers.get(None) or trigger_of(settings, name)
                for name in settings.scenarios
            },
            learn_models=learn_models,
            own_models=frozenset(name for name in settings.scenarios if models.get(name) or models.get(None)),
        )
        return Worker(settings, kit.assemble)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kit:
    """Everything that was chosen; `assemble` makes the parts of it."""

    settings: Settings
    mode: ProcessorMode
    clock: Clock
    url: BrokerUrl
    keys: Mapping[str, bytes]
    store: Store
    applicators: Mapping[ModelKind, Applicator]  # of one's own; the settings choose the others
    rules: Mapping[str, Rules]
    triggers: Mapping[str, TrainTrigger]
    learn_models: Mapping[str, Sequence[LearnModel]]
    own_models: frozenset[str]  # scenarios whose learn models are not those of the settings

    def assemble(self, worker: Worker) -> Parts:
        """Put the parts together; each gets what it needs and knows nothing of the rest."""
        settings, store, clock, scenarios = self.settings, self.store, self.clock, self.settings.scenarios
        consume, publish, command = (
            Session(role, self.url, start_timeout=settings.start_timeout) for role in ("consume", "publish", "control")
        )
        inbox: asyncio.Queue[Delivery] = asyncio.Queue(settings.prefetch * len(scenarios))
        subscribers = {
            name: Subscriber(consume, name, inbox, prefetch=settings.prefetch, topology=settings.topology)
            for name in scenarios
        }
        intake = Intake(subscribers)
        events = EventPublisher(publish, settings.topology)
        relay = OutboxRelay(store, events, clock)
        files = QuarantineFiles(quarantine_dir(settings.data_dir), settings.quarantine_bytes)
        keeper = QuarantineKeeper(store, files, settings.quarantine_bytes)
        producers = Producers(settings.producers, own_user=self.url.login) if settings.producers else None
        sink = Sink(
            store,
            clock,
            self.rules.__getitem__,
            producers=producers,
            settle=_Settler(subscribers).settle,
            limits=Limits(messages=settings.batch_messages, bytes=settings.batch_bytes, age=settings.batch_age),
            # Made below, since it asks the sink whether it is busy.
            on_stored=lambda: projector.wake(),  # noqa: PLW0108
            on_store_down=lambda reason: intake.hold("store", f"store: {reason}"),
            on_store_up=lambda: intake.release("store"),
            make_room=keeper.make_room,
        )
        projector = Projector(
            store,
            clock,
            rules_of=self.rules.__getitem__,
            models_of=self.learn_models.__getitem__,
            idle_ms=round(settings.idle_timeout * 1000),
            busy=sink.busy,
            scenarios=scenarios,
        )
        registry = Registry(store, ModelFiles(settings.data_dir))
        announcer = Announcer(settings.worker_id)
        applicators = self._applicators()
        applier = Applier(
            store=store,
            registry=registry,
            applicators=applicators,
            announcer=announcer,
            clock=clock,
            mode_of=lambda name: apply_mode_of(settings, name),
            max_history=settings.max_history,
            health_window=HealthWindow(settings.lora_health_window, clock),
            endpoint_of=CurrentDocuments(settings.data_dir, "lora").endpoint_of,
            base_sha256=ConfiguredBase(base_model(settings)).sha256,
            on_event=relay.wake,
        )
        book = TriggerBook(store)
        runs = RunManager(
            self._training_tools(book, registry, announcer, worker.boot_id),
            applier,
            scenarios=scenarios,
            on_event=relay.wake,
        )
        adapters = AdapterKeeper(applier, scenarios=scenarios, recover=runs.recover)
        scheduler = TriggerScheduler(
            store=store,
            book=book,
            runs=runs,
            clock=clock,
            triggers=self.triggers,
            interval=settings.check_interval,
            learn_models={name: outcome_model(models) for name, models in self.learn_models.items()},
        )
        listener = ControlListener(
            command,
            RabbitPublisher(command),
            worker_id=settings.worker_id,
            boot_id=worker.boot_id,
            scenarios=scenarios,
            topology=settings.topology,
        )
        write_watch = WriteWatch(store, clock, sink.busy)
        watchdogs = {name: Watchdog(subscriber) for name, subscriber in subscribers.items()}
        status = StatusReporter(
            worker_id=settings.worker_id,
            boot_id=worker.boot_id,
            started_at_ms=clock.now_ms(),
            scenarios=scenarios,
            clock=clock,
            store=store,
            sink=sink,
            quarantine=keeper.report,
            intake=intake,
            projector=projector,
            scheduler=scheduler,
            runs=runs,
            applier=applier,
            relay=relay,
            journal=lambda: events.journal_trouble,
            write_watch=write_watch,
            sessions=(consume, publish, command),
            subscribers=subscribers,
            watchdogs=watchdogs,
            triggers={name: trigger.describe() for name, trigger in self.triggers.items()},
            # Made below, since a command may ask for the status.
            commands=lambda: control.stats,
        )
        operations = Operations(
            scenarios=scenarios,
            store=store,
            clock=clock,
            runs=runs,
            book=book,
            applier=applier,
            registry=registry,
            projector=projector,
            intake=intake,
            rules_of=self.rules.__getitem__,
            producers=producers,
            dead=DeadLetters(publish, RabbitPublisher(publish), clock),
            status=status.report,
            stop_and_drain=worker.stop_and_drain,
        )
        control = Control(
            listener,
            store,
            clock,
            operations.carry_out,
            worker_id=settings.worker_id,
            scenarios=frozenset(scenarios),
            admission=Admission(
                clock,
                worker_id=settings.worker_id,
                scenarios=frozenset(scenarios),
                keys=self.keys,
                operators=frozenset(settings.operators),
                disabled=frozenset(settings.disabled_commands),
            ),
        )
        return Parts(
            store=store,
            applicators=applicators,
            sessions=(consume, publish, command),
            inbox=inbox,
            subscribers=subscribers,
            watchdogs=watchdogs,
            intake=intake,
            sink=sink,
            projector=projector,
            scheduler=scheduler,
            runs=runs,
            applier=applier,
            adapters=adapters,
            registry=registry,
            events=events,
            relay=relay,
            retention=Retention(store, clock),
            listener=listener,
            control=control,
            status=status,
            http=self._http(status, write_watch),
        )

    def _training_tools(self, book: TriggerBook, registry: Registry, announcer: Announcer, boot_id: str) -> Tools:
        settings = self.settings
        return Tools(
            store=self.store,
            book=book,
            registry=registry,
            announcer=announcer,
            clock=self.clock,
            recipes=recipes_of(
                settings,
                self.mode,
                self.store,
                registry,
                models_of=self._models_with,
                rules_of=self.rules.__getitem__,
            ),
            owner=f"{settings.worker_id}.{boot_id}",
            timing=Timing(cooldown=settings.training_cooldown, first_backoff=settings.training_backoff),
        )

    def _applicators(self) -> dict[ModelKind, Applicator]:
        """Of offline models always: one that is live goes on being served, whatever is trained."""
        own = self.applicators
        chosen: dict[ModelKind, Applicator] = {"offline": own.get("offline") or offline_applicator(self.settings)}
        if "lora" in self.mode.kinds:
            chosen["lora"] = own.get("lora") or lora_applicator(self.settings)
        return chosen

    def _models_with(self, scenario: str, seen: Sequence[str]) -> Sequence[LearnModel]:
        """A scenario's learn models, whose examples offer the actions that it has seen."""
        if scenario in self.own_models:
            return self.learn_models[scenario]
        return learn_models_of(self.settings, scenario, seen)

    def _http(self, status: StatusReporter, write_watch: WriteWatch) -> HealthServer:
        registry, collector = make_registry()

        async def refresh() -> None:
            collector.status = await status.report()

        async def ready() -> list[str]:
            await write_watch.look()
            return status.problems()

        return HealthServer(
            host=self.settings.http_host,
            port=self.settings.http_port,
            registry=registry,
            refresh=refresh,
            ready=ready,
            status=status.report,
        )


class _Settler:
    """Acknowledges a stored group, each scenario's deliveries by its own subscriber, in few frames."""

    def __init__(self, subscribers: Mapping[str, Subscriber]) -> None:
        self._subscribers = subscribers

    async def settle(self, deliveries: Sequence[Delivery]) -> None:
        """See `sink.Settle`."""
        groups: defaultdict[str, list[Delivery]] = defaultdict(list)
        for delivery in deliveries:
            groups[delivery.scenario].append(delivery)
        for scenario, group in groups.items():
            await self._subscribers[scenario].ack_many(group)
