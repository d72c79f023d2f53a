"""The publisher for programs without an event loop: the same one, on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from worker.client.actions import EventSource
from worker.client.connect import connect_publisher
from worker.client.learning_events import Statistics
from worker.client.publisher import RecordPublisher, RecordPublisherStats
from worker.errors import PublishFailed
from worker.wire.records import Outcome, Record

_Result = TypeVar("_Result")


class SyncPublisher:
    """`with SyncPublisher(url, scenario=..., producer_id=..., state_dir=...) as publisher: publisher.publish(...)`.

    Each call returns when the asynchronous one would, and means and raises the same (see `client.publisher`). Calls may
    come from any thread. Further options are those of `connect_publisher`.
    """

    def __init__(self, amqp_url: str, *, scenario: str, producer_id: str, state_dir: Path, **options: Any) -> None:
        self._connecting: AbstractAsyncContextManager[RecordPublisher] = connect_publisher(
            amqp_url, scenario=scenario, producer_id=producer_id, state_dir=state_dir, **options
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sync-publisher", daemon=True)
        self._publisher: RecordPublisher | None = None

    def __enter__(self) -> Self:
        """Connect. Raises `BrokerUnreachable`, `BrokerRefused`, `ConfigurationError`."""
        self._thread.start()
        try:
            self._publisher = self._call(self._connecting.__aenter__())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Flush and disconnect; what the broker did not confirm in time waits in the spool for the next start."""
        try:
            self._call(self._connecting.__aexit__(kind, error, traceback))
        finally:
            self._stop()

    @property
    def stats(self) -> RecordPublisherStats:
        """Counters, as they are now."""
        return self._opened.stats

    def publish(self, item: Record | EventSource) -> None:
        """See `RecordPublisher.publish`."""
        self._call(self._opened.publish(item))

    def flush(self, timeout: float | None = None) -> None:
        """See `RecordPublisher.flush`; TimeoutError after `timeout` seconds, with everything still being sent."""
        self._call(self._flush(timeout))

    def end_session(
        self,
        session_id: str,
        *,
        outcome: Outcome,
        total_ticks: int,
        total_actions: int,
        stats: Statistics | None = None,
        task_ids: Sequence[str] | None = None,
        **fields: Any,
    ) -> None:
        """See `RecordPublisher.end_session`; `fields` are its further ones."""
        self._call(
            self._opened.end_session(
                session_id,
                outcome=outcome,
                total_ticks=total_ticks,
                total_actions=total_actions,
                stats=stats,
                task_ids=task_ids,
                **fields,
            )
        )

    @property
    def _opened(self) -> RecordPublisher:
        if self._publisher is None:
            raise PublishFailed("this publisher is not open; use it in a with statement", reason="closed")
        return self._publisher

    async def _flush(self, timeout: float | None) -> None:
        async with asyncio.timeout(timeout):
            await self._opened.flush()

    def _call(self, call: Coroutine[Any, Any, _Result]) -> _Result:
        if not self._loop.is_running() and not self._thread.is_alive():
            call.close()
            raise PublishFailed("this publisher is closed", reason="closed")
        try:
            return asyncio.run_coroutine_threadsafe(call, self._loop).result()
        except CancelledError:
            raise PublishFailed("this publisher was closed meanwhile", reason="closed") from None

    def _stop(self) -> None:
        self._publisher = None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
