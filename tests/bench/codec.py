"""How fast records messages are decoded on one core: what our client writes, and what the careful road has to take."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec

from tests.bench.messages import action
from tests.bench.report import Emit
from worker.wire.codec import decode_batch
from worker.wire.records import Batch

RECORDS = 100
_ROUNDS, _SECONDS = 5, 0.5


def case(emit: Emit) -> None:
    """The cases: what our client writes, with explicit nulls, with an unknown field, and as serde writes it."""
    plain: list[dict[str, Any]] = [msgspec.to_builtins(action(index)) for index in range(RECORDS)]
    cases = {
        "fast": plain,
        "nulls": [{**record, "lora": None, "error": None} for record in plain],
        "unknown field": [{**record, "trace_id": "0af7651916cd43dd"} for record in plain],
        "serde": [{"Action": {k: v for k, v in record.items() if k != "type"} | {"lora": None}} for record in plain],
    }
    for name, records in cases.items():
        bodies = _bodies(records)
        rate = round(_rate(bodies))
        emit(
            {
                "bench": "codec", "case": name, "records_per_second": rate,
                "bytes_per_record": len(bodies[0]) // RECORDS,
            }
        )  # fmt: skip


def _bodies(records: list[dict[str, Any]]) -> list[bytes]:
    head = {"schema_version": 1, "producer_id": "node-7", "producer_epoch": 0}
    return [
        json.dumps({**head, "batch_seq": seq, "records": records}, separators=(",", ":")).encode() for seq in range(50)
    ]


def _rate(bodies: list[bytes]) -> float:
    """Records per second, best of a few rounds."""
    best = 0.0
    for _ in range(_ROUNDS):
        passes, started = 0, time.perf_counter()
        while (took := time.perf_counter() - started) < _SECONDS:
            for body in bodies:
                assert isinstance(decode_batch(body, scenario="bench"), Batch)
            passes += 1
        best = max(best, passes * len(bodies) * RECORDS / took)
    return best
