"""`make soak SECONDS=600 SEED=1`: a worker under load, a fault by chance every 10 s, and all invariants at the end.

One line a fault, as it goes. The same seed gives the same faults in the same order. Status 1 where something is lost,
doubled, or grew; what the worker left is kept then, and the last lines say what to look at.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.invariants import Report
from tests.faults.mortal_broker import mortal_broker
from tests.faults.soak.soak import Place, soak
from tests.faults.watch import Watch
from tests.integration.worker_process import CommandLine
from worker.broker.local import local_broker
from worker.broker.private_server import find_server


def show(report: Report, watch: Watch, faults: Counter[str]) -> None:
    """The table at the end."""
    table = Table("what", "figure", box=None, title="All invariants hold", title_style="italic")
    rows: dict[str, object] = {f"faults: {name}": number for name, number in sorted(faults.items())}
    rows |= {
        "batches confirmed": report.confirmed, "records stored": report.stored * 5, "lost, doubled, unexpected": 0,
        "duplicate batches": report.duplicate_batches, "duplicate records": report.duplicate_records,
        "redelivered": watch.redelivered, "models trained": report.trained, "RSS at most, MB": f"{watch.rss_mb:.0f}",
        "descriptors at most": watch.descriptors, "threads at most": watch.threads,
        "WAL at most, MB": f"{watch.wal_mb:.1f}",
    }  # fmt: skip
    for what, figure in rows.items():
        table.add_row(what, str(figure))
    Console().print(table)


async def _main(seconds: float, seed: int, directory: Path) -> None:
    def say(text: str) -> None:
        print(text, flush=True)  # noqa: T201 - a program for a terminal

    commands = CommandLine(directory)
    try:
        if find_server() is None or "SWARM_AMQP_URL" in os.environ:
            with local_broker() as found:
                say(f"broker: {found.found}; it is not ours alone, so nothing is done to it")
                place = Place(found.url, directory, commands)
                show(*await soak(place, seconds=seconds, seed=seed, say=say))
            return
        async with mortal_broker() as broker:

            async def kill() -> None:
                await broker.kill()
                await broker.start()

            place = Place(broker.url, directory, commands, control=broker.control, kill_broker=kill)
            show(*await soak(place, seconds=seconds, seed=seed, say=say))
    finally:
        commands.close()


def main() -> int:
    """Parse, find or start a broker, soak, show."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    # What the nodes' client library says of connections that are cut on purpose.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    directory = Path(tempfile.mkdtemp(prefix="swarm-soak-"))
    try:
        asyncio.run(_main(options.seconds, options.seed, directory))
    except AssertionError as error:
        told = (
            f"\nan invariant does not hold: {error}\n"
            f"\nStore, models and worker.log are in {directory}/worker. The same faults in the same order:\n"
            f"    make soak SECONDS={options.seconds:g} SEED={options.seed}\n"
        )
        sys.stderr.write(told)
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
