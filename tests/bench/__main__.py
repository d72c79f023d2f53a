"""`python -m tests.bench [CASE ...]`: measures, prints a JSON line per case and, at the end, a table.

The broker is that of SWARM_AMQP_URL, on the same machine. Whatever else runs meanwhile shows in the figures; medians
over several rounds, and ratios within a round, bear some of that. Ends with 1 where a case is not what is wanted.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys

import structlog

from tests.bench import codec, ingest, memory, sink, store, training, training_lora, trigger
from tests.bench.broker import queues
from tests.bench.report import Report

CASES = (
    "ingest-100",
    "ingest-10",
    "ingest-1",
    "memory",
    "training",
    "training-lora",
    "trigger",
    "codec",
    "store",
    "sink",
)
MILLION = 1_000_000


async def run(report: Report, name: str, options: argparse.Namespace) -> None:
    """One case."""
    emit = report.emit
    match name:
        case "codec":
            codec.case(emit)
        case "store":
            await store.case(emit, options.component_records)
        case "sink":
            await sink.case(emit, options.component_records)
        case "trigger":
            await trigger.case(emit, MILLION)
        case _:
            async with queues() as broker:
                match name:
                    case "memory":
                        await memory.case(broker, emit, options.memory_records)
                    case "training":
                        await training.case(broker, emit, options.rounds)
                    case "training-lora":
                        await training.case(broker, emit, options.rounds, training_lora.subject())
                    case _:
                        await ingest.case(broker, emit, int(name.removeprefix("ingest-")), options.rounds)


def main() -> None:
    """All cases, or those that are named."""
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"which: {', '.join(CASES)}; all where none is named")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--memory-records", type=int, default=MILLION // 2, help="records that wait in the queue")
    parser.add_argument("--component-records", type=int, default=100_000, help="records for store and sink")
    options = parser.parse_args()
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    report = Report()
    try:
        for name in options.cases or CASES:
            asyncio.run(run(report, name, options))
    finally:
        report.show()
    if report.missed:
        sys.exit("\n".join(["missed:", *report.missed]))


if __name__ == "__main__":
    main()
