"""What is served of each kind, through its applicator: brought, looked at, watched, withdrawn. Knows no store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import structlog

from worker.errors import ApplyFailed
from worker.models.adapter import OtherBase, require_base
from worker.models.applicators.port import Applicator, OwnServerSilent
from worker.models.applicators.versions import decoded
from worker.models.health_window import HealthWindow
from worker.models.registry import Registry
from worker.store.port import Model, ModelKind
from worker.wire.served import Endpoint

log = structlog.get_logger(__name__)


class Serving:
    """For all scenarios. Every method raises `ApplyFailed`, and nothing else, where an applicator refuses or breaks."""

    def __init__(
        self,
        registry: Registry,
        applicators: Mapping[ModelKind, Applicator],
        health_window: HealthWindow,
        endpoint_of: Callable[[Model], Endpoint | None],
        base_sha256: Callable[[], str | None],
    ) -> None:
        """`applicators` of the kinds that this worker serves; `endpoint_of` and `base_sha256` look in files."""
        self._registry = registry
        self._applicators = dict(applicators)
        self._health_window = health_window
        self._endpoint_of = endpoint_of
        self._base_sha256 = base_sha256
        #: Scenarios whose server gave no answer at the last look.
        self._silent: set[str] = set()

    @property
    def kinds(self) -> list[ModelKind]:
        """What this worker serves."""
        return list(self._applicators)

    def applicator(self, kind: ModelKind) -> Applicator:
        """Of one kind; `ApplyFailed` where this worker serves none of it: nothing of it was changed."""
        if kind not in self._applicators:
            raise ApplyFailed(
                f"this worker serves no {kind} models; set SWARM_PROCESSOR_MODE to {kind} or full, and start it again"
            )
        return self._applicators[kind]

    async def bring(self, model: Model) -> str:
        """Apply, then look at what is really served (a server may keep an older adapter and say 200).

        Returns what a person should know of how that was verified. Raises `OtherBase`, and then nothing was changed.
        """
        applicator = self.applicator(model.kind)
        with _faults_as_failures(applicator):
            content = await self._registry.read(model)
            if model.kind == "lora":
                require_base(model, decoded(model, content), await asyncio.to_thread(self._base_sha256))
            detail = await applicator.apply(model, content)
            served = await applicator.served(model.scenario)
        if served != model.sha256:
            raise ApplyFailed(
                f"{applicator.target(model.scenario)} serves {served or 'no model'}, not {model.sha256} "
                f"(version {model.version})"
            )
        return detail or ""

    async def restore(self, live: Model, *, failed: Model) -> None:
        """Serve `live` again, whose place `failed` was to take.

        Where it is of another base it is not brought: it is served still, or `failed` goes and `OtherBase` comes.
        """
        try:
            await self.bring(live)
        except OtherBase:
            served = await self.served(failed.scenario, failed.kind)
            if served == live.sha256:
                return
            if served == failed.sha256:
                await self.withdraw(failed.scenario, failed.kind)
            raise

    async def watch(self, model: Model) -> None:
        """See an adapter through its health window; a model of another kind has none."""
        if model.kind == "lora":
            applicator = self.applicator(model.kind)
            with _faults_as_failures(applicator):
                await self._health_window.watch(applicator, model)

    async def withdraw(self, scenario: str, kind: ModelKind) -> None:
        """Serve no model of this kind."""
        applicator = self.applicator(kind)
        with _faults_as_failures(applicator):
            await applicator.withdraw(scenario)

    async def served(self, scenario: str, kind: ModelKind) -> str | None:
        """SHA-256 of what is served; None where it is no model.

        None too at the second look in a row at which a server of ours is silent. At the first it may only be paused,
        and to start it anew would cost its requests.
        """
        applicator = self.applicator(kind)
        silent_before = scenario in self._silent
        self._silent.discard(scenario)
        try:
            with _faults_as_failures(applicator):
                return await applicator.served(scenario)
        except OwnServerSilent as error:
            if not silent_before:
                self._silent.add(scenario)
                raise
            log.warning("server_still_silent", scenario=scenario, error=str(error))
            return None

    async def endpoint(self, model: Model) -> Endpoint | None:
        """Whom nodes ask for an adapter; None for a model of another kind."""
        with _faults_as_failures(self.applicator(model.kind)):
            return await asyncio.to_thread(self._endpoint_of, model) if model.kind == "lora" else None


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
