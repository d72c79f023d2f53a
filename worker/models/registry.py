"""The catalogue of models: files and rows together, so that every row has its file and no file lacks its row."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import structlog

from worker.errors import NotFound
from worker.learning.validation import Verdict
from worker.models.files import Manifest, ModelFiles
from worker.store.port import Model, ModelKind, ModelRegistry, Run, RunLedger, alias_of

log = structlog.get_logger(__name__)

_KINDS: tuple[ModelKind, ...] = ("offline", "lora")
#: Rows read to find the versions that have files; older versions lost theirs to retention long before.
_ROWS = 10_000


def model_id_of(scenario: str, kind: str, sha256: str) -> str:
    """The content hash that names a model, 32 hex digits; two scenarios never share one."""
    return hashlib.sha256(f"{scenario}\0{kind}\0{sha256}".encode()).hexdigest()[:32]


class ModelsAndRuns(ModelRegistry, RunLedger, Protocol):
    """The roles of the store that the catalogue needs."""


class Registry:
    """Writes, finds, reads and retires models."""

    def __init__(self, store: ModelsAndRuns, files: ModelFiles) -> None:
        self._store = store
        self._files = files

    async def prepare(
        self,
        run: Run,
        content: bytes,
        *,
        lineage: Mapping[str, Any],
        metrics: Mapping[str, Any],
        verdict: Verdict,
        now_ms: int,
        adapter: Path | None = None,
        data_manifest: Path | None = None,
    ) -> Model:
        """Put the run's model on disk as the next version; the row is written by `finish_run`, with the run's own.

        `content` is its model.json. Of kind `lora`, `adapter` is the directory of the files that it names, and
        `data_manifest`, where there is one, says what it was trained on.
        Returns a model that is registered already where the content is the same. Raises `ModelUnreadable` or ValueError
        where the content is no model or a file is not what it says, OSError.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        model_id = model_id_of(run.scenario, run.kind, sha256)
        known = await self._store.model(model_id)
        if known is not None:
            return self._files.located(known)
        newest = await self._store.models(run.scenario, limit=1)
        version = newest[0].version + 1 if newest else 1
        parent = await self.newest(run.scenario, run.kind)
        manifest = Manifest(
            model_id=model_id, scenario=run.scenario, version=version, kind=run.kind, run_id=run.run_id,
            sha256=sha256, size=len(content), created_at_ms=now_ms,
        )  # fmt: skip
        await asyncio.to_thread(
            self._files.publish, manifest, content, epoch=run.epoch, adapter=adapter, data_manifest=data_manifest
        )
        return Model(
            model_id=model_id, scenario=run.scenario, version=version, kind=run.kind, run_id=run.run_id,
            created_at_ms=now_ms, uri=self._files.uri(run.scenario, version), sha256=sha256,
            lineage={**lineage, "parent": None if parent is None else parent.model_id},
            metrics=dict(metrics), gate_verdict=verdict.verdict, gate_reasons=list(verdict.reasons),
        )  # fmt: skip

    async def get(self, model_id: str) -> Model:
        """A registered model; `NotFound` with how to list them."""
        model = await self._store.model(model_id)
        if model is None:
            raise NotFound(f"there is no model {model_id!r}; list them with: swarm-worker models")
        return self._files.located(model)

    async def find(self, scenario: str, name: str) -> Model:
        """A model of the scenario by id, by version number or by alias (`champion`, `lora-champion`, ...)."""
        aliases = await self._store.aliases(scenario)
        if name in aliases:
            return await self.get(aliases[name])
        if name.isdecimal() and len(name) < 10:  # noqa: PLR2004 - an id has 32 digits, a version never that many
            for model in await self._store.models(scenario, limit=_ROWS):
                if model.version == int(name):
                    return self._files.located(model)
        else:
            model = await self.get(name)
            if model.scenario == scenario:
                return model
        raise NotFound(f"scenario {scenario} has no model {name!r}; list them with: swarm-worker models")

    async def candidate(self, scenario: str, kind: ModelKind | None = None) -> Model:
        """The newest model that waits to be applied, of any kind or of one; `NotFound` with how to list them."""
        aliases = await self._store.aliases(scenario)
        kinds = _KINDS if kind is None else (kind,)
        waiting = [aliases[name] for one in kinds if (name := alias_of("candidate", one)) in aliases]
        if not waiting:
            of_kind = "" if kind is None else f"of kind {kind} "
            raise NotFound(
                f"scenario {scenario} has no model {of_kind}that waits to be applied; "
                "list them with: swarm-worker models"
            )
        return max([await self.get(model_id) for model_id in waiting], key=lambda model: model.version)

    async def newest(self, scenario: str, kind: ModelKind) -> Model | None:
        """The newest model of this kind, if any."""
        rows = await self._store.models(scenario, kind=kind, limit=1)
        return self._files.located(rows[0]) if rows else None

    async def champion(self, scenario: str, kind: ModelKind) -> Model | None:
        """The model of this kind that is live, if any."""
        model_id = (await self._store.aliases(scenario)).get(alias_of("champion", kind))
        return None if model_id is None else await self.get(model_id)

    async def read(self, model: Model) -> bytes:
        """Its model.json, all its files checked against their hashes; `ApplyFailed` where one is not as registered."""
        return await asyncio.to_thread(self._files.read, model)

    async def clean_up(self, scenarios: Iterable[str]) -> None:
        """At start: drop half-written files and directories that no row knows of.

        But for the next version of a scenario that has a run: another worker may have renamed its model and not
        registered it yet. Where it never will, the model after it takes its place.
        """
        await asyncio.to_thread(self._files.clear_temporary)
        for scenario in scenarios:
            # Looked at before the rows: what comes meanwhile, while this worker is frozen, has its row by then.
            present = await asyncio.to_thread(self._files.present, scenario)
            training = await self._store.runs(scenario, states=("running",), limit=1)
            known = [model.version for model in await self._store.models(scenario, limit=_ROWS)]
            following = [max(known, default=0) + 1] if training else []
            await asyncio.to_thread(self._files.remove, scenario, set(present).difference(known, following))

    async def retire(self, scenario: str, kind: ModelKind, *, keep: Iterable[str], newest: int) -> None:
        """Remove the files of versions that nobody goes back to: not in `keep` (ids), not among the kind's newest."""
        wanted = set(keep) | set((await self._store.aliases(scenario)).values())
        rows = await self._store.models(scenario, kind=kind, limit=_ROWS)
        retired = [model.version for model in rows[newest:] if model.model_id not in wanted]
        try:
            await asyncio.to_thread(self._files.remove, scenario, retired)
        except OSError as error:  # what is live is live; the next apply tries again
            log.warning("models_not_retired", scenario=scenario, error=str(error))
