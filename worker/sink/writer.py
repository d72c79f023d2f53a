"""Writing: one group goes into the store, whatever it takes. Bad data is singled out, a bad store is waited for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from worker.clock import Clock
from worker.errors import DataRefused, StoreUnavailable, WorkerError
from worker.sink.batcher import Item
from worker.sink.judge import kept_headers
from worker.sink.stats import SinkStats
from worker.store.port import IncomingReject, Quarantined, RecordLog, Stored
from worker.wire.reasons import MAX_DETAIL, Reason

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """How a group is held while the store is down: waits double from `first` to `most` seconds, for `limit` in all.

    Each wait is shortened by up to a half at random, so that several workers on one store do not come back as one.
    The limit is below the broker's consumer timeout of half an hour.
    """

    first: float = 0.1
    most: float = 10.0
    limit: float = 600.0


async def room_enough() -> None:
    """Nobody bounds the quarantine."""


def _ignore(_: str | None = None) -> None:
    """Nobody asked to be told."""


class GroupWriter:
    """Stores groups, one call at a time.

    `on_store_down(reason)` is called at the first failure and whenever the reason changes, `on_store_up()` when the
    store takes writes again. Both only flip a switch: they run between two attempts. `make_room` is awaited before the
    next group once something was quarantined; it raises `StoreUnavailable` where it finds no room.
    """

    def __init__(
        self,
        store: RecordLog,
        clock: Clock,
        stats: SinkStats,
        *,
        hold: Hold | None = None,
        on_store_down: Callable[[str], None] = _ignore,
        on_store_up: Callable[[], None] = _ignore,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
        make_room: Callable[[], Awaitable[None]] = room_enough,
    ) -> None:
        self._store = store
        self._clock = clock
        self._stats = stats
        self._hold = hold or Hold()
        self._on_store_down = on_store_down
        self._on_store_up = on_store_up
        self._pause = pause
        self._chance = chance
        self._make_room = make_room
        self._quarantine_grew = True  # as far as we know: it may be full from an earlier life

    async def write(self, items: Sequence[Item]) -> None:
        """Give each item its verdict; None stays where the delivery went stale during a wait.

        Raises `StoreUnavailable` after `Hold.limit` seconds: nothing of what had no verdict by then is stored, and
        the broker will deliver it again once its channel is closed. Other errors of the store (`StoreCorrupt`) pass.
        """
        down_since: float | None = None
        wait = self._hold.first
        # Also once all of it went stale: nothing is delivered while the store is down, so nobody else would find out
        # that it is up again. An empty transaction tells as much as a full one.
        while items or down_since is not None:
            try:
                await self._ingest(items)
            except StoreUnavailable as error:
                now = self._clock.monotonic()
                down_since = now if down_since is None else down_since
                self._down(str(error))
                if now - down_since >= self._hold.limit:
                    raise
                await self._pause(wait * (1 - self._chance() / 2))
                wait = min(wait * 2, self._hold.most)
                # What went stale meanwhile will come again; its copy is stored then.
                items = [item for item in items if not item.delivery.stale]
            except DataRefused as error:
                return await self._split(items, Reason.STORE_REFUSED, error)
            except WorkerError:
                raise
            except Exception as error:  # noqa: BLE001  a bug in the store over one message must not stop the others
                return await self._split(items, Reason.UNEXPECTED, error)
            else:
                self._up()
                return None
        return None

    async def _ingest(self, items: Sequence[Item]) -> None:
        if self._quarantine_grew:
            await self._bound_quarantine()
        began = self._clock.monotonic()
        verdicts = await self._store.ingest([item.incoming for item in items])
        self._stats.commit_seconds += self._clock.monotonic() - began
        self._stats.groups += 1
        for item, verdict in zip(items, verdicts, strict=True):
            item.verdict = verdict
            if isinstance(verdict, Quarantined) or (isinstance(verdict, Stored) and verdict.conflicts):
                self._quarantine_grew = True

    async def _bound_quarantine(self) -> None:
        try:
            await self._make_room()
        except WorkerError:
            raise
        except Exception as error:  # a bug there is no fault of the messages that wait
            raise WorkerError(f"the quarantine cannot be kept within its bounds: {error!r}") from error
        self._quarantine_grew = False

    async def _split(self, items: Sequence[Item], reason: Reason, error: Exception) -> None:
        """Halve the group until the culprit stands alone, and quarantine it there."""
        if len(items) > 1:
            middle = len(items) // 2
            await self.write(items[:middle])
            await self.write(items[middle:])
            return
        item = items[0]
        if item.refused:
            raise error  # the store takes not even the quarantine entry: that is the store's fault, not the data's
        log.error("store_refused", scenario=item.incoming.scenario, reason=reason, exc_info=error)
        item.refused = True
        # Of a reject it may be the headers that the store does not take.
        headers = {} if isinstance(item.incoming, IncomingReject) else kept_headers(item.delivery)
        item.incoming = IncomingReject(
            scenario=item.incoming.scenario,
            reason=reason,
            detail=f"the store raised {type(error).__name__}: {error}"[:MAX_DETAIL],
            body=item.incoming.body,
            received_at_ms=item.incoming.received_at_ms,
            headers=headers,
        )
        await self.write(items)

    def _down(self, reason: str) -> None:
        self._stats.store_failures += 1
        if self._stats.store_down_reason != reason:
            self._stats.store_down_reason = reason
            log.error("store_down", reason=reason)
            self._on_store_down(reason)

    def _up(self) -> None:
        if self._stats.store_down_reason is not None:
            self._stats.store_down_reason = None
            log.info("store_up")
            self._on_store_up()
