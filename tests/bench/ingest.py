"""End-to-end ingest at 100, 10 and 1 records a message: the worker, the bare pipeline and FastStream, by turns.

The runs of one size follow each other as worker, bare, FastStream, worker, bare, ...: what else the machine does
meanwhile meets all three. Figures are medians over the rounds; ratios are medians of the ratios within a round.
"""

from __future__ import annotations

from tests.bench.broker import Queues
from tests.bench.contestants import BARE, FASTSTREAM, WORKER, Contestant
from tests.bench.messages import bodies
from tests.bench.race import Figures, run
from tests.bench.report import Emit, middle

#: Messages of a run, by records a message; and how many of them FastStream gets, which is slower.
_MESSAGES = {100: 3_000, 10: 12_000, 1: 12_000}
_FASTSTREAM_SHARE = {100: 3, 10: 4, 1: 6}
#: What must hold: ingest over that of the bare pipeline and of FastStream.
_WANTED = {100: {"bare": 0.75, "faststream": 2.0}, 10: {}, 1: {"faststream": 5.0}}


async def case(queues: Queues, emit: Emit, per_message: int, rounds: int) -> None:
    """One size of message."""
    texts = list(bodies(_MESSAGES[per_message], per_message))
    few = texts[: len(texts) // _FASTSTREAM_SHARE[per_message]]
    runs: dict[str, list[Figures]] = {"worker": [], "bare": [], "faststream": []}
    for _ in range(rounds):
        for contestant in (WORKER, BARE, FASTSTREAM):
            given = few if contestant is FASTSTREAM else texts
            runs[contestant.name].append(await run(contestant, queues, given, len(given), per_message))
    for contestant in (WORKER, BARE, FASTSTREAM):
        _tell(emit, contestant, runs, per_message)


def _tell(emit: Emit, contestant: Contestant, runs: dict[str, list[Figures]], per_message: int) -> None:
    figures = runs[contestant.name]
    line = {
        "bench": "ingest",
        "case": f"{contestant.name}, {per_message} a message",
        "records_per_second": round(middle([one.records_per_second for one in figures])),
        "messages_per_second": round(middle([one.messages_per_second for one in figures])),
        "cpu_us_per_record": round(middle([one.cpu_us_per_record for one in figures]), 2),
        "best_records_per_second": round(max(one.records_per_second for one in figures)),
        "rounds": len(figures),
    }
    if contestant is not WORKER:
        pairs = zip(runs["worker"], figures, strict=True)
        ratios = [ours.records_per_second / theirs.records_per_second for ours, theirs in pairs]
        line["ratio"] = ratio = round(middle(ratios), 2)
        wanted = _WANTED[per_message].get(contestant.name)
        if wanted:
            line |= {"wanted": f">= {wanted}", "kept": ratio >= wanted}
    emit(line)
