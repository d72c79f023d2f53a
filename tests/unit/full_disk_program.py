"""Fills a store up to a limit on file size, lifts the limit, stores one more; prints what became of it."""

from __future__ import annotations

import asyncio
import resource
import sys
from pathlib import Path

from worker.clock import SystemClock
from worker.errors import StoreUnavailable
from worker.store import open_store
from worker.store.port import IncomingBatch, Store
from worker.wire.records import ActionRecord, Batch, BatchIdentity


async def put(store: Store, number: int) -> None:
    """Store one batch of about 20 KB."""
    record = ActionRecord(f"t{number}", 1, 1, "look", number, output="x" * 20_000)
    batch = Batch(BatchIdentity("node", 0, number, None), b"h" * 32, [record], None, 0)
    await store.ingest([IncomingBatch(scenario="S", batch=batch, body=b"", received_at_ms=1)])


async def main(path: Path) -> None:
    """Fill, fail, lift, go on."""
    store = open_store(f"sqlite://{path}", SystemClock())
    await store.open()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
    stored = 0
    try:
        while stored < 1_000:
            await put(store, stored)
            stored += 1
    except StoreUnavailable as error:
        outcome = type(error).__name__
    else:
        outcome = "nothing"
    kept = (await store.facts("S")).records
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await put(store, stored)
    more = (await store.facts("S")).records - kept
    await store.close()
    sys.stdout.write(f"{outcome} stored {kept} of {stored}, then {more} more\n")


if __name__ == "__main__":
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(Path(sys.argv[1])))
