"""Makes a model the live one: decides whether to, has it applied, verifies what is served, and can go back.

Offline models and adapters go their ways apart: each kind has its applicator, its champion and its history.

Crash-safe by the deployment log: a row `started` comes first, `verified` (with aliases and event) or `failed` last.
What a crash left `started` is carried on at the next start, which is harmless since applying the same model twice is.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, ParamSpec, TypeAlias, TypeVar
from uuid import uuid4

import structlog
from msgspec.structs import replace
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from worker import crash
from worker.clock import Clock, after
from worker.errors import ApplyFailed, DataRefused, NotFound, StoreError, StoreUnavailable
from worker.models.announce import Announcer
from worker.models.applicators.port import Applicator
from worker.models.health_window import HealthWindow, was_given_up_by
from worker.models.history import ended_after, live_models, unfinished
from worker.models.registry import Registry
from worker.store.port import Deployment, Model, ModelKind, ModelRegistry, OutboxEvent, alias_of
from worker.wire.served import Endpoint

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

ApplyMode: TypeAlias = Literal["manual", "auto"]

#: Rows of the deployment log that history is read from.
_LOG_ROWS = 1_000
#: How long a beginning waits for a store that is away, in s: nothing has changed yet, so it may be told as failed.
_PATIENCE_BEFORE = 20.0
#: How long an end waits for it, in s, as long as records and commands do: what is served has changed already.
_PATIENCE_AFTER = 600.0
_NO_WAY_BACK = "and the way back failed"
#: In texts for people.
_NOUN: Mapping[ModelKind, str] = {"offline": "model", "lora": "adapter"}


@dataclass(frozen=True, slots=True)
class Applied:
    """The model is live, and that was verified."""

    model_id: str
    previous_model_id: str | None
    deployment_id: str
    kind: ModelKind
    detail: str = ""  # what a person should know of how it was verified


@dataclass(frozen=True, slots=True)
class ApplySkipped:
    """The model was left where it is."""

    model_id: str
    reason: str


ApplyResult: TypeAlias = Applied | ApplySkipped


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
        on_event: Callable[[], None] = lambda: None,
        new_id: Callable[[], str] = lambda: str(uuid4()),
    ) -> None:
        """`applicators` of the kinds that this worker serves; `on_event` wakes the outbox relay.

        `mode_of` gives a scenario's apply mode; `health_window` watches new adapters; `endpoint_of` looks in a file
        whom nodes ask for one, or raises `ApplyFailed`.
        """
        self._store = store
        self._registry = registry
        self._applicators = dict(applicators)
        self._announcer = announcer
        self._clock = clock
        self._mode_of = mode_of
        self._max_history = max_history
        self._health_window = health_window
        self._endpoint_of = endpoint_of
        self._on_event = on_event
        self._new_id = new_id
        self._turns: defaultdict[tuple[str, ModelKind], asyncio.Lock] = defaultdict(asyncio.Lock)
        #: Of adapters that are being given up in their health window, by scenario: the row's end and what came back.
        self._given_up: dict[str, asyncio.Future[tuple[Deployment, Model | None]]] = {}
        #: Why a live model is not served, by what was seen last.
        self._unserved: dict[tuple[str, ModelKind], str] = {}
        self.stats = ApplierStats()

    def why_unserved(self, scenario: str, kind: ModelKind) -> str | None:
        """What keeps the live model from being served, for people; None where nothing was seen that does."""
        return self._unserved.get((scenario, kind))

    async def apply(self, model: Model, *, by: str) -> ApplyResult:
        """Obey the apply mode: `auto` applies what the gate blesses, and never an older version over a newer one."""
        if self._mode_of(model.scenario) == "manual" and model.gate_verdict == "blessed":
            return self._skip(model, f"apply mode is manual; apply it with: {_command(model)}")
        return await self._apply(model, by=by, forced=False, if_newer=True)

    async def apply_now(self, model: Model, *, by: str, forced: bool = False) -> ApplyResult:
        """Apply whatever the mode; what the gate does not bless only where `forced`. Raises `ApplyFailed`."""
        return await self._apply(model, by=by, forced=forced, if_newer=False)

    async def _apply(self, model: Model, *, by: str, forced: bool, if_newer: bool) -> ApplyResult:
        if model.gate_verdict != "blessed" and not forced:
            reasons = "; ".join(model.gate_reasons)
            return self._skip(
                model, f"the gate says {model.gate_verdict} ({reasons}); override it with: {_command(model)} --force"
            )
        async with self._turns[model.scenario, model.kind]:
            live = await self._registry.champion(model.scenario, model.kind)
            if if_newer and live is not None and live.version >= model.version:
                newer = " and newer" if live.version > model.version else ""
                return self._skip(model, f"version {live.version} is live{newer}")
            previous = None if live is None or live.model_id == model.model_id else live.model_id
            return await self._deploy(self._new(model, previous, "apply", by=by, forced=forced), model)

    async def begun_by(self, scenario: str, by: str) -> tuple[Deployment, Model] | None:
        """The deployment, and its model, that a command had brought before a crash; None where nothing.

        Also one that it had given up. Carried out once more, it would bring another model now.
        """
        for row in await self._store.deployments(scenario, limit=_LOG_ROWS):
            if row.by == by or (row.state == "failed" and was_given_up_by(by, row.detail)):
                return row, await self._registry.get(row.model_id)
        return None

    async def end_of(self, row: Deployment, model: Model, *, by: str) -> Applied:
        """Carry on what `begun_by` found, where a crash interrupted it, and say what came of it.

        Raises `ApplyFailed`; `NoPrevious` for one that was given up and before which none was live.
        """
        if row.state == "started":
            await self.reconcile(row.scenario, model.kind)
            rows = await self._store.deployments(row.scenario, kind=model.kind, limit=_LOG_ROWS)
            row = next(one for one in rows if one.deployment_id == row.deployment_id)
        if row.by != by:
            before = None if row.previous_model_id is None else await self._registry.get(row.previous_model_id)
            return _went_back(row, model, before)
        if row.state != "verified":
            raise ApplyFailed(row.detail)
        return Applied(row.model_id, row.previous_model_id, row.deployment_id, model.kind, row.detail)

    async def rollback(
        self, scenario: str, *, by: str, kind: ModelKind | None = None, to: Model | None = None
    ) -> Applied:
        """Go back to the model that was live before, or to an earlier one. Raises `NoPrevious`, `ApplyFailed`.

        Without `kind` and `to`: of the kind that was changed last. An adapter that is still in its health window is
        given up by it: what was live before is live again, and nothing earlier.
        """
        kind = to.kind if to is not None else kind or await self.changed_last(scenario)
        if to is None and kind == "lora" and (back := await self._give_up(scenario, by)) is not None:
            return back
        async with self._turns[scenario, kind]:
            ids = await self.history(scenario, kind)
            earlier = ids[1:]
            target = to.model_id if to is not None else (earlier[0] if earlier else None)
            if target is None or target not in earlier:
                raise NoPrevious(await self._why_no_earlier(scenario, kind, to))
            model = await self._registry.get(target)
            return await self._deploy(self._new(model, ids[0], "rollback", by=by, forced=False), model)

    async def _why_no_earlier(self, scenario: str, kind: ModelKind, to: Model | None) -> str:
        wanted = "to go back to" if to is None else to.model_id
        cure = f"see: swarm-worker models history --scenario {scenario}"
        for other in self._applicators:
            if to is None and other != kind and len(await self.history(scenario, other)) > 1:
                cure = f"an earlier {_NOUN[other]} there is, it comes back with: --kind {other}"
        return f"scenario {scenario} has no earlier {_NOUN[kind]} {wanted} (kind {kind}); {cure}"

    async def _give_up(self, scenario: str, by: str) -> Applied | None:
        watched = None if self._health_window is None else self._health_window.give_up(scenario, by)
        if watched is None:
            return None
        # Until its way back is gone. Not until the turn is free: another apply may wait for that, and watch for long.
        ended = self._given_up.setdefault(scenario, asyncio.get_running_loop().create_future())
        row, restored = await asyncio.shield(ended)
        return _went_back(row, watched, restored)

    async def changed_last(self, scenario: str) -> ModelKind:
        """The kind that a rollback means which names none; an adapter in its health window is being changed now."""
        if self._health_window is not None and self._health_window.watches(scenario):
            return "lora"
        for row in await self._store.deployments(scenario, limit=_LOG_ROWS):
            if row.state == "verified":
                return (await self._registry.get(row.model_id)).kind
        return "offline"

    async def history(self, scenario: str, kind: ModelKind) -> list[str]:
        """Ids of models of one kind, the live one first, then those a rollback may bring back."""
        rows = await self._store.deployments(scenario, kind=kind, limit=_LOG_ROWS)
        return live_models(rows, depth=self._max_history)

    async def retire(self, scenario: str, kind: ModelKind) -> None:
        """Drop the files of models beyond those that are live, may be rolled back to, or are among the newest."""
        keep = await self.history(scenario, kind)
        await self._registry.retire(scenario, kind, keep=keep, newest=self._max_history)

    async def reconcile(self, scenario: str, kind: ModelKind) -> bool:
        """Carry on what a crash interrupted, and serve the live model again where another is served.

        False where what should be live is not served: its server is away, or refuses it.
        """
        async with self._turns[scenario, kind]:
            rows = await self._store.deployments(scenario, kind=kind, limit=_LOG_ROWS)
            for deployment in unfinished(rows):
                log.warning("deployment_resumed", scenario=scenario, deployment_id=deployment.deployment_id)
                model = await self._registry.get(deployment.model_id)
                try:
                    if (later := ended_after(deployment, rows)) is not None:
                        await self._supersede(deployment, model, later)
                    else:
                        await self._deploy(deployment, model)
                except DataRefused as error:  # another worker had only been frozen, and has ended it since we looked
                    log.warning("resumed_deployment_had_ended", scenario=scenario, error=str(error))
                except ApplyFailed as error:  # the row, the event and the way back are done
                    log.error("resumed_deployment_failed", scenario=scenario, error=str(error))  # noqa: TRY400 - no trace
            live = await self._registry.champion(scenario, kind)
            if live is None:
                self._unserved.pop((scenario, kind), None)
                return True
            applicator = self._applicator(kind)
            try:
                with _faults_as_failures(applicator):
                    served = await applicator.served(scenario)
                if served != live.sha256:
                    log.warning("served_model_is_not_the_live_one", scenario=scenario, model_id=live.model_id)
                    self._unserved[scenario, kind] = (
                        f"{applicator.target(scenario)} was seen to serve {served or 'no model'}; "
                        "it is being brought there again"
                    )
                    await self._bring_again(live)
            except ApplyFailed as error:
                self._unserved[scenario, kind] = str(error)
                self.stats.failed += 1
                log.error("live_model_not_served", scenario=scenario, kind=kind, error=str(error))  # noqa: TRY400 - no trace
                return False
            self._unserved.pop((scenario, kind), None)
            return True

    @property
    def kinds(self) -> list[ModelKind]:
        """What this worker serves."""
        return list(self._applicators)

    def _new(
        self, model: Model, previous: str | None, action: Literal["apply", "rollback"], *, by: str, forced: bool
    ) -> Deployment:
        applicator = self._applicator(model.kind)
        return Deployment(
            deployment_id=self._new_id(), scenario=model.scenario, model_id=model.model_id, previous_model_id=previous,
            action=action, applicator=applicator.name, target=applicator.target(model.scenario),
            state="started", by=by, forced=forced, at_ms=self._clock.now_ms(),
        )  # fmt: skip

    def _applicator(self, kind: ModelKind) -> Applicator:
        """`ApplyFailed` where this worker serves none of this kind: nothing of it was changed."""
        if kind not in self._applicators:
            raise ApplyFailed(
                f"this worker serves no {kind} models; set SWARM_PROCESSOR_MODE to {kind} or full, and start it again"
            )
        return self._applicators[kind]

    async def _deploy(self, started: Deployment, model: Model) -> Applied:
        """Carry a deployment from `started` to its end. Raises `ApplyFailed` once the way back is gone.

        And `EndNotStored`.
        """
        await self._while_store_is_away(_PATIENCE_BEFORE)(self._write, started)
        crash.point("apply_started")
        try:
            detail = await self._bring(model)
            # A rollback is not watched: what it goes back to was, and it must not take long.
            if self._health_window is not None and model.kind == "lora" and started.action == "apply":
                applicator = self._applicator(model.kind)
                with _faults_as_failures(applicator):
                    await self._health_window.watch(applicator, model)
            endpoint = await self._endpoint(model)
        except ApplyFailed as error:
            await self._fail(started, model, str(error))
            raise
        crash.point("apply_brought")
        verified = await self._end(self._verify, started, model, detail, endpoint)
        self._unserved.pop((model.scenario, model.kind), None)
        crash.point("apply_committed")
        self._on_event()
        if started.action == "apply":
            self.stats.applied += 1
        else:
            self.stats.rolled_back += 1
        log.info(
            "model_live", scenario=model.scenario, kind=model.kind, action=started.action, model_id=model.model_id,
            version=model.version, previous=started.previous_model_id, by=started.by, forced=started.forced,
        )  # fmt: skip
        try:
            await self.retire(model.scenario, model.kind)
        except (StoreError, OSError) as error:  # it is live; the next one's end retires what was left
            log.warning("old_models_not_removed", scenario=model.scenario, error=str(error))
        return Applied(model.model_id, started.previous_model_id, started.deployment_id, model.kind, verified.detail)

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
            ids = await self.history(model.scenario, model.kind)
            before = ids[ids.index(model.model_id) + 1 :] if model.model_id in ids else []
            aliases[previous] = before[0] if before else None
            events = [self._announcer.rolled_back(verified, model, reason="rollback", endpoint=endpoint, now_ms=now_ms)]
        await self._write(verified, aliases, events)
        return verified

    async def _bring(self, model: Model) -> str:
        """Apply, then look at what is really served (a server may keep an older adapter and say 200)."""
        applicator = self._applicator(model.kind)
        with _faults_as_failures(applicator):
            content = await self._registry.read(model)
            detail = await applicator.apply(model, content)
            served = await applicator.served(model.scenario)
        if served != model.sha256:
            raise ApplyFailed(
                f"{applicator.target(model.scenario)} serves {served or 'no model'}, not {model.sha256} "
                f"(version {model.version}); the model before it is served again"
            )
        return detail or ""

    async def _bring_again(self, live: Model) -> None:
        """`_bring` what was lost; where another server has it now (`blue_green`), those who follow events are told."""
        before = await self._endpoint(live)
        detail = await self._bring(live)
        endpoint = await self._endpoint(live)
        if endpoint == before:
            return
        moved = self._new(live, None, "apply", by="worker", forced=False)
        moved = replace(moved, state="verified", detail=detail, target=_target(moved, endpoint))
        event = self._announcer.applied(moved, live, endpoint=endpoint, now_ms=moved.at_ms)
        await self._while_store_is_away(_PATIENCE_BEFORE)(self._write, moved, None, [event])
        self._on_event()

    async def _endpoint(self, model: Model) -> Endpoint | None:
        """Whom nodes ask for an adapter; None for a model of another kind. Raises `ApplyFailed`."""
        with _faults_as_failures(self._applicator(model.kind)):
            return await asyncio.to_thread(self._endpoint_of, model) if model.kind == "lora" else None

    async def _fail(self, started: Deployment, model: Model, reason: str) -> None:
        """Put back what was live, and say so in row and events. Raises `EndNotStored`."""
        self.stats.failed += 1
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

    async def _go_back(self, started: Deployment, model: Model, reason: str) -> tuple[Deployment, Model | None]:
        """The row's end, and what is served again."""
        live = await self._end(self._registry.champion, started.scenario, model.kind)
        detail = reason
        restored: Model | None = None
        endpoint: Endpoint | None = None
        try:
            if live is None:
                applicator = self._applicator(model.kind)
                with _faults_as_failures(applicator):
                    await applicator.withdraw(started.scenario)
            else:
                await self._bring(live)
                endpoint = await self._endpoint(live)
                restored = live
        except ApplyFailed as error:
            detail = f"{reason}; {_NO_WAY_BACK}: {error}"
            if live is not None:
                self._unserved[started.scenario, model.kind] = str(error)
        now_ms = self._clock.now_ms()
        failed = replace(started, state="failed", at_ms=now_ms, detail=detail)
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
        self.stats.failed += 1
        log.warning("deployment_superseded", scenario=started.scenario, deployment_id=started.deployment_id)

    async def _write(
        self,
        deployment: Deployment,
        aliases: Mapping[str, str | None] | None = None,
        events: Sequence[OutboxEvent] = (),
    ) -> None:
        """One transaction."""
        await self._store.deploy(deployment, aliases=aliases or {}, events=events)

    async def _end(self, end: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read and write what ends a deployment, as soon as the store is there. Raises `EndNotStored`."""
        try:
            ended: T = await self._while_store_is_away(_PATIENCE_AFTER)(end, *args, **kwargs)
        except StoreUnavailable as error:
            raise EndNotStored(f"what is served has changed, and the store took no word of it: {error}") from error
        return ended

    def _while_store_is_away(self, seconds: float) -> AsyncRetrying:
        return AsyncRetrying(
            stop=after(self._clock, seconds),
            wait=wait_exponential(multiplier=0.2, max=5),
            retry=retry_if_exception_type(StoreUnavailable),
            reraise=True,
        )

    def _skip(self, model: Model, reason: str) -> ApplySkipped:
        self.stats.skipped += 1
        log.info("apply_skipped", scenario=model.scenario, model_id=model.model_id, reason=reason)
        return ApplySkipped(model.model_id, reason)


@contextmanager
def _faults_as_failures(applicator: Applicator) -> Iterator[None]:
    """A fault of an applicator's own ends a deployment as a refusal does: left open, it went live later by itself."""
    try:
        yield
    except ApplyFailed:
        raise
    except Exception as fault:
        log.exception("applicator_broke", applicator=applicator.name)
        raise ApplyFailed(f"{applicator.name} broke: {type(fault).__name__}: {fault}; see the worker's log") from fault


def _went_back(given_up: Deployment, model: Model, restored: Model | None) -> Applied:
    """What a rollback brought that gave an adapter up in its health window. Raises `NoPrevious`, `ApplyFailed`."""
    if _NO_WAY_BACK in given_up.detail:
        raise ApplyFailed(given_up.detail)
    if restored is None:
        raise NoPrevious(f"version {model.version} of {model.scenario} was given up; no adapter was live before it")
    return Applied(restored.model_id, model.model_id, given_up.deployment_id, model.kind, given_up.detail)


def _target(deployment: Deployment, endpoint: Endpoint | None) -> str:
    """Where it is served now that it is: an applicator may have several servers, and knows before only which."""
    return deployment.target if endpoint is None else f"{endpoint.url} as {endpoint.model}"


def _command(model: Model) -> str:
    return f"swarm-worker apply --scenario {model.scenario} --model {model.version}"
