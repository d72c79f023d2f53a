"""Whether the store takes writes, also while nobody writes: a disk that filled up overnight shows before morning."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from worker.clock import Clock
from worker.errors import StoreError
from worker.store.port import Maintenance

log = structlog.get_logger(__name__)


class WriteWatch:
    """Probes the store when asked to look, at most every `interval` seconds, unless it is `written` to just now.

    Whoever writes finds out himself.
    """

    def __init__(self, store: Maintenance, clock: Clock, written: Callable[[], bool], *, interval: float = 5.0) -> None:
        #: Why the last probe failed; None where it did not.
        self.reason: str | None = None
        self._store = store
        self._clock = clock
        self._written = written
        self._interval = interval
        self._next = clock.monotonic()

    async def look(self) -> None:
        """One probe, where it is needed. No error of the store is raised."""
        if self._written():
            self.reason = None
            return
        if self._clock.monotonic() < self._next:
            return
        self._next = self._clock.monotonic() + self._interval
        try:
            await self._store.probe()
        except StoreError as error:
            if self.reason is None:
                log.error("store_takes_no_writes", reason=str(error))  # noqa: TRY400 - the reason says it all
            self.reason = str(error)
        else:
            self.reason = None
