"""How fast records messages are decoded on one core: `python tests/bench/bench_codec.py`, one JSON line a case."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from worker.wire.codec import decode_batch
from worker.wire.records import Batch

RECORDS = 100


def _action(index: int) -> dict[str, Any]:
    """A record of about 400 bytes."""
    return {
        "type": "action", "task_id": f"task-{index // 10:08d}", "tick": 1000 + index, "worker_id": index % 8,
        "action": "book_reservation", "event_id": (1000 + index) << 24, "session_id": "session-2026-02-01-0007",
        "target": "reservation/HATHAT", "success": True, "duration_ms": 137, "timestamp_ms": 1_769_900_000_000 + index,
        "kpi": 0.25, "discoveries": 1, "output": "Reserved seat 12A on flight HAT136 for the customer, 1 bag",
        "selection_logic": "ucb1", "from_guidance": False, "previous_action": "search_direct_flight",
    }  # fmt: skip


def _bodies(records: list[dict[str, Any]]) -> list[bytes]:
    head = {"schema_version": 1, "producer_id": "node-7", "producer_epoch": 0}
    return [
        json.dumps({**head, "batch_seq": seq, "records": records}, separators=(",", ":")).encode() for seq in range(50)
    ]


def _rate(bodies: list[bytes], seconds: float) -> float:
    """Records per second, best of five rounds."""
    best = 0.0
    for _ in range(5):
        rounds, started = 0, time.perf_counter()
        while (took := time.perf_counter() - started) < seconds / 5:
            for body in bodies:
                assert isinstance(decode_batch(body, scenario="bench"), Batch)
            rounds += 1
        best = max(best, rounds * len(bodies) * RECORDS / took)
    return best


def main() -> None:
    """The cases: what our client writes, with explicit nulls, with an unknown field, and as serde writes it."""
    plain = [_action(index) for index in range(RECORDS)]
    cases = {
        "fast": plain,
        "nulls": [{**record, "lora": None, "error": None} for record in plain],
        "unknown_field": [{**record, "trace_id": "0af7651916cd43dd"} for record in plain],
        "serde": [{"Action": {k: v for k, v in record.items() if k != "type"} | {"lora": None}} for record in plain],
    }
    for case, records in cases.items():
        bodies = _bodies(records)
        rate = _rate(bodies, 3.0)
        line = {"bench": "codec", "case": case, "bytes_per_record": len(bodies[0]) // RECORDS}
        sys.stdout.write(json.dumps({**line, "records_per_second": round(rate)}) + "\n")


if __name__ == "__main__":
    main()
