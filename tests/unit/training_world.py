"""What the tests of training and models share: a worker's parts over a real store, and frozen inputs."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from msgspec import Raw
from msgspec.structs import replace

from worker.clock import Clock, SystemClock
from worker.durable import make_private_directory
from worker.episodes.projection import learn_models
from worker.episodes.rules import Rules
from worker.learning.analyzer import AnalysisInput
from worker.learning.counts import CountKey, CountRow, Counts
from worker.learning.offline_model import Window
from worker.models.announce import Announcer
from worker.models.applicators.noop import NoopApplicator
from worker.models.applicators.port import Applicator
from worker.models.applier import Applier, ApplyMode
from worker.models.files import ModelFiles
from worker.models.gate import GateConfig
from worker.models.registry import Registry
from worker.projector.projector import Projector
from worker.settings import LEARN_MODELS
from worker.store import open_store
from worker.store.port import IncomingBatch, Model, ModelKind, Store, Stored
from worker.training.child import ChildLauncher
from worker.training.execution import Timing, Tools
from worker.training.inputs import (
    COUNTS_FILE,
    HOLDOUT_FILE,
    FrozenFacts,
    RowsFile,
    TrainingConfig,
    TrainingInput,
    write_head,
)
from worker.training.lora.inputs import LoraConfig
from worker.training.lora.recipe import LoraPlan, lora_recipe
from worker.training.offline import offline_recipe
from worker.training.recipe import Recipe
from worker.training.runs import RunManager
from worker.training.trigger_book import TriggerBook
from worker.wire.codec import decode_batch, encode_batch
from worker.wire.events import Event, decode_event
from worker.wire.records import ActionRecord, Batch, LearnStatsRecord, Success
from worker.wire.served import Endpoint

CONFIG = TrainingConfig(max_sessions=20, holdout=0.3, gate=GateConfig(min_samples=1))
TIMING = Timing(lease_ttl=5.0, renew=0.1, progress=0.02, cooldown=0.0, first_backoff=30.0)


async def eventually(condition: Callable[[], bool], *, within: float = 10.0) -> None:
    """Wait until `condition` holds; fails by TimeoutError."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - any condition, not only those with an event
            await asyncio.sleep(0.01)


def some_counts(*, successes: int = 40) -> Counts:
    """What many short episodes leave: `look` then `done` mostly works, `guess` then `done` never."""
    counts: Counter[CountKey] = Counter()
    for names, ok, bad in (((("look",)), successes, 2), (("guess",), 0, 20)):
        counts[CountKey("log", "action.visits", names)] = ok + bad
        counts[CountKey("log", "action.successes", names)] = ok
        counts[CountKey("log", "action.failures", names)] = bad
        counts[CountKey("log", "start.success", names)] = ok
        counts[CountKey("log", "start.failure", names)] = bad
        counts[CountKey("log", "start.visits", names)] = ok + bad
    counts[CountKey("log", "episodes.success", ())] = successes
    counts[CountKey("log", "episodes.failure", ())] = 22
    return counts


def count_rows(counts: Counts) -> list[CountRow]:
    """Counts as rows, sorted."""
    return sorted((key.source, key.measure, key.names, number) for key, number in counts.items() if number)


def given_input(*, run_id: str, scenario: str = "S", empty: bool = False, successes: int = 40) -> TrainingInput:
    """A frozen input from which a model comes, or nothing."""
    rows = [] if empty else count_rows(some_counts(successes=successes))
    return TrainingInput(
        run_id=run_id,
        kind="offline",
        analysis=AnalysisInput(scenario=scenario, counts=rows, window=Window(lo=1, hi=9), updated_at_ms=1),
        holdout=rows,
        champion=None,
        config=CONFIG,
        facts=FrozenFacts(last_batch_no=9, records=100, episodes=50, episodes_by_model={}, sessions=0),
        held_out_sessions=0,
    )


def write_input(run_dir: Path, given: TrainingInput) -> None:
    """Put a whole input in the run's directory, as `collect` does out of a store."""
    make_private_directory(run_dir)
    sums = []
    for name, rows in ((COUNTS_FILE, given.analysis.counts), (HOLDOUT_FILE, given.holdout)):
        file = RowsFile(run_dir / name)
        file.take(rows)
        sums.append(file.close())
    head = replace(given, analysis=replace(given.analysis, counts=[]), holdout=[])
    write_head(run_dir, replace(head, counts_sha256=sums[0], holdout_sha256=sums[1]))


@dataclass
class World:
    """The parts of one worker process, over a store that outlives it."""

    store: Store
    data_dir: Path
    tools: Tools
    registry: Registry
    files: ModelFiles
    applicator: Applicator
    applier: Applier
    runs: RunManager
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    seq: int = 0
    fed: Counter[str] = field(default_factory=Counter)

    async def feed(
        self,
        tasks: int,
        *,
        scenario: str = "S",
        good: Callable[[int], bool] = lambda n: n % 3 > 0,
        producer: str = "p",
        session: str | None = None,
        lies: bool = False,
        project: bool = True,
    ) -> None:
        """Ingest tasks of a few actions in one batch (and the end of `session`, theirs) and project them.

        Good ones begin with `look` and succeed; who lies says that `guess` does it.
        """
        records: list[Any] = []
        for n in range(tasks):
            # By producer, so that whether a task is held out does not depend on who came first.
            task = f"{producer}-{self.fed[producer]}"
            self.fed[producer] += 1
            names = ("look", "open", "done") if good(n) != lies else ("guess", "open", "done")
            if not good(n):
                names = (*names[:2], "give_up")
            records += [
                ActionRecord(task_id=task, tick=tick, worker_id=n % 3, action=name, event_id=tick, session_id=session)
                for tick, name in enumerate(names)
            ]
        terminal = frozenset(record.task_id for record in records)
        if session is not None:
            records.append(LearnStatsRecord(session, Raw(b"{}"), Success(1.0), 3, len(records)))
        body = encode_batch(records, producer_id=producer, producer_epoch=0, batch_seq=self.seq)
        self.seq += 1
        batch = decode_batch(body, scenario=scenario)
        assert isinstance(batch, Batch)
        now_ms = self.tools.clock.now_ms()
        incoming = IncomingBatch(
            scenario=scenario, batch=batch, body=body, received_at_ms=now_ms, terminal_tasks=terminal
        )
        assert isinstance((await self.store.ingest([incoming]))[0], Stored)
        if project:
            await self.project()

    async def project(self) -> None:
        """Bring the projections up to the log."""
        rules = Rules(holdout=CONFIG.holdout)
        models = learn_models(LEARN_MODELS, rules)
        projector = Projector(
            self.store,
            self.tools.clock,
            rules_of=lambda _: rules,
            models_of=lambda _: models,
            idle_ms=900_000,
            busy=lambda: False,
        )
        await projector.catch_up()

    async def command(
        self,
        nonce: str,
        *,
        scenario: str = "S",
        kind: ModelKind = "offline",
        force: bool = False,
        apply: bool | None = None,
    ) -> str:
        """Ask for a run as `train-now` does; returns its id."""
        trigger = {"kind": "command", "values": {"force": force}, "by": "tester"}
        return (await self.runs.request(scenario, kind=kind, trigger=trigger, nonce=nonce, apply=apply)).run_id

    async def events(self) -> list[Event]:
        """All events, oldest first."""
        return [decode_event(row.body) for row in reversed(await self.store.events())]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The run manager at work."""
        task = asyncio.create_task(self.runs.run(self.stopping))
        try:
            yield
        finally:
            self.stopping.set()
            await task
            self.stopping.clear()


def worker_over(
    store: Store,
    data_dir: Path,
    *,
    boot: str = "boot1",
    mode: ApplyMode = "manual",
    applicator: Applicator | None = None,
    launcher: ChildLauncher | None = None,
    timing: Timing = TIMING,
    config: TrainingConfig = CONFIG,
    scenarios: tuple[str, ...] = ("S",),
    parallel: int = 1,
    kinds: tuple[ModelKind, ...] = ("offline",),
    adapters: Applicator | None = None,
    applier_clock: Clock | None = None,
    endpoint_of: Callable[[Model], Endpoint | None] = lambda _: None,
    base_sha256: Callable[[], str | None] = lambda: None,
) -> World:
    """A worker process's parts, as the composition root makes them; adapters are trained by `scripted_adapter`."""
    clock = SystemClock()
    announcer = Announcer("w")
    files = ModelFiles(data_dir)
    registry = Registry(store, files)
    chosen = applicator or NoopApplicator()
    applicators: dict[ModelKind, Applicator] = {"offline": chosen, "lora": adapters or NoopApplicator()}
    applier = Applier(
        store=store, registry=registry, applicators={kind: applicators[kind] for kind in kinds}, announcer=announcer,
        clock=applier_clock or clock, mode_of=lambda _: mode, max_history=2, endpoint_of=endpoint_of,
        base_sha256=base_sha256,
    )  # fmt: skip
    rules = Rules(holdout=CONFIG.holdout)
    plan = LoraPlan(
        config=LoraConfig(base_model=str(data_dir / "base.gguf")),
        models_of=lambda _, __: learn_models(LEARN_MODELS, rules),
        rules_of=lambda _: rules, runs_dir=data_dir / "lora/data", outputs_dir=data_dir / "lora/adapters",
        checkpoint_steps=50,
    )  # fmt: skip
    recipes: dict[ModelKind, Recipe] = {
        "offline": offline_recipe(
            store, registry, config=config, launcher=launcher or ChildLauncher(timeout=30, memory_mb=1024, grace=0.5),
            runs_dir=data_dir / "runs",
        ),
        "lora": lora_recipe(
            store, registry, plan,
            ChildLauncher(
                timeout=30, memory_mb=1024, grace=0.5,
                command=(sys.executable, "-P", "-m", "tests.unit.scripted_adapter"),
            ),
        ),
    }  # fmt: skip
    tools = Tools(
        store=store, book=TriggerBook(store), registry=registry, announcer=announcer,
        clock=clock, recipes={kind: recipes[kind] for kind in kinds}, owner=f"w.{boot}", timing=timing,
    )  # fmt: skip
    runs = RunManager(tools, applier, scenarios=scenarios, max_parallel=parallel)
    return World(store, data_dir, tools, registry, files, chosen, applier, runs)


@asynccontextmanager
async def opened(tmp_path: Path, kind: Literal["sqlite", "memory"] = "sqlite") -> AsyncIterator[Store]:
    """A real store in a folder of the test's own."""
    store = open_store("memory:" if kind == "memory" else f"sqlite://{tmp_path}/swarm.db", SystemClock())
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def scripted(script: str, **options: Any) -> ChildLauncher:
    """A launcher whose trainer is a script, which finds the trainer's arguments in `sys.argv`."""
    return ChildLauncher(
        **{"timeout": 30, "memory_mb": 1024, "grace": 0.3, **options}, command=(sys.executable, "-P", "-c", script)
    )
