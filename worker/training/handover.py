"""Gives new models to the applier, beside the trainings: an adapter may be loaded, drained and watched for long."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from worker.clock import Clock, after
from worker.errors import ApplyFailed, StoreError, StoreUnavailable
from worker.models.applier import Applier, ApplyResult, ApplySkipped
from worker.models.registry import Registry
from worker.store.port import Model, ModelKind, Run, Store

log = structlog.get_logger(__name__)

#: How long a new model waits for a store that is away; `recover` hands over what waited longer, at the next start.
_PATIENCE = 300.0
#: Answers for commands that wait now, not a history.
_MOST_ANSWERS = 100


class HandOver:
    """One for all scenarios; one model of a kind at a time in each."""

    def __init__(self, store: Store, registry: Registry, applier: Applier, clock: Clock) -> None:
        self._store = store
        self._registry = registry
        self._applier = applier
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._of: dict[str, tuple[str, ModelKind]] = {}
        self._turns: defaultdict[tuple[str, ModelKind], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._came: dict[str, ApplyResult | ApplyFailed] = {}

    def begin(self, run: Run, model: Model, on_end: Callable[[], None]) -> None:
        """Hand over the model that the run brought, and call `on_end` however that ends."""

        async def work() -> None:
            try:
                async with self._turns[run.scenario, run.kind]:
                    await self._give(run, model)
            except StoreError as error:
                log.warning("model_not_handed_over", run_id=run.run_id, scenario=run.scenario, error=str(error))
            except Exception:
                log.exception("hand_over_broke", run_id=run.run_id, scenario=run.scenario)
            finally:
                self._tasks.pop(run.run_id)
                self._of.pop(run.run_id)
                on_end()

        self._of[run.run_id] = (run.scenario, run.kind)
        self._tasks[run.run_id] = asyncio.create_task(work(), name=f"hand over {run.run_id}")

    def busy_with(self, run_id: str) -> bool:
        """Whether the run's model is being handed over."""
        return run_id in self._tasks

    def busy_in(self, scenario: str, kind: ModelKind) -> bool:
        """Whether a model of this kind is: the next one is compared with what is live then."""
        return (scenario, kind) in self._of.values() or self._turns[scenario, kind].locked()

    def came(self, run_id: str) -> ApplyResult | ApplyFailed | None:
        """What became of the run's model, for a run that ended in this process."""
        return self._came.get(run_id)

    async def recover(self, scenario: str, kind: ModelKind) -> None:
        """Hand over a newest model whose run had ended when the last life did, and which was not handed over."""
        async with self._turns[scenario, kind]:
            model = await self._registry.newest(scenario, kind)
            if model is None:
                return
            deployed = await self._store.deployments(scenario, kind=kind, limit=1000)
            run = await self._store.run(model.run_id)
            if run is not None and model.model_id not in {row.model_id for row in deployed}:
                await self._give(run, model)

    async def stop(self) -> None:
        """Cut short what goes on; the next start carries it on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _give(self, run: Run, model: Model) -> None:
        """As the apply mode says, or as the command said; once, though `recover` may find what `begin` is to take."""
        if run.run_id in self._came:
            return
        by, asked = str(run.trigger.get("by", "trigger")), run.ended_at_ms
        # The training is committed: a store that is away for a moment must not leave its model lying until a restart.
        attempts = AsyncRetrying(
            stop=after(self._clock, _PATIENCE),
            wait=wait_random_exponential(multiplier=0.2, max=10),
            retry=retry_if_exception_type(StoreUnavailable),
            reraise=True,
        )
        try:
            if run.apply is None:
                came: ApplyResult | ApplyFailed = await attempts(self._applier.apply, model, by=by, asked_at_ms=asked)
            elif run.apply:
                came = await attempts(self._applier.apply_now, model, by=by, asked_at_ms=asked)
            else:
                came = ApplySkipped(model.model_id, "the command said not to apply")
        except ApplyFailed as error:  # told of by row and event; the training itself is done
            came = error
        self._came[run.run_id] = came
        while len(self._came) > _MOST_ANSWERS:
            self._came.pop(next(iter(self._came)))
        await self._applier.retire(run.scenario, run.kind)
