"""Ingest while a training runs, against ingest without, in one worker and by turns.

The training is a real one, made long by what it learns from: the statistics of a thousand sessions. `busy_share` is
the share of the measured time in which it was running. It starts when trainings are resumed by command, since the
trigger asks for one whenever there is something new; for the turns without they are paused.

What is trained is a `Subject`: offline models here, adapters in `training_lora`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.bench.broker import Queues, until_quiet
from tests.bench.contestants import WORKER
from tests.bench.messages import bodies, ended_sessions
from tests.bench.race import Figures, Watch, measure, scratch, stop
from tests.bench.report import Emit, middle
from worker.cli.commands import control_client, make_command, send
from worker.settings import load_settings
from worker.wire.commands import Pause, Resume

_PER_MESSAGE = 100
_SESSIONS, _ROWS = 1_000, 250
_MESSAGES = 3_000
_WAIT_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is trained beside ingest."""

    name: str  # of the case
    least: float  # share of the rate that ingest must keep
    first: Callable[[], Iterator[bytes]]  # bodies that are there before the first turn
    first_messages: int
    settings: Mapping[str, str]
    under_way: str  # SQL: whether the training has got to what is to be measured


OFFLINE = Subject(
    name="training",
    least=0.9,
    first=lambda: ended_sessions(_SESSIONS, _ROWS),
    first_messages=_SESSIONS,
    settings={"SWARM_MAX_SESSIONS": str(_SESSIONS)},
    under_way="SELECT EXISTS (SELECT 1 FROM training_run WHERE state = 'running')",
)


async def case(queues: Queues, emit: Emit, rounds: int, subject: Subject = OFFLINE) -> None:
    """Both ways, `rounds` times."""
    scenario = await queues.fresh()
    runs: dict[bool, list[Figures]] = {False: [], True: []}
    busy: list[float] = []
    with scratch() as folder:
        await queues.fill(scenario, subject.first())
        settings = {"SWARM_TRIGGER": "always", "SWARM_CHECK_INTERVAL": "1s", **subject.settings}
        process = WORKER.start(scenario, folder, **settings)
        watch, stored = Watch(folder, process), subject.first_messages
        try:
            await watch.until(stored)
            for _ in range(rounds):
                for training in (False, True):
                    await _command(scenario, "pause", Pause(what="all"))
                    await _until_projected(folder)
                    await queues.fill(scenario, bodies(_MESSAGES, _PER_MESSAGE, first=stored))
                    until_quiet()
                    if training:
                        await _command(scenario, "resume", Resume(what="training"))
                        await _until(folder, subject.under_way)
                    figures = Figures(_MESSAGES, _PER_MESSAGE)
                    began = time.time()
                    await asyncio.gather(
                        measure(watch, process, figures, stored), _command(scenario, "resume", Resume(what="ingest"))
                    )
                    stored += _MESSAGES
                    runs[training].append(figures)
                    if training:
                        busy.append(_busy_share(folder, began, time.time()))
        finally:
            watch.close()
            stop(process)
    await queues.drop(scenario)
    rates = {training: [one.records_per_second for one in figures] for training, figures in runs.items()}
    ratio = round(middle([a / b for a, b in zip(rates[True], rates[False], strict=True)]), 2)
    for training in (False, True):
        emit(
            {
                "bench": subject.name,
                "case": "a training runs" if training else "none runs",
                "records_per_second": round(middle(rates[training])),
                "cpu_us_per_record": round(middle([one.cpu_us_per_record for one in runs[training]]), 2),
                "rounds": rounds,
            }
            | (
                {
                    "ratio": ratio,
                    "wanted": f">= {subject.least}",
                    "kept": ratio >= subject.least,
                    "busy_share": round(middle(busy), 2),
                }
                if training
                else {}
            )
        )


async def _command(scenario: str, name: str, arguments: Pause | Resume) -> None:
    settings = load_settings(amqp_url=os.environ["SWARM_AMQP_URL"])
    async with control_client(settings) as client:
        async for reply in send(client, make_command(name, arguments, scenario), timeout=_WAIT_SECONDS):
            if reply.final and reply.status != "done":
                raise RuntimeError(f"{name}: {reply.error}")


async def _until_projected(folder: Path) -> None:
    """Nothing waits to be projected and no training runs."""
    await _until(folder, "SELECT NOT EXISTS (SELECT 1 FROM task WHERE due = 1)")
    await _until(folder, "SELECT NOT EXISTS (SELECT 1 FROM training_run WHERE state IN ('queued', 'running'))")


async def _until(folder: Path, question: str) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    with closing(_open(folder)) as connection:
        while not connection.execute(question).fetchone()[0]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {_WAIT_SECONDS} s: {question}")
            await asyncio.sleep(0.05)


def _busy_share(folder: Path, began: float, ended: float) -> float:
    with closing(_open(folder)) as connection:
        rows = connection.execute(
            "SELECT started_at_ms, coalesce(ended_at_ms, ?) FROM training_run WHERE started_at_ms IS NOT NULL",
            (ended * 1000,),
        ).fetchall()
    overlap: float = sum(max(0.0, min(end / 1000, ended) - max(start / 1000, began)) for start, end in rows)
    return overlap / (ended - began)


def _open(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{(folder / 'swarm.db').as_uri()}?mode=ro", uri=True)
