"""Runs as rows, owned under a lease whose epoch fences zombies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

from msgspec import Struct

from worker.store.port.facts import TriggerState
from worker.store.port.models import Model, ModelKind
from worker.store.port.outbox import OutboxEvent

RunState: TypeAlias = Literal["queued", "running", "trained", "failed", "skipped"]


class Run(Struct, kw_only=True):
    """One training, from the moment somebody or something asked for it."""

    run_id: str
    scenario: str
    kind: ModelKind
    state: RunState
    trigger: dict[str, Any]  # {"kind": "...", "values": {...}, "by": "..."}
    window_lo: int  # first batch_no not seen by the run before
    window_hi: int
    requested_at_ms: int
    apply: bool | None = None  # None: as apply_mode says; the command may say otherwise
    nonce: str = ""  # command id of a forced run, so that one window can be trained again on purpose
    attempts: int = 0
    epoch: int = 0  # of the lease that owns it: a zombie's is older
    owner: str | None = None
    started_at_ms: int | None = None
    ended_at_ms: int | None = None
    progress: float = 0.0  # 0-1
    progress_text: str = ""
    reason: str | None = None  # of a failed or skipped one
    model_id: str | None = None


class RunLedger(Protocol):
    """Runs as rows, owned under a lease whose epoch fences zombies."""

    async def acquire_lease(self, name: str, owner: str, *, now_ms: int, ttl_ms: int) -> int | None:
        """The epoch under which `owner` holds the lease now, or None while somebody else does."""
        ...

    async def renew_lease(self, name: str, owner: str, epoch: int, *, now_ms: int, ttl_ms: int) -> bool:
        """Prolong it; False where it is no longer held under this epoch."""
        ...

    async def release_lease(self, name: str, owner: str, epoch: int) -> None:
        """Give it back; nothing happens where it is not held."""
        ...

    async def end_leases_of_the_dead(self, owner: str) -> int:
        """End all leases but those of `owner`, who has just opened the store, where that proves their holders dead.

        A lock on the store is such a proof; a store that many open at once has none, and lets leases run out. What is
        ended can be acquired at once, under the next epoch: nothing about fencing changes. Returns how many were ended.
        """
        ...

    async def create_run(self, run: Run) -> Run:
        """Store a queued run; one of the same `run_id`, or window and nonce, comes back unchanged instead."""
        ...

    async def start_run(self, run_id: str, *, owner: str, lease: str, epoch: int, now_ms: int) -> Run:
        """Queued (or running under an older epoch) -> running; `LeaseLost` where `epoch` is not the lease's own."""
        ...

    async def progress_run(self, run_id: str, epoch: int, progress: float, text: str) -> None:
        """What a running run has done (0-1) and is doing."""
        ...

    async def finish_run(
        self,
        run: Run,
        *,
        lease: str,
        model: Model | None,
        trigger_state: TriggerState | None,
        events: Sequence[OutboxEvent],
    ) -> None:
        """End a run, register its model (its kind's candidate), move the watermark, queue events: one transaction.

        Raises `LeaseLost`, without any effect, where `run.epoch` is not the epoch of `lease` or the run is not running.
        """
        ...

    async def requeue_run(self, run_id: str, *, epoch: int, reason: str) -> None:
        """Running -> queued, for a run that a shutdown interrupted."""
        ...

    async def forget_fruitless_runs(self, before_ms: int, limit: int) -> int:
        """Forget at most so many that failed or were skipped before this time, without a model; how many there were."""
        ...

    async def run(self, run_id: str) -> Run | None:
        """One run."""
        ...

    async def runs(
        self, scenario: str | None = None, *, states: Sequence[RunState] = (), limit: int = 100
    ) -> list[Run]:
        """Newest first."""
        ...
