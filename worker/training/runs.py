"""Runs as a state machine: asked for, queued, carried out one per scenario at a time, handed to the applier.

Each kind of training has a lane of its own, so that hours of one scenario's adapter hold up no other's offline model.

Everything that must survive a restart is a row; this object holds only what is going on in this process.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import structlog

from worker.errors import ApplyFailed, LeaseLost, StoreError
from worker.models.applier import Applier, ApplyResult
from worker.store.port import Model, ModelKind, Run
from worker.training.endings import MOST_FAILURES, failures_of_window
from worker.training.execution import Current, Execution, ProcessKilled, Tools, remove_run_folder
from worker.training.handover import HandOver

log = structlog.get_logger(__name__)

_NAMESPACE = UUID("6f1d4a4e-5f2b-5c1d-9a53-0c8f2f0e7b11")
_RUN_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: How often the queue is looked at without being woken: a lease may have run out meanwhile.
_LOOK_AGAIN = 1.0
#: Wait of a scenario whose run could not even be carried out, doubling to a minute.
_RETRY_FIRST, _RETRY_MOST = 1.0, 60.0
_ENDED = frozenset({"trained", "failed", "skipped"})
#: Newest failed runs, of any kind, among which those of one kind are looked for.
_FAILED_ROWS = 50


@dataclass(slots=True)
class RunStats:
    """Ends of runs since the start."""

    trained: int = 0
    failed: int = 0
    skipped: int = 0
    interrupted: int = 0
    lost: int = 0  # to another worker, or to a store that did not answer


@dataclass(slots=True)
class _Retry:
    wait: float
    at: float  # monotonic


class RunManager:
    """Takes requests, and carries runs out while `run` runs."""

    def __init__(
        self,
        tools: Tools,
        applier: Applier,
        *,
        scenarios: Sequence[str],
        max_parallel: int = 1,
        on_event: Callable[[], None] = lambda: None,
    ) -> None:
        """`max_parallel` trainings of each kind at once; `on_event` wakes the outbox relay after a commit."""
        self._tools = tools
        self._scenarios = frozenset(scenarios)
        self._max_parallel = max_parallel
        self._on_event = on_event
        self._active: dict[str, asyncio.Task[None]] = {}
        self._lanes: dict[str, ModelKind] = {}  # of what is active
        self._executions: dict[str, Execution] = {}
        self._retries: dict[str, _Retry] = {}
        self._woken = asyncio.Event()
        self._ended: dict[str, asyncio.Event] = {}
        self._handing = HandOver(tools.store, tools.registry, applier, tools.clock)
        self.stats = RunStats()

    @property
    def kinds(self) -> list[ModelKind]:
        """What this worker trains, in the order in which it does."""
        return list(self._tools.recipes)

    # ------------------------------------------------------------ asking

    async def request(
        self,
        scenario: str,
        *,
        trigger: dict[str, Any],
        kind: ModelKind = "offline",
        apply: bool | None = None,
        nonce: str | None = None,
    ) -> Run:
        """Queue a run of one of `kinds` and return it; asked again for the same, the same run comes back, ended or not.

        `trigger` says who fired and why: `{"kind": ..., "values": {...}, "by": ...}`. A command's kind is `command`,
        its `nonce` the command's id, and `values.force` trains without news too. Without a nonce the identity is the
        window: batches, episodes, sessions, and failures so far. A command joins a run that is queued or running over
        the same batches, where it asks for nothing else.
        """
        facts = await self._tools.store.facts(scenario)
        state = await self._tools.book.read(scenario, kind)
        if trigger.get("kind") == "command" and not trigger.get("values", {}).get("force"):
            for run in await self.unfinished(scenario):
                if run.window_hi == facts.last_batch_no and run.kind == kind and apply in (None, run.apply):
                    return run
        hi = facts.last_batch_no
        if nonce is None:
            nonce = f"e{facts.episodes}s{facts.counted_sessions}f{state.failures}"
            # And when its newest record came. A store that was restored counts up to the same numbers again, with other
            # records: under the old id its model's event would be dropped by everybody, as a copy of the one they know.
            newest = facts.last_record_at_ms
            identity = f"{scenario}\0{kind}\0{hi}\0{self._tools.recipes[kind].config_hash}\0{nonce}\0{newest}"
        else:  # a command that is carried out again after a crash means the same run, whatever came in meanwhile
            identity = f"{scenario}\0{kind}\0{nonce}"
        run = await self._tools.store.create_run(
            Run(
                run_id=str(uuid5(_NAMESPACE, identity)),
                scenario=scenario,
                kind=kind,
                state="queued",
                trigger=trigger,
                window_lo=min(hi, (state.trained_upto or 0) + 1),
                window_hi=hi,
                requested_at_ms=self._tools.clock.now_ms(),
                apply=apply,
                nonce=nonce,
            )
        )
        log.info(
            "run_requested", run_id=run.run_id, scenario=scenario, kind=kind, state=run.state,
            trigger=trigger.get("kind"),
        )  # fmt: skip
        self._woken.set()
        return run

    async def unfinished(self, scenario: str) -> list[Run]:
        """Queued and running runs of a scenario, newest first."""
        return await self._tools.store.runs(scenario, states=("queued", "running"))

    async def held(self, scenario: str, kind: ModelKind) -> bool:
        """Whether automatic runs of this kind wait for new data: this very window failed too often."""
        facts = await self._tools.store.facts(scenario)
        rows = await self._tools.store.runs(scenario, states=("failed",), limit=_FAILED_ROWS)
        failed = [run for run in rows if run.kind == kind][: 2 * MOST_FAILURES]
        return failures_of_window(failed, window_hi=facts.last_batch_no) >= MOST_FAILURES

    def current(self, scenario: str) -> Current | None:
        """What the scenario's run in this process is doing right now."""
        execution = self._executions.get(scenario)
        return None if execution is None else execution.current

    def applied(self, run_id: str) -> ApplyResult | ApplyFailed | None:
        """What became of the run's model at the applier, for a run that ended in this process."""
        return self._handing.came(run_id)

    async def wait(self, run_id: str) -> Run | None:
        """The run once it has ended, its model handed over where it has one; None where there is no such run."""
        while True:
            ended = self._ended.setdefault(run_id, asyncio.Event())
            run = await self._tools.store.run(run_id)
            if run is None:
                return None
            busy = any(one.current.run.run_id == run_id for one in self._executions.values())
            if run.state in _ENDED and not busy and not self._handing.busy_with(run_id):
                self._ended.pop(run_id, None)
                return run
            try:
                async with asyncio.timeout(_LOOK_AGAIN):  # it may end in another worker
                    await ended.wait()
            except TimeoutError:
                continue

    # ------------------------------------------------------------ living

    async def recover(self, scenario: str, kind: ModelKind) -> None:
        """At start, once the applier is reconciled: hand over a newest model whose run ended before it was handed over.

        Runs that were left `running` need nothing here: `run` takes them over as soon as their lease is over.
        """
        await self._handing.recover(scenario, kind)

    async def clean_up(self) -> None:
        """At start: remove the directories of runs that ended. Those of the others hold what the next attempt needs."""
        unfinished = await self._tools.store.runs(states=("queued", "running"), limit=1000)
        keep = {run.run_id for run in unfinished}
        for folder in {place for one in self._tools.recipes.values() for place in (one.runs_dir, one.outputs_dir)}:
            await asyncio.to_thread(_remove_but, folder, keep)

    async def run(self, stopping: asyncio.Event) -> None:
        """Carry out what is queued until `stopping`; then end the children and put their runs back in the queue."""
        stop = asyncio.create_task(stopping.wait())
        try:
            await self._outlive_the_dead()
            while not stopping.is_set():
                self._woken.clear()
                await self._start_ready()
                wake = asyncio.create_task(self._woken.wait())
                try:
                    await asyncio.wait((stop, wake), timeout=_LOOK_AGAIN, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    wake.cancel()
        finally:
            stop.cancel()
            await self._stop_all()

    async def _outlive_the_dead(self) -> None:
        """Wait for no lease of a worker that a kill -9 ended, where the store knows that it is dead."""
        try:
            ended = await self._tools.store.end_leases_of_the_dead(self._tools.owner)
        except StoreError as error:
            log.warning("leases_not_ended", error=str(error))  # they run out by themselves
        else:
            if ended:
                log.info("leases_of_the_dead_ended", leases=ended)

    async def _start_ready(self) -> None:
        room = dict.fromkeys(self._tools.recipes, self._max_parallel)
        for kind in self._lanes.values():
            room[kind] -= 1
        if not any(room.values()):
            return
        try:
            rows = await self._tools.store.runs(states=("queued", "running"), limit=1000)
        except StoreError as error:
            log.warning("runs_not_read", error=str(error))
            return
        for run in rows:
            served = run.scenario in self._scenarios and run.scenario not in self._active
            if run.state == "running" and run.kind not in room and served:
                await self._put_aside(run)
        # One that a crash left running comes before those queued behind it; among equals the oldest.
        oldest_first = rows[::-1]
        for run in sorted(oldest_first, key=lambda row: row.state == "queued"):
            retry = self._retries.get(run.scenario)
            waits = retry is not None and retry.at > self._tools.clock.monotonic()
            if (
                room.get(run.kind, 0) > 0
                and run.scenario in self._scenarios
                and run.scenario not in self._active
                and not self._handing.busy_in(run.scenario, run.kind)
                and not waits
            ):
                room[run.kind] -= 1
                self._lanes[run.scenario] = run.kind
                task = asyncio.create_task(self._carry_out(run), name=f"run {run.run_id}")
                self._active[run.scenario] = task

    async def _put_aside(self, run: Run) -> None:
        """Back into the queue: a worker of another mode left it `running`, in the way of its scenario's other runs."""
        tools, lease = self._tools, f"training.{run.scenario}"
        now_ms, ttl_ms = tools.clock.now_ms(), round(tools.timing.lease_ttl * 1000)
        try:
            epoch = await tools.store.acquire_lease(lease, tools.owner, now_ms=now_ms, ttl_ms=ttl_ms)
            if epoch is None:
                return
            await tools.store.start_run(run.run_id, owner=tools.owner, lease=lease, epoch=epoch, now_ms=now_ms)
            reason = f"interrupted; this worker trains no {run.kind} models"
            await tools.store.requeue_run(run.run_id, epoch=epoch, reason=reason)
            await self._release(lease, epoch)
            log.info("run_put_aside", run_id=run.run_id, scenario=run.scenario, kind=run.kind)
        except (LeaseLost, StoreError) as error:
            log.warning("run_not_put_aside", run_id=run.run_id, scenario=run.scenario, error=str(error))

    async def _carry_out(self, run: Run) -> None:
        """One run under its scenario's lease. Nothing that happens in here ends the service."""
        scenario, lease = run.scenario, f"training.{run.scenario}"
        tools = self._tools
        epoch: int | None = None
        failed = True
        try:
            epoch = await tools.store.acquire_lease(
                lease, tools.owner, now_ms=tools.clock.now_ms(), ttl_ms=round(tools.timing.lease_ttl * 1000)
            )
            if epoch is not None:
                execution = self._executions[scenario] = Execution(tools, run, lease=lease, epoch=epoch)
                self._ended_as(await execution.run(), execution.model)
                failed = False
        except asyncio.CancelledError:
            self.stats.interrupted += 1
            raise
        except ProcessKilled as error:
            self.stats.interrupted += 1
            log.warning("training_process_killed", run_id=run.run_id, scenario=scenario, reason=str(error))
        except (LeaseLost, StoreError) as error:
            self.stats.lost += 1
            log.warning("run_lost", run_id=run.run_id, scenario=scenario, error=str(error))
        except Exception:
            self.stats.lost += 1
            log.exception("run_broke", run_id=run.run_id, scenario=scenario)
        finally:
            self._executions.pop(scenario, None)
            self._active.pop(scenario, None)
            self._lanes.pop(scenario, None)
            self._delay(scenario, failed=failed)
            self._tell(run.run_id)
            if epoch is not None:
                await self._release(lease, epoch)
            self._woken.set()

    def _ended_as(self, ended: Run, model: Model | None) -> None:
        match ended.state:
            case "trained":
                self.stats.trained += 1
            case "failed":
                self.stats.failed += 1
            case _:
                self.stats.skipped += 1
        self._on_event()
        if model is not None:
            self._handing.begin(ended, model, partial(self._handed_over, ended.run_id))

    def _handed_over(self, run_id: str) -> None:
        self._tell(run_id)
        self._woken.set()

    def _tell(self, run_id: str) -> None:
        if (event := self._ended.pop(run_id, None)) is not None:
            event.set()

    def _delay(self, scenario: str, *, failed: bool) -> None:
        if not failed:
            self._retries.pop(scenario, None)
            return
        before = self._retries.get(scenario)
        wait = _RETRY_FIRST if before is None else min(_RETRY_MOST, before.wait * 2)
        self._retries[scenario] = _Retry(wait, self._tools.clock.monotonic() + wait)

    async def _release(self, lease: str, epoch: int) -> None:
        try:
            await self._tools.store.release_lease(lease, self._tools.owner, epoch)
        except StoreError as error:
            log.warning("lease_not_released", lease=lease, error=str(error))  # it runs out by itself

    async def _stop_all(self) -> None:
        """Bounded by the launcher's grace period: SIGTERM, wait, SIGKILL."""
        tasks = list(self._active.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._handing.stop()


def _remove_but(folder: Path, keep: set[str]) -> None:
    """Only what a run made: the folder may be a link to a disk where other things lie too."""
    for run_dir in folder.iterdir() if folder.is_dir() else ():
        if _RUN_ID.fullmatch(run_dir.name) and run_dir.name not in keep:
            remove_run_folder(run_dir)
