"""Decides which model is live: whether to apply one, in whose turn, and which comes back on a rollback.

Offline models and adapters go their ways apart: each kind has its applicator, its champion and its history. What is
decided, `Deployer` carries out.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias
from uuid import uuid4

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from worker.clock import Clock
from worker.errors import ApplyFailed, Overtaken
from worker.models.announce import Announcer
from worker.models.applicators.port import Applicator
from worker.models.deployer import Applied, ApplierStats, Deployer, NoPrevious, went_back
from worker.models.health_window import HealthWindow
from worker.models.history import LiveHistory, live_models, unfinished
from worker.models.registry import Registry
from worker.models.serving import Serving
from worker.store.port import Deployment, Model, ModelKind, ModelRegistry
from worker.wire.served import Endpoint

log = structlog.get_logger(__name__)

ApplyMode: TypeAlias = Literal["manual", "auto"]

#: Each is overtaken only by something that another worker has begun or ended.
_MOST_TRIES = 10
#: In texts for people.
_NOUN: Mapping[ModelKind, str] = {"offline": "model", "lora": "adapter"}


@dataclass(frozen=True, slots=True)
class ApplySkipped:
    """The model was left where it is."""

    model_id: str
    reason: str


ApplyResult: TypeAlias = Applied | ApplySkipped


class Applier:
    """One for all scenarios; one apply at a time of each kind in each."""

    def __init__(
        self,
        *,
        store: ModelRegistry,
        registry: Registry,
        applicators: Mapping[ModelKind, Applicator],
        announcer: Announcer,
        clock: Clock,
        mode_of: Callable[[str], ApplyMode],
        max_history: int,
        health_window: HealthWindow | None = None,
        endpoint_of: Callable[[Model], Endpoint | None] = lambda _: None,
        base_sha256: Callable[[], str | None] = lambda: None,
        on_event: Callable[[], None] = lambda: None,
        new_id: Callable[[], str] = lambda: str(uuid4()),
    ) -> None:
        """`applicators` of the kinds that this worker serves; `on_event` wakes the outbox relay.

        `mode_of` gives a scenario's apply mode; `health_window` watches new adapters; `endpoint_of` looks in a file
        whom nodes ask for one, or raises `ApplyFailed`, as does `base_sha256`, which reads the base that adapters are
        trained on; None where it is not on this machine.
        """
        self._registry = registry
        self._clock = clock
        self._mode_of = mode_of
        self._history = LiveHistory(store, depth=max_history)
        self._turns: defaultdict[tuple[str, ModelKind], asyncio.Lock] = defaultdict(asyncio.Lock)
        self.stats = ApplierStats()
        health_window = health_window or HealthWindow(0, clock)
        self._serving = Serving(registry, applicators, health_window, endpoint_of, base_sha256)
        self._deployer = Deployer(
            store=store,
            registry=registry,
            serving=self._serving,
            history=self._history,
            health_window=health_window,
            announcer=announcer,
            clock=clock,
            on_event=on_event,
            new_id=new_id,
            stats=self.stats,
        )

    @property
    def kinds(self) -> list[ModelKind]:
        """What this worker serves."""
        return self._serving.kinds

    def why_unserved(self, scenario: str, kind: ModelKind) -> str | None:
        """What keeps the live model from being served, for people; None where nothing was seen that does."""
        return self._deployer.why_unserved(scenario, kind)

    async def apply(self, model: Model, *, by: str, asked_at_ms: int | None = None) -> ApplyResult:
        """Obey the apply mode: `auto` applies what the gate blesses, and never an older version over a newer one.

        `asked_at_ms`, here and below: when that was asked for, Unix ms; None for just now.
        """
        if self._mode_of(model.scenario) == "manual" and model.gate_verdict == "blessed":
            return self._skip(model, f"apply mode is manual; apply it with: {_command(model)}")
        return await self._apply(model, by=by, forced=False, if_newer=True, asked_at_ms=asked_at_ms)

    async def apply_now(
        self, model: Model, *, by: str, forced: bool = False, asked_at_ms: int | None = None
    ) -> ApplyResult:
        """Apply whatever the mode; what the gate does not bless only where `forced`. Raises `ApplyFailed`."""
        return await self._apply(model, by=by, forced=forced, if_newer=False, asked_at_ms=asked_at_ms)

    async def _apply(
        self, model: Model, *, by: str, forced: bool, if_newer: bool, asked_at_ms: int | None
    ) -> ApplyResult:
        if model.gate_verdict != "blessed" and not forced:
            reasons = "; ".join(model.gate_reasons)
            return self._skip(
                model, f"the gate says {model.gate_verdict} ({reasons}); override it with: {_command(model)} --force"
            )
        asked_at_ms = self._clock.now_ms() if asked_at_ms is None else asked_at_ms
        result: ApplyResult = await _unless_overtaken()(
            self._apply_in_turn, model, by=by, forced=forced, if_newer=if_newer, asked_at_ms=asked_at_ms
        )
        return result

    async def _apply_in_turn(
        self, model: Model, *, by: str, forced: bool, if_newer: bool, asked_at_ms: int
    ) -> ApplyResult:
        async with self._turn(model.scenario, model.kind):
            rows = await self._history.rows(model.scenario, model.kind)
            if (done := await self._done_by(rows, by)) is not None:
                return done
            if any(row.given_up_by and row.at_ms >= asked_at_ms for row in rows):
                # What was live before is what the operator wants live, and this was asked for before the rollback.
                return self._skip(
                    model,
                    f"a rollback came while it waited; apply it, where it is still wanted, with: {_command(model)}",
                )
            live = await self._registry.champion(model.scenario, model.kind)
            if if_newer and live is not None and live.version >= model.version:
                newer = " and newer" if live.version > model.version else ""
                return self._skip(model, f"version {live.version} is live{newer}")
            previous = None if live is None or live.model_id == model.model_id else live.model_id
            return await self._begin(rows, self._deployer.new(model, previous, "apply", by=by, forced=forced), model)

    async def begun_by(self, scenario: str, by: str) -> tuple[Deployment, Model] | None:
        """The deployment, and its model, that a command had brought before a crash; None where nothing.

        Also one that it had given up. Carried out once more, it would bring another model now.
        """
        for row in await self._history.rows(scenario):
            if by in (row.by, row.given_up_by):
                return row, await self._registry.get(row.model_id)
        return None

    async def end_of(self, row: Deployment, model: Model, *, by: str) -> Applied:
        """Carry on what `begun_by` found, where a crash interrupted it, and say what came of it.

        Raises `ApplyFailed`; `NoPrevious` for one that was given up and before which none was live.
        """
        if row.state == "started":
            await self.reconcile(row.scenario, model.kind)
            rows = await self._history.rows(row.scenario, model.kind)
            row = next(one for one in rows if one.deployment_id == row.deployment_id)
        if row.given_up_by == by:
            before = None if row.previous_model_id is None else await self._registry.get(row.previous_model_id)
            return went_back(row, model, before)
        if row.state != "verified":
            raise ApplyFailed(row.detail)
        return Applied(row.model_id, row.previous_model_id, row.deployment_id, model.kind, row.detail)

    async def rollback(
        self,
        scenario: str,
        *,
        by: str,
        kind: ModelKind | None = None,
        to: Model | None = None,
        asked_at_ms: int | None = None,
    ) -> Applied:
        """Go back to the model that was live before, or to an earlier one. Raises `NoPrevious`, `ApplyFailed`.

        Without `kind` and `to`: of the kind that was changed last. An adapter that is still in its health window is
        given up by it: what was live before is live again, and nothing earlier.
        """
        asked_at_ms = self._clock.now_ms() if asked_at_ms is None else asked_at_ms
        back: Applied = await _unless_overtaken()(
            self._rollback_in_turn, scenario, by=by, kind=kind, to=to, asked_at_ms=asked_at_ms
        )
        return back

    async def _rollback_in_turn(
        self, scenario: str, *, by: str, kind: ModelKind | None, to: Model | None, asked_at_ms: int
    ) -> Applied:
        kind = to.kind if to is not None else kind or await self.changed_last(scenario)
        if to is None and kind == "lora" and self._deployer.watches(scenario):
            return await self._deployer.give_up(scenario, by, at_ms=asked_at_ms)
        async with self._turn(scenario, kind):
            rows = await self._history.rows(scenario, kind)
            if (done := await self._done_by(rows, by)) is not None:
                return done
            ids = live_models(rows, depth=self._history.depth)
            earlier = ids[1:]
            target = to.model_id if to is not None else (earlier[0] if earlier else None)
            if target is None or target not in earlier:
                raise NoPrevious(await self._why_no_earlier(scenario, kind, to))
            model = await self._registry.get(target)
            return await self._begin(rows, self._deployer.new(model, ids[0], "rollback", by=by, forced=False), model)

    async def _done_by(self, rows: Sequence[Deployment], by: str) -> Applied | None:
        """What another worker has made of the same command, by the log of one kind. Raises as `end_of`."""
        for row in rows if by.startswith("command ") else ():  # others name nothing that is done once
            if by in (row.by, row.given_up_by) and row.state != "started":
                return await self.end_of(row, await self._registry.get(row.model_id), by=by)
        return None

    async def _begin(self, rows: Sequence[Deployment], started: Deployment, model: Model) -> Applied:
        """Carry out what was decided by these rows of the log, or raise `Overtaken`."""
        if begun := unfinished(rows):
            raise Overtaken(f"another worker has begun deployment {begun[0].deployment_id}; that is carried on first")
        try:
            return await self._deployer.deploy(started, model, after=rows[0].deployment_id if rows else None)
        except Overtaken:
            now = await self._history.rows(model.scenario, model.kind)
            ended = [row for row in now if row.deployment_id == started.deployment_id]
            if not ended:
                raise
            # Another worker took this one for dead, and carried it on to another end: the first word stands.
            await self._deployer.serve_live(model.scenario, model.kind)
            return await self.end_of(ended[0], model, by=started.by)

    async def _why_no_earlier(self, scenario: str, kind: ModelKind, to: Model | None) -> str:
        wanted = "to go back to" if to is None else to.model_id
        cure = f"see: swarm-worker models history --scenario {scenario}"
        if kind == "lora" and to is None:
            cure = "before its first adapter nodes asked the base; let them ask that by its name (at a router: base)"
        for other in self.kinds:
            if to is None and other != kind and len(await self.history(scenario, other)) > 1:
                cure = f"an earlier {_NOUN[other]} there is, it comes back with: --kind {other}"
        return f"scenario {scenario} has no earlier {_NOUN[kind]} {wanted} (kind {kind}); {cure}"

    async def changed_last(self, scenario: str) -> ModelKind:
        """The kind that a rollback means which names none; an adapter in its health window is being changed now."""
        if self._deployer.watches(scenario):
            return "lora"
        for row in await self._history.rows(scenario):
            if row.state == "verified":
                return (await self._registry.get(row.model_id)).kind
        return "offline"

    async def history(self, scenario: str, kind: ModelKind) -> list[str]:
        """Ids of models of one kind, the live one first, then those a rollback may bring back."""
        return await self._history.ids(scenario, kind)

    async def retire(self, scenario: str, kind: ModelKind) -> None:
        """Drop the files of models beyond those that are live, may be rolled back to, or are among the newest."""
        await self._deployer.retire(scenario, kind)

    async def reconcile(self, scenario: str, kind: ModelKind) -> bool:
        """Carry on what a crash interrupted, and serve the live model again where another is served.

        False where what should be live is not served: its server is away, or refuses it.
        """
        async with self._turn(scenario, kind):
            return await self._deployer.serve_live(scenario, kind)

    @asynccontextmanager
    async def _turn(self, scenario: str, kind: ModelKind) -> AsyncIterator[None]:
        """One deployment at a time, each decided upon what the one before it left.

        Where that was left without an end, it gets one first: else a rollback goes one model too far back.
        """
        async with self._turns[scenario, kind]:
            if kind in self.kinds:
                await self._deployer.carry_on(scenario, kind)
            yield

    def _skip(self, model: Model, reason: str) -> ApplySkipped:
        self.stats.skipped += 1
        log.info("apply_skipped", scenario=model.scenario, model_id=model.model_id, reason=reason)
        return ApplySkipped(model.model_id, reason)


def _unless_overtaken() -> AsyncRetrying:
    """Decide anew where other workers, which may have the same store, began or ended something meanwhile."""
    return AsyncRetrying(
        stop=stop_after_attempt(_MOST_TRIES),
        wait=wait_random_exponential(multiplier=0.1, max=5),
        retry=retry_if_exception_type(Overtaken),
        reraise=True,
    )


def _command(model: Model) -> str:
    return f"swarm-worker apply --scenario {model.scenario} --model {model.version}"
