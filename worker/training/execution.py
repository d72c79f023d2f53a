"""One run from start to end, under a lease: freeze the input, train in a child, register what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from msgspec.structs import asdict, replace
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from worker import crash
from worker.clock import Clock
from worker.durable import NO_ROOM
from worker.errors import ConfigurationError, LeaseLost, StoreError, StoreUnavailable, WorkerError
from worker.learning.offline_model import ModelUnreadable
from worker.models.adapter import ADAPTER_DIR
from worker.models.announce import Announcer
from worker.models.registry import Registry
from worker.store.port import Model, ModelKind, OutboxEvent, Run, RunState, Store, TriggerState
from worker.training.child import Died, Finished, TrainingStep
from worker.training.endings import after_failure, after_skip, after_success, has_news
from worker.training.recipe import Frozen, Recipe
from worker.training.results import TrainingResult
from worker.training.resuming import goes_on
from worker.training.trigger_book import TriggerBook

log = structlog.get_logger(__name__)

#: Starts of one run after which it is given up: something takes the whole worker down each time.
_MOST_ATTEMPTS = 10
#: Seconds between two words about steps in the log; status and metrics always have the newest.
_STEPS_LOGGED_EVERY = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds. The lease outlives two renewals that fail."""

    lease_ttl: float = 15.0
    renew: float = 5.0
    progress: float = 1.0
    cooldown: float = 0.0
    first_backoff: float = 30.0


@dataclass(slots=True)
class Current:
    """What a run is doing right now, for status."""

    run: Run
    progress: float = 0.0
    text: str = "queued"
    step: TrainingStep | None = None  # of a training in steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What every execution needs."""

    store: Store
    book: TriggerBook
    registry: Registry
    announcer: Announcer
    clock: Clock
    #: Of the kinds that this worker trains, in the order in which they are trained.
    recipes: Mapping[ModelKind, Recipe]
    owner: str
    timing: Timing


@dataclass(slots=True)
class _Ending:
    """What is to be committed."""

    run: Run
    changed: Callable[[TriggerState], TriggerState]
    model: Model | None = None
    events: list[OutboxEvent] = field(default_factory=list)


class ProcessKilled(Exception):
    """The training's process did not finish, and goes on from its checkpoint: the run is back in the queue."""


class Execution:
    """Carries out one run: `run()` returns it ended, or raises with nothing committed.

    `LeaseLost` or `StoreError`; `ProcessKilled` where it is to be started again.
    """

    def __init__(self, tools: Tools, run: Run, *, lease: str, epoch: int) -> None:
        self._tools = tools
        self._lease = lease
        self._epoch = epoch
        self._recipe = tools.recipes[run.kind]
        self.current = Current(run)
        self._model: Model | None = None
        self._ending_now = False
        self._step_logged = -_STEPS_LOGGED_EVERY

    @property
    def model(self) -> Model | None:
        """What the run brought, once it ended as `trained`."""
        return self._model

    async def run(self) -> Run:
        """Start, train, commit. Cancelled (shutdown), it ends the child and puts the run back in the queue."""
        tools, run_id = self._tools, self.current.run.run_id
        run = await tools.store.start_run(
            run_id, owner=tools.owner, lease=self._lease, epoch=self._epoch, now_ms=tools.clock.now_ms()
        )
        crash.point("trigger_claimed")
        self.current.run = run
        log.info("run_started", run_id=run_id, scenario=run.scenario, attempt=run.attempts, epoch=self._epoch)
        work = asyncio.create_task(self._work(run), name=f"train {run.scenario}")
        beat = asyncio.create_task(self._keep_lease(), name=f"lease {run.scenario}")
        try:
            await asyncio.wait((work, beat), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await beat  # raises why the lease is gone
            return await work
        except (asyncio.CancelledError, ProcessKilled) as error:
            await _stop(work)
            await self._put_back(f"interrupted: {error}" if isinstance(error, ProcessKilled) else "interrupted")
            raise
        finally:
            await _stop(work)
            await _stop(beat)

    async def _work(self, run: Run) -> Run:
        ending = await self._ending(run)
        # The end says the last of progress. Written after it, progress would find the run ended and take that for a
        # lost lease, and a model that is registered would never be applied.
        self._ending_now = True
        await _to_the_end(self._commit(ending))
        crash.point("run_committed")
        await asyncio.to_thread(self._remove_files, run.run_id)
        self._model = ending.model
        log.info(
            "run_ended", run_id=run.run_id, scenario=run.scenario, state=ending.run.state, reason=ending.run.reason,
            model_id=ending.run.model_id, gate=None if ending.model is None else ending.model.gate_verdict,
        )  # fmt: skip
        return ending.run

    async def _ending(self, run: Run) -> _Ending:
        """Train, and turn whatever happened into an ending."""
        if run.attempts > _MOST_ATTEMPTS:
            return await self._failed(run, "interrupted", f"it was started {run.attempts - 1} times and never ended")
        try:
            if (why_not := await self._why_not(run)) is not None:
                return await self._skipped(run, f"nothing_new: {why_not}")
            recipe = self._recipe
            self._on_progress(0.0, "reading what is stored")
            given = await recipe.freeze(run, recipe.input_of(run.run_id))
            self._on_progress(0.0, "starting its process")
            end = await recipe.launcher.run(
                recipe.input_of(run.run_id),
                self._on_progress,
                output_dir=recipe.output_of(run.run_id),
                on_step=self._on_step,
            )
            match end:
                case Died(reason, detail):
                    return await self._died(run, reason, detail)
                case Finished(result, bytes(model)):
                    return await self._trained(run, given, result, model)
                case Finished(result, _):
                    return await self._skipped(run, f"nothing_to_learn: {result.reason}")
        except (LeaseLost, StoreError):
            raise
        except (OSError, ValueError, WorkerError) as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                return await self._failed(run, "disk_full", f"{error}; {self._disk_cure()}")
            log.exception("run_failed_here", run_id=run.run_id)
            return await self._failed(run, f"internal: {type(error).__name__}", str(error))

    async def _died(self, run: Run, reason: str, detail: str) -> _Ending:
        if self._may_go_on(run, reason):
            log.warning("training_goes_on", run_id=run.run_id, scenario=run.scenario, reason=reason, detail=detail)
            raise ProcessKilled(reason)
        if reason == "timeout":
            detail = f"{detail}; it had come to: {self.current.text}"
        return await self._failed(run, reason, detail)

    def _may_go_on(self, run: Run, reason: str) -> bool:
        """Whether its process is started again, on the same data."""
        recipe = self._recipe
        return recipe.checkpoint is not None and goes_on(
            reason, starts=run.attempts, timeout=recipe.launcher.timeout, step=self.current.step,
            launched=recipe.launched, checkpoint=(recipe.output_of(run.run_id) / recipe.checkpoint).exists(),
        )  # fmt: skip

    async def _why_not(self, run: Run) -> str | None:
        """A command without force trains only where there is news; triggers look before they ask."""
        if run.trigger.get("kind") != "command" or run.trigger.get("values", {}).get("force"):
            return None
        state = await self._tools.book.read(run.scenario, run.kind)
        if has_news(state, await self._tools.store.facts(run.scenario)):
            return None
        if state.last_success_at_ms is None:
            return "no episodes yet: none of the tasks is over, or none was long enough"
        return "no episode or session since the last training; --force trains again"

    def _disk_cure(self) -> str:
        return f"free space where {self._recipe.runs_dir.parent} lies, or set SWARM_DATA_DIR; it is trained again then"

    def _remove_files(self, run_id: str) -> None:
        for folder in {self._recipe.input_of(run_id), self._recipe.output_of(run_id)}:
            remove_run_folder(folder)

    def _on_progress(self, progress: float, text: str) -> None:
        self.current.progress, self.current.text = progress, text

    def _on_step(self, step: TrainingStep) -> None:
        self.current.step = step
        now = self._tools.clock.monotonic()
        if now - self._step_logged >= _STEPS_LOGGED_EVERY or step.step == step.steps:
            self._step_logged = now
            log.info(
                "training_step", run_id=self.current.run.run_id, scenario=self.current.run.scenario,
                **asdict(step),
            )  # fmt: skip

    # ------------------------------------------------------------ endings

    async def _trained(self, run: Run, given: Frozen, result: TrainingResult, content: bytes) -> _Ending:
        if result.gate is None or result.run_id != run.run_id:
            return await self._failed(run, "bad_output: the result is of another run", "")
        now_ms = self._tools.clock.now_ms()
        adapter = self._recipe.output_of(run.run_id) / ADAPTER_DIR if run.kind == "lora" else None
        try:
            if adapter is not None and given.check is not None:
                await asyncio.to_thread(given.check, content, adapter)
            model = await self._tools.registry.prepare(
                run,
                content,
                lineage=_lineage(run, given, result),
                metrics=result.metrics,
                verdict=result.gate,
                now_ms=now_ms,
                adapter=adapter,
                data_manifest=given.manifest,
            )
        except (ValueError, FileNotFoundError, ModelUnreadable, ConfigurationError) as error:
            # A script of the operator's may leave anything.
            return await self._failed(run, "bad_output", str(error))
        changed = partial(after_success, facts=given.facts, now_ms=now_ms, cooldown=self._tools.timing.cooldown)
        if model.run_id != run.run_id:
            ended = self._ended(run, "skipped", f"unchanged: it is the same model as version {model.version}", now_ms)
            return _Ending(ended, changed, events=self._skip_events(ended, now_ms))
        ended = replace(self._ended(run, "trained", None, now_ms), model_id=model.model_id, progress=1.0)
        return _Ending(ended, changed, model, [self._tools.announcer.trained(ended, model, content, now_ms=now_ms)])

    async def _skipped(self, run: Run, reason: str) -> _Ending:
        now_ms = self._tools.clock.now_ms()
        timing = self._tools.timing
        changed = partial(after_skip, now_ms=now_ms, cooldown=max(timing.cooldown, timing.first_backoff))
        ended = self._ended(run, "skipped", reason, now_ms)
        return _Ending(ended, changed, events=self._skip_events(ended, now_ms))

    async def _failed(self, run: Run, reason: str, detail: str) -> _Ending:
        now_ms = self._tools.clock.now_ms()
        changed = partial(after_failure, now_ms=now_ms, first_backoff=self._tools.timing.first_backoff)
        state = changed(await self._tools.book.read(run.scenario, run.kind))
        last_line = detail.splitlines()[-1][:500] if detail else ""
        ended = self._ended(run, "failed", f"{reason}: {last_line}" if last_line else reason, now_ms)
        event = self._tools.announcer.run_failed(
            ended, reason=reason, detail=detail, not_before_ms=state.not_before_ms, now_ms=now_ms
        )
        return _Ending(ended, changed, events=[event])

    def _skip_events(self, ended: Run, now_ms: int) -> list[OutboxEvent]:
        """Only whoever asked by command is told; a timer's skip would be noise."""
        return (
            [self._tools.announcer.run_skipped(ended, now_ms=now_ms)] if ended.trigger.get("kind") == "command" else []
        )

    def _ended(self, run: Run, state: RunState, reason: str | None, now_ms: int) -> Run:
        return replace(
            run, state=state, reason=reason, ended_at_ms=now_ms, epoch=self._epoch, progress=self.current.progress,
            progress_text=state,
        )  # fmt: skip

    # ------------------------------------------------------------ lease and commit

    async def _commit(self, ending: _Ending) -> None:
        """One transaction; tried again while the store is only busy. The trigger state is changed under its lock."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailable),
            stop=stop_after_attempt(10), wait=wait_exponential(multiplier=0.2, max=10), reraise=True,
        ):  # fmt: skip
            with attempt:
                async with self._tools.book.held(ending.run.scenario, ending.run.kind) as state:
                    await self._tools.store.finish_run(
                        ending.run,
                        lease=self._lease,
                        model=ending.model,
                        trigger_state=ending.changed(state),
                        events=ending.events,
                    )

    async def _keep_lease(self) -> None:
        """Renew, and write progress down. Ends only by raising: `LeaseLost` when the lease cannot be kept."""
        tools, timing = self._tools, self._tools.timing
        clock = tools.clock
        held_until = clock.monotonic() + timing.lease_ttl
        renew_at = clock.monotonic() + timing.renew
        written = (0.0, "")
        while True:
            await asyncio.sleep(min(timing.progress, timing.renew))
            try:
                if clock.monotonic() >= renew_at:
                    if not await tools.store.renew_lease(
                        self._lease,
                        tools.owner,
                        self._epoch,
                        now_ms=clock.now_ms(),
                        ttl_ms=round(timing.lease_ttl * 1000),
                    ):
                        raise LeaseLost(f"lease {self._lease} went to another worker or ran out; the training is ended")
                    renew_at = clock.monotonic() + timing.renew
                    held_until = clock.monotonic() + timing.lease_ttl
                now = (self.current.progress, self.current.text)
                if now != written and not self._ending_now:
                    await tools.store.progress_run(self.current.run.run_id, self._epoch, *now)
                    written = now
            except StoreUnavailable as error:
                log.warning("lease_not_renewed", lease=self._lease, error=str(error))
                if clock.monotonic() >= held_until:
                    raise LeaseLost(f"lease {self._lease} could not be renewed in time: {error}") from error

    async def _put_back(self, reason: str) -> None:
        """Back to `queued`, for the next start."""
        # LeaseLost: it had ended, or another owns it. StoreError: a run left `running` is taken over all the same.
        with contextlib.suppress(LeaseLost, StoreError):
            await self._tools.store.requeue_run(self.current.run.run_id, epoch=self._epoch, reason=reason)
            log.info(
                "run_interrupted", run_id=self.current.run.run_id, scenario=self.current.run.scenario, reason=reason
            )


def _lineage(run: Run, given: Frozen, result: TrainingResult) -> dict[str, Any]:
    return {
        **given.lineage,
        "input_sha256": result.input_sha256,
        "versions": result.versions,
        "trigger": run.trigger,
        "took_ms": result.took_ms,
        "attempt": run.attempts,
    }


async def _stop(task: asyncio.Task[Any]) -> None:
    """Cancel and wait for it; what it raised is somebody else's to look at."""
    if not task.done():
        task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()  # retrieved, so that asyncio does not report it as lost


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await without being cut in the middle: a commit that is under way is waited for, then the cancel goes on."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        if not task.cancelled() and task.exception() is None:
            log.info("commit_before_stop")
        raise


def remove_run_folder(folder: Path) -> None:
    """With all that is in it. What cannot be removed costs room, and is told."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        log.warning("run_folder_not_removed", folder=str(folder), cure="remove it by hand; who owns what is in it?")
