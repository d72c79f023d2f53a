"""A worker's life: bring up, serve, drain. What it is made of is decided in `app.py`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from worker.broker.control import ControlListener
from worker.broker.faults import BROKER_ERRORS, describe
from worker.broker.port import Delivery
from worker.broker.publisher import RabbitPublisher
from worker.broker.session import Session
from worker.broker.subscriber import Subscriber
from worker.broker.supervision import supervise
from worker.broker.watchdog import Watchdog
from worker.control.control import Control
from worker.durable import make_private_directory
from worker.errors import BrokerUnreachable, ConfigurationError, WorkerError
from worker.intake import Intake
from worker.locks import FileLock, InUse
from worker.models.applicators.chosen import server_processes
from worker.models.applicators.llama_router import LlamaRouterApplicator
from worker.models.applicators.port import Applicator
from worker.models.applier import Applier
from worker.models.keeper import AdapterKeeper
from worker.models.registry import Registry
from worker.ops.health import HealthServer
from worker.outbox import OutboxRelay
from worker.projector.projector import Projector
from worker.settings import Settings
from worker.sink.sink import Sink
from worker.status import StatusReporter
from worker.store.port import ModelKind, Store
from worker.store.retention import Retention
from worker.training.modes import ProcessorMode, parse_mode
from worker.training.runs import RunManager
from worker.training.scheduler import TriggerScheduler

log = structlog.get_logger(__name__)

#: What each step of a shutdown may take of SWARM_SHUTDOWN_GRACE.
_STORE_SHARE, _TRAINING_SHARE, _EVENTS_SHARE, _ANSWER_SHARE, _END_SHARE = 0.4, 0.25, 0.15, 0.05, 0.05
#: And each of the four talks with the broker among them, which a half-open connection would draw out.
_BROKER_SHARE = 0.03
#: Seconds between hand-overs of the interpreter. At CPython's 5 ms the store's writer thread, which gives it up with
#: every statement, waits for the event loop longer than for the disk.
_SWITCH_INTERVAL = 0.0005
#: Longest wait for consumers that a broker in trouble did not let register, in s.
_REGISTER_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a worker is made of."""

    store: Store
    applicators: Mapping[ModelKind, Applicator]
    sessions: Sequence[Session]
    inbox: asyncio.Queue[Delivery]
    subscribers: Mapping[str, Subscriber]
    watchdogs: Mapping[str, Watchdog]
    intake: Intake
    sink: Sink
    projector: Projector
    scheduler: TriggerScheduler
    runs: RunManager
    applier: Applier
    adapters: AdapterKeeper
    registry: Registry
    events: RabbitPublisher
    relay: OutboxRelay
    retention: Retention
    listener: ControlListener
    control: Control
    status: StatusReporter
    http: HealthServer


class Worker:
    """One worker. `await run()` returns after a clean drain and raises what ended it otherwise."""

    def __init__(self, settings: Settings, assemble: Callable[[Worker], Parts], *, boot_id: str | None = None) -> None:
        """`assemble` makes the parts once the event loop runs; `boot_id` tells starts apart; by chance if None."""
        self.settings = settings
        self.boot_id = boot_id or uuid4().hex[:8]
        #: Set once records are taken in; `http_port` is known then.
        self.started = asyncio.Event()
        self.http_port = 0
        self._assemble = assemble
        self._stop = asyncio.Event()
        self._drained = asyncio.Event()
        self._nothing_left = False

    @property
    def stopping(self) -> bool:
        """Whether somebody asked it to stop."""
        return self._stop.is_set()

    def request_stop(self, by: str) -> None:
        """Begin to drain; asking twice changes nothing."""
        if not self._stop.is_set():
            log.info("stopping", by=by)
        self._stop.set()

    async def stop_and_drain(self, by: str) -> bool:
        """Begin to drain, and wait for it; whether all was stored and sent, or broker and store keep some of it."""
        self.request_stop(by)
        await self._drained.wait()
        return self._nothing_left

    def alone(self) -> AbstractContextManager[None]:
        """Holds the directories that a start clears; `ConfigurationError` where another worker does."""
        settings = self.settings
        places: dict[str, Path | None] = {"SWARM_DATA_DIR": settings.data_dir}
        shared: dict[Path, str] = {}
        if parse_mode(settings.processor_mode) is not ProcessorMode.OFFLINE:
            places |= {"SWARM_LORA_DATA_DIR": settings.lora_data_dir, "SWARM_LORA_OUTPUT_DIR": settings.lora_output_dir}
            if settings.lora_applicator == "llama_router" and settings.llama_preset is not None:
                # Two who write the preset undo each other's sections (1 swap of 24): one worker serves all scenarios.
                shared[settings.llama_preset] = "SWARM_LLAMA_PRESET"
            elif settings.lora_applicator in ("llama_server", "blue_green"):
                # Of two with one pid file each ended the other's server, about once a minute.
                shared = {each.pid_file: "SWARM_LLAMA_PID_FILE" for each in server_processes(settings).values()}
        named: dict[Path, str] = {}
        for setting, place in places.items():
            if place is not None:
                named.setdefault(place.resolve() / "worker.lock", setting)
        for file, setting in shared.items():
            named[file.absolute().parent.resolve() / f"{file.name}.lock"] = setting
        return _alone_in(named)

    async def run(self) -> None:
        """Bring up, serve until `request_stop`, drain."""
        sys.setswitchinterval(_SWITCH_INTERVAL)
        parts = self._assemble(self)
        async with AsyncExitStack() as stack:
            await parts.store.open()
            stack.push_async_callback(parts.store.close)
            for applicator in parts.applicators.values():
                stack.push_async_callback(applicator.close)
            stack.enter_context(self.alone())
            if isinstance(router := parts.applicators.get("lora"), LlamaRouterApplicator):
                await router.create_preset()
            await parts.registry.clean_up(self.settings.scenarios)
            for session in parts.sessions:
                stack.push_async_callback(session.close)
            await parts.projector.follow_rules(self.settings.scenarios)
            if not await self._unless_stopped(asyncio.gather(*(session.start() for session in parts.sessions))):
                return
            if "offline" in parts.applier.kinds:
                for scenario in self.settings.scenarios:
                    await parts.applier.reconcile(scenario, "offline")
            self.http_port = await parts.http.start()
            stack.push_async_callback(parts.http.stop)
            try:
                await self._serve(parts)
            except BaseExceptionGroup as errors:
                raise _first_cause(errors) from errors
        log.info("stopped")

    async def _serve(self, parts: Parts) -> None:
        """A group of named tasks: any that dies takes the worker with it, and whoever supervises starts it again."""
        learn_stopping, store_stopping, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as group:

            def begin(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
                task = group.create_task(_unless_cancelled(work), name=name)
                # Cancelled before its first step, it would complain that it was never awaited.
                task.add_done_callback(lambda _: work.close())
                return task

            sink = begin(parts.sink.run(parts.inbox, store_stopping), "sink")
            # Before a run can begin that would make one of the directories.
            await parts.runs.clean_up()
            runs = begin(parts.runs.run(learn_stopping), "runs")
            services = [
                sink,
                runs,
                begin(parts.intake.run(self._stop), "intake"),
                begin(parts.projector.run(learn_stopping), "projector"),
                begin(parts.scheduler.run(self._stop), "scheduler"),
                begin(parts.adapters.run(self._stop), "adapters"),
                begin(parts.retention.run(self._stop), "retention"),
                begin(parts.relay.run(done), "outbox"),
            ]
            if "offline" in parts.applier.kinds:
                for scenario in self.settings.scenarios:
                    await parts.runs.recover(scenario, "offline")
            watchers: list[asyncio.Task[None]] = []
            if await self._unless_stopped(_register_all(parts)):
                watchers += [
                    begin(parts.control.run(), "control"),
                    *(begin(dog.run(), f"watchdog of {name}") for name, dog in parts.watchdogs.items()),
                    *(begin(one.failed(), f"{one.role} session") for one in parts.sessions),
                    *(begin(supervise(one), f"{one.role} supervision") for one in parts.sessions),
                ]
                self.started.set()
                parts.status.starting = False
                log.info("started", worker_id=self.settings.worker_id, scenarios=list(self.settings.scenarios))
                await self._stop.wait()
            await self._drain(parts, sink, runs, learn_stopping, store_stopping)
            done.set()
            for watcher in watchers:
                watcher.cancel()
            # A commit that is tried again and again, for example, on a store that is away.
            _, late = await asyncio.wait(services, timeout=self.settings.shutdown_grace * _END_SHARE)
            for service in late:
                log.warning("service_cut_short", service=service.get_name())
                service.cancel()

    async def _unless_stopped(self, work: Awaitable[object]) -> bool:
        """Wait for `work`, or give it up and return False where somebody asks to stop first."""
        working, stop = asyncio.ensure_future(work), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((working, stop), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
            return working.done()
        finally:
            for task in (working, stop):
                task.cancel()
            await asyncio.wait((working, stop))

    async def _drain(
        self,
        parts: Parts,
        sink: asyncio.Task[None],
        runs: asyncio.Task[None],
        learn_stopping: asyncio.Event,
        store_stopping: asyncio.Event,
    ) -> None:
        """A shutdown, to be read aloud. What a step does not finish in its time, broker or store keep for next time."""
        grace = self.settings.shutdown_grace
        parts.status.draining = True
        log.info("drain_step", step="stop consuming")
        await _within(grace * _BROKER_SHARE, *(subscriber.pause() for subscriber in parts.subscribers.values()))
        log.info("drain_step", step="store what is in hand")
        stored = await parts.sink.drain(grace * _STORE_SHARE)
        await _within(grace * _BROKER_SHARE, *(subscriber.stop() for subscriber in parts.subscribers.values()))
        store_stopping.set()
        if not stored:
            # It waits for a store that is away, for minutes if need be. Nothing of what it holds was acknowledged.
            sink.cancel()
        log.info("drain_step", step="end the training", all_stored=stored)
        learn_stopping.set()
        await asyncio.wait([runs], timeout=grace * _TRAINING_SHARE)
        log.info("drain_step", step="send the events")
        sent = await parts.relay.drain(grace * _EVENTS_SHARE)
        log.info("drain_step", step="answer", all_sent=sent)
        self._nothing_left = stored and sent
        self._drained.set()
        await _within(grace * _BROKER_SHARE, parts.listener.last_call())
        await parts.control.settle(grace * _ANSWER_SHARE)
        await _within(grace * _BROKER_SHARE, parts.listener.stop())


@contextmanager
def _alone_in(places: Mapping[Path, str]) -> Iterator[None]:
    with ExitStack() as held:
        for place, setting in places.items():
            held.enter_context(_locked(place, setting))
        yield


@contextmanager
def _locked(path: Path, setting: str) -> Iterator[None]:
    """Share a directory, preset or pid file with no other worker: a start clears away what a run of another wrote.

    And the quarantine's files are named by the numbers of one store.
    """
    lock = FileLock(path)
    used = path.parent if path.name == "worker.lock" else path.with_suffix("")
    try:
        make_private_directory(path.parent)
        lock.acquire()
    except InUse as holder:
        raise ConfigurationError(f"{used} is in use by {holder}; give this worker a {setting} of its own") from holder
    except OSError as error:
        raise ConfigurationError(
            f"{lock.path} cannot be opened ({error.strerror}); make {setting} writable, and the lock no link"
        ) from error
    try:
        yield
    finally:
        lock.release()


async def _unless_cancelled(work: Awaitable[None]) -> None:
    """A part of the worker. One that ends as cancelled, though nobody cancelled it, has failed.

    A task group takes no notice of a task that ends so, and the worker went on without that part.
    """
    try:
        await work
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise WorkerError("a part of the worker was cancelled, and by nobody of ours") from error


async def _within(seconds: float, *steps: Awaitable[None]) -> None:
    """Take the steps side by side, and go on without those that take longer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*steps)


async def _register_all(parts: Parts) -> None:
    """Take records and commands from here on."""
    await parts.events.prepare()
    for subscriber in parts.subscribers.values():
        await _register(subscriber.start)
    await _register(parts.listener.start)


async def _register(start: Callable[[], Awaitable[None]]) -> None:
    """Start a consumer; a broker that is up but in trouble gets a minute to come to itself."""
    attempts = AsyncRetrying(
        stop=stop_after_delay(_REGISTER_SECONDS),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        retry=retry_if_exception_type(BROKER_ERRORS),
        reraise=True,
    )
    try:
        await attempts(start)
    except BROKER_ERRORS as error:
        raise BrokerUnreachable(
            f"the broker let no consumer register within {_REGISTER_SECONDS:g} s: {describe(error)}"
        ) from error


def _first_cause(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first; the others of a group are what that took along."""
    cause: BaseException = errors
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause
