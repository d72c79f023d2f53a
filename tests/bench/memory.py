"""Resident memory while a long queue is worked off: its peak, and how it grows with what was stored."""

from __future__ import annotations

from tests.bench.broker import Queues
from tests.bench.contestants import WORKER
from tests.bench.messages import bodies
from tests.bench.race import run
from tests.bench.report import Emit

_PER_MESSAGE = 100
_MOST_MB = 300
#: Records until SQLite's page cache of 64 MB is full; growth is measured from there, or over the last half.
_WARM_UP = 300_000


async def case(queues: Queues, emit: Emit, records: int) -> None:
    """So many records wait when the worker starts."""
    messages = records // _PER_MESSAGE
    figures = await run(WORKER, queues, bodies(messages, _PER_MESSAGE), messages, _PER_MESSAGE)
    warm = min(_WARM_UP, records // 2)
    peak = max(megabytes for _, megabytes in figures.memory)
    line = {
        "bench": "memory",
        "case": f"{records:,} records waiting",
        "records_per_second": round(figures.records_per_second),
        "peak_mb": round(peak, 1),
        "mb_per_100k_records": round(slope([point for point in figures.memory if point[0] >= warm]) * 100_000, 2),
        "wanted": f"flat, < {_MOST_MB} MB",
        "kept": peak < _MOST_MB,
    }
    emit(line)


def slope(points: list[tuple[int, float]]) -> float:
    """Of the line through the points with the least squares; 0.0 where there are too few."""
    count = len(points)
    if count < 3:
        return 0.0
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
