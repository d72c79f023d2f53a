"""Carries a decided deployment to its end: brings the model, verifies what is served, and goes back where it must.

Crash-safe by the deployment log: a row `started` comes first, `verified` (with aliases and event) or `failed` last.
What a crash left `started` is carried on at the next start, which is harmless since applying the same model twice is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, ParamSpec, TypeVar

import structlog
from msgspec.structs import replace
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from worker import crash
from worker.clock import Clock
from worker.clock import after as after_seconds
from worker.errors import ApplyFailed, DataRefused, NotFound, Overtaken, StoreError, StoreUnavailable
from worker.models.announce import Announcer
from worker.models.health_window import GivenUp, HealthWindow
from worker.models.history import LiveHistory, ended_after, unfinished
from worker.models.registry import Registry
from worker.models.serving import Serving
from worker.store.port import Deployment, Model, ModelKind, ModelRegistry, OutboxEvent, alias_of
from worker.wire.served import Endpoint

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: How long a beginning waits for a store that is away, in s: nothing has changed yet, so it may be told as failed.
_PATIENCE_BEFORE = 20.0
#: How long an end waits for it, in s, as long as records and commands do: what is served has changed already.
_PATIENCE_AFTER = 600.0


@dataclass(frozen=True, slots=True)
class Applied:
    """The model is live, and that was verified."""

    model_id: str
    previous_model_id: str | None
    deployment_id: str
    kind: ModelKind
    detail: str = ""  # what a person should know of how it was verified


class NoPrevious(NotFound):
    """There is no earlier model to go back to."""


class EndNotStored(StoreError):
    """What is served has changed, and the store took no word of it: the row is `started`, and will be carried on."""


@dataclass(slots=True)
class ApplierStats:
    """What was applied since the start."""

    applied: int = 0
    rolled_back: int = 0
    failed: int = 0
    skipped: int = 0


class Deployer:
    """For all scenarios; its owner sees to it that there is one deployment at a time of each kind in each."""

    def __init__(
        self,
        *,
        store: ModelRegistry,
        registry: Registry,
        serving: Serving,
        history: LiveHistory,
        health_window: HealthWindow,
        announcer: Announcer,
        clock: Clock,
        on_event: Callable[[], None],
        new_id: Callable[[], str],
        stats: ApplierStats,
    ) -> None:
        """As `Applier` has it; counts in `stats`."""
        self._store = store
        self._registry = registry
        self._serving = serving
        self._history = history
        self._health_window = health_window
        self._announcer = announcer
        self._clock = clock
        self._on_event = on_event
        self._new_id = new_id
        self._stats = stats
        #: Of adapters that are being given up in their health window, by scenario: the row's end and what came back.
        self._given_up: dict[str, asyncio.Future[tuple[Deployment, Model | None]]] = {}
        #: Why a live model is not served, by what was seen last.
        self._unserved: dict[tuple[str, ModelKind], str] = {}

    def why_unserved(self, scenario: str, kind: ModelKind) -> str | None:
        """What keeps the live model from being served, for people; None where nothing was seen that does."""
        return self._unserved.get((scenario, kind))

    def watches(self, scenario: str) -> bool:
        """Whether an adapter of the scenario is in its health window."""
        return self._health_window.watches(scenario)

    def new(
        self, model: Model, previous: str | None, action: Literal["apply", "rollback"], *, by: str, forced: bool
    ) -> Deployment:
        """The row of a deployment that is about to begin. `ApplyFailed` where none of its kind are served here."""
        applicator = self._serving.applicator(model.kind)
        return Deployment(
            deployment_id=self._new_id(), scenario=model.scenario, model_id=model.model_id, previous_model_id=previous,
            action=action, applicator=applicator.name, target=applicator.target(model.scenario),
            state="started", by=by, forced=forced, at_ms=self._clock.now_ms(),
        )  # fmt: skip

    async def deploy(self, started: Deployment, model: Model, *, after: str | None = None) -> Applied:
        """Carry it from `started` to its end. Raises `ApplyFailed` once the way back is gone; `EndNotStored`.

        A new one comes `after` the newest row that it was decided by. `Overtaken` where another worker's came before
        it, or has carried this one on and ended it otherwise.
        """
        await self._while_store_is_away(_PATIENCE_BEFORE)(self._write, started, after=after)
        crash.point("apply_started")
        try:
            detail = await self._serving.bring(model)
            if started.action == "apply":  # what a rollback goes back to was watched, and it must not take long
                await self._serving.watch(model)
            endpoint = await self._serving.endpoint(model)
        except ApplyFailed as error:
            failed = await self._fail(started, model, error)
            if failed.stranded:
                raise ApplyFailed(failed.detail) from error
            raise
        crash.point("apply_brought")
        verified = await self._end(self._verify, started, model, detail, endpoint)
        self._unserved.pop((model.scenario, model.kind), None)
        crash.point("apply_committed")
        self._on_event()
        if started.action == "apply":
            self._stats.applied += 1
        else:
            self._stats.rolled_back += 1
        log.info(
            "model_live", scenario=model.scenario, kind=model.kind, action=started.action, model_id=model.model_id,
            version=model.version, previous=started.previous_model_id, by=started.by, forced=started.forced,
        )  # fmt: skip
        try:
            live = await self._registry.champion(model.scenario, model.kind)
            if live is None or live.model_id != model.model_id:  # another worker ended this one, and others since
                await self.serve_live(model.scenario, model.kind)
            await self.retire(model.scenario, model.kind)
        except (StoreError, OSError) as error:  # it is live; the next one's end retires what was left
            log.warning("old_models_not_removed", scenario=model.scenario, error=str(error))
        return Applied(model.model_id, started.previous_model_id, started.deployment_id, model.kind, verified.detail)

    async def give_up(self, scenario: str, by: str, *, at_ms: int) -> Applied:
        """End the health window of the scenario's adapter that it `watches`: what was live before is live again.

        That was asked for at `at_ms`, Unix ms. Raises `ApplyFailed`, `NoPrevious`.
        """
        watched = self._health_window.give_up(scenario, by, at_ms)
        # Until its way back is gone. Not until the turn is free: another apply may wait for that, and watch for long.
        ended = self._given_up.setdefault(scenario, asyncio.get_running_loop().create_future())
        row, restored = await asyncio.shield(ended)
        return went_back(row, watched, restored)

    async def carry_on(self, scenario: str, kind: ModelKind) -> None:
        """End what a crash, or a store that took no end, left `started`, in its order."""
        rows = await self._history.rows(scenario, kind)
        for deployment in unfinished(rows):
            log.warning("deployment_resumed", scenario=scenario, deployment_id=deployment.deployment_id)
            model = await self._registry.get(deployment.model_id)
            try:
                if (later := ended_after(deployment, rows)) is not None:
                    await self._supersede(deployment, model, later)
                elif deployment.given_up_by:
                    await self._fail(deployment, model, GivenUp(model, deployment.given_up_by, deployment.at_ms))
                else:
                    await self.deploy(deployment, model)
            except DataRefused as error:  # another worker had only been frozen, and has ended it since we looked
                log.warning("resumed_deployment_had_ended", scenario=scenario, error=str(error))
            except ApplyFailed as error:  # the row, the event and the way back are done
                log.error("resumed_deployment_failed", scenario=scenario, error=str(error))  # noqa: TRY400 - no trace

    async def serve_live(self, scenario: str, kind: ModelKind) -> bool:
        """Serve the live model again where another is served; False where that can't be: its server is away, say."""
        newest = (await self._history.rows(scenario, kind))[:1]
        live = await self._registry.champion(scenario, kind)
        if live is None:
            self._unserved.pop((scenario, kind), None)
            return True
        try:
            served = await self._serving.served(scenario, kind)
            if served != live.sha256:
                log.warning("served_model_is_not_the_live_one", scenario=scenario, model_id=live.model_id)
                self._unserved[scenario, kind] = (
                    f"{self._serving.applicator(kind).target(scenario)} was seen to serve {served or 'no model'}; "
                    "it is being brought there again"
                )
                await self._bring_again(live, after=newest[0].deployment_id)
        except Overtaken as error:  # another worker's deployment has the last word on what is served
            log.warning("live_model_changes", scenario=scenario, kind=kind, error=str(error))
            return False
        except ApplyFailed as error:
            self._unserved[scenario, kind] = str(error)
            self._stats.failed += 1
            log.error("live_model_not_served", scenario=scenario, kind=kind, error=str(error))  # noqa: TRY400 - no trace
            return False
        self._unserved.pop((scenario, kind), None)
        return True

    async def retire(self, scenario: str, kind: ModelKind) -> None:
        """Drop the files of models beyond those that are live, may be rolled back to, or are among the newest."""
        keep = await self._history.ids(scenario, kind)
        await self._registry.retire(scenario, kind, keep=keep, newest=self._history.depth)

    async def _verify(self, started: Deployment, model: Model, detail: str, endpoint: Endpoint | None) -> Deployment:
        now_ms = self._clock.now_ms()
        verified = replace(started, state="verified", at_ms=now_ms, detail=detail, target=_target(started, endpoint))
        champion, candidate, previous = (alias_of(name, model.kind) for name in ("champion", "candidate", "previous"))
        aliases: dict[str, str | None] = {champion: model.model_id}
        if started.action == "apply":
            if started.previous_model_id is not None:
                aliases[previous] = started.previous_model_id
            if (await self._store.aliases(model.scenario)).get(candidate) == model.model_id:
                aliases[candidate] = None
            events = [self._announcer.applied(verified, model, endpoint=endpoint, now_ms=now_ms)]
        else:
            ids = await self._history.ids(model.scenario, model.kind)
            before = ids[ids.index(model.model_id) + 1 :] if model.model_id in ids else []
            aliases[previous] = before[0] if before else None
            events = [self._announcer.rolled_back(verified, model, reason="rollback", endpoint=endpoint, now_ms=now_ms)]
        await self._write(verified, aliases, events)
        return verified

    async def _bring_again(self, live: Model, *, after: str) -> None:
        """Bring what was lost; where another server has it now (`blue_green`), those who follow events are told."""
        before = await self._serving.endpoint(live)
        detail = await self._serving.bring(live)
        endpoint = await self._serving.endpoint(live)
        if endpoint == before:
            return
        moved = self.new(live, None, "apply", by="worker", forced=False)
        moved = replace(moved, state="verified", detail=detail, target=_target(moved, endpoint))
        event = self._announcer.applied(moved, live, endpoint=endpoint, now_ms=moved.at_ms)
        await self._while_store_is_away(_PATIENCE_BEFORE)(self._write, moved, None, [event], after=after)
        self._on_event()

    async def _fail(self, started: Deployment, model: Model, reason: ApplyFailed) -> Deployment:
        """Put back what was live, and say so in events and in the row, which comes back. Raises `EndNotStored`."""
        self._stats.failed += 1
        given_up = self._given_up.pop(started.scenario, None) if model.kind == "lora" else None
        try:
            failed, restored = await self._go_back(started, model, reason)
        except BaseException as error:
            if given_up is not None and isinstance(error, Exception):
                given_up.set_exception(error)
            raise
        self._on_event()
        log.error("apply_failed", scenario=started.scenario, model_id=started.model_id, detail=failed.detail)
        if given_up is not None:
            given_up.set_result((failed, restored))
        return failed

    async def _go_back(self, started: Deployment, model: Model, reason: ApplyFailed) -> tuple[Deployment, Model | None]:
        """The row's end, and what is served again."""
        if isinstance(reason, GivenUp):
            # First of all: a worker that is killed on the way back would bring it again at its next start.
            started = replace(started, given_up_by=reason.by, at_ms=reason.at_ms)
            await self._end(self._write, started)
        live = await self._end(self._registry.champion, started.scenario, model.kind)
        failed = replace(started, state="failed", detail=str(reason))
        restored: Model | None = None
        endpoint: Endpoint | None = None
        try:
            if live is None:
                await self._serving.withdraw(started.scenario, model.kind)
            else:
                await self._serving.restore(live, failed=model)
                endpoint = await self._serving.endpoint(live)
                restored = live
        except ApplyFailed as error:
            why = ", for the same reason" if str(error) == str(reason) else f": {error}"
            failed = replace(failed, stranded=True, detail=f"{reason}; and the way back failed{why}")
            if live is not None:
                self._unserved[started.scenario, model.kind] = str(error)
        now_ms = self._clock.now_ms()
        if not failed.given_up_by:
            failed.at_ms = now_ms
        events = [self._announcer.apply_failed(failed, model, now_ms=now_ms)]
        if restored is not None:
            events.append(
                self._announcer.rolled_back(failed, restored, reason="apply_failed", endpoint=endpoint, now_ms=now_ms)
            )
        await self._end(self._write, failed, None, events)
        return failed, restored

    async def _supersede(self, started: Deployment, model: Model, later: Deployment) -> None:
        """End what a later deployment has overtaken: that one had the last word on what is served, and keeps it."""
        now_ms = self._clock.now_ms()
        detail = (
            f"it was interrupted, and a later {later.action} (deployment {later.deployment_id}) ended before it could "
            "be carried on: what that left live stays"
        )
        failed = replace(started, state="failed", at_ms=now_ms, detail=detail)
        await self._write(failed, None, [self._announcer.apply_failed(failed, model, now_ms=now_ms)])
        self._on_event()
        self._stats.failed += 1
        log.warning("deployment_superseded", scenario=started.scenario, deployment_id=started.deployment_id)

    async def _write(
        self,
        deployment: Deployment,
        aliases: Mapping[str, str | None] | None = None,
        events: Sequence[OutboxEvent] = (),
        *,
        after: str | None = None,
    ) -> None:
        """One transaction."""
        await self._store.deploy(deployment, after=after, aliases=aliases or {}, events=events)

    async def _end(self, end: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read and write what ends a deployment, as soon as the store is there. Raises `EndNotStored`."""
        try:
            ended: T = await self._while_store_is_away(_PATIENCE_AFTER)(end, *args, **kwargs)
        except StoreUnavailable as error:
            raise EndNotStored(f"what is served has changed, and the store took no word of it: {error}") from error
        return ended

    def _while_store_is_away(self, seconds: float) -> AsyncRetrying:
        return AsyncRetrying(
            stop=after_seconds(self._clock, seconds),
            wait=wait_exponential(multiplier=0.2, max=5),
            retry=retry_if_exception_type(StoreUnavailable),
            reraise=True,
        )


def went_back(given_up: Deployment, model: Model, restored: Model | None) -> Applied:
    """What a rollback brought that gave `model` up in its health window. Raises `NoPrevious`, `ApplyFailed`."""
    if given_up.stranded:
        raise ApplyFailed(given_up.detail)
    if restored is None:
        raise NoPrevious(f"version {model.version} of {model.scenario} was given up; no adapter was live before it")
    return Applied(restored.model_id, model.model_id, given_up.deployment_id, model.kind, given_up.detail)


def _target(deployment: Deployment, endpoint: Endpoint | None) -> str:
    """Where it is served now that it is: an applicator may have several servers, and knows before only which."""
    return deployment.target if endpoint is None else f"{endpoint.url} as {endpoint.model}"
