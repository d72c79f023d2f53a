"""`swarm-worker export`: records, episodes and training data as JSON lines, records in the wire's own form."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import orjson

from worker.cli.common import (
    PLACES,
    default_scenario_option,
    known_scenario,
    one_scenario,
    plain,
    reading_store,
    run_async,
    settings_options,
    shown,
)
from worker.cli.training_files import told_of
from worker.configuration import learn_models_of, rules_of
from worker.durable import make_private_directory
from worker.errors import ConfigurationError
from worker.settings import Settings
from worker.store.port import EpisodeFilter
from worker.training.exports import TrainingDataExport, actions_taken
from worker.training.lora.data import write_training_data
from worker.training.lora.inputs import MANIFEST_FILE
from worker.training.lora.planned import lora_config
from worker.wire.codec import record_to_json

Write = Callable[[bytes], int]
#: Lines of why episodes gave no example.
_REASONS = 5


@click.group()
def export() -> None:
    """Write what is stored as JSON lines to standard output."""


@export.command("records")
@default_scenario_option
@click.option("--type", "type_", help="only this record type, such as action or learn_stats")
@click.option("--task", "task_id", help="only this task")
@click.option("--after", type=click.IntRange(0), default=0, help="only batches above this number")
@settings_options(*PLACES)
def records(*, settings: Settings, scenario: str | None, type_: str | None, task_id: str | None, after: int) -> None:
    """Every record once, in the order stored.

    With exactly the fields that were sent, in the schema's order: compare as JSON, not as text.
    """
    run_async(_records(settings, one_scenario(scenario, settings), type_, task_id, after))


async def _records(settings: Settings, scenario: str, type_: str | None, task_id: str | None, after: int) -> None:
    write: Write = sys.stdout.buffer.write
    async with reading_store(settings) as store:
        await known_scenario(store, scenario)
        async for stored in store.records(scenario, type_=type_, task_id=task_id, after=after):
            write(record_to_json(stored.record, stored.nulls))
            write(b"\n")
    sys.stdout.buffer.flush()


@export.command("episodes")
@default_scenario_option
@click.option("--learn-model", help="only episodes of this learn model")
@settings_options(*PLACES)
def episodes(*, settings: Settings, scenario: str | None, learn_model: str | None) -> None:
    """Every episode with its verdict."""
    run_async(_episodes(settings, one_scenario(scenario, settings), learn_model))


async def _episodes(settings: Settings, scenario: str, learn_model: str | None) -> None:
    async with reading_store(settings) as store:
        await known_scenario(store, scenario)
        async for episode in store.episodes(scenario, EpisodeFilter(learn_model=learn_model)):
            sys.stdout.buffer.write(orjson.dumps(plain(episode)) + b"\n")
    sys.stdout.buffer.flush()


@export.command("training-data")
@default_scenario_option
@click.option("--learn-model", help="only examples of this learn model; dpo gives preference pairs")
@click.option("--min-score", type=float, help="only episodes with at least this score")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    help="a directory for train.jsonl, held_out.jsonl and manifest.json, as a LoRA training sees them",
)
@settings_options(
    *PLACES, "learn_models", "scenario_options", "terminal_actions", "system_events", "holdout", "producer_share",
    "lora_objective", "lora_max_episodes",
)  # fmt: skip
def training_data(
    *, settings: Settings, scenario: str | None, learn_model: str | None, min_score: float | None, into: Path | None
) -> None:
    """Examples for fine-tuning, SFT and DPO.

    SFT lines are {"messages": [...]}, DPO lines {"prompt", "chosen", "rejected"}, everything that was lived. With
    --into the rows of a LoRA training instead: each text once, split by task (group_id, else session) into what is
    trained on and what is held out, no producer above its share, and a manifest of hashes, episodes, and what was left
    out and why. The directory must be new or empty.
    """
    name = one_scenario(scenario, settings)
    if into is None:
        run_async(_training_data(settings, name, learn_model, min_score))
    elif learn_model is not None or min_score is not None:
        raise ConfigurationError("--into writes what a training would see: leave --learn-model and --min-score out")
    elif into.is_dir() and any(into.iterdir()):
        raise click.BadParameter(f"{into} is not empty; name a directory that is new or empty")
    else:
        run_async(_training_files(settings, name, into))


async def _training_data(settings: Settings, scenario: str, learn_model: str | None, min_score: float | None) -> None:
    async with reading_store(settings) as store:
        await known_scenario(store, scenario)
        seen = await actions_taken(store, scenario)
        models = [model for model in learn_models_of(settings, scenario, seen) if learn_model in (None, model.name)]
        if not models:
            raise ConfigurationError(
                f"--learn-model: {learn_model!r} does not run on {scenario}; see SWARM_LEARN_MODELS"
            )
        export = TrainingDataExport(store, scenario, models=models, rules=rules_of(settings, scenario))
        async for line in export.lines(EpisodeFilter(min_score=min_score)):
            sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
    # Of a model that pairs episodes one may stand in several pairs.
    excluded = {one.episode_id: one.reason for one in reversed(export.excluded)}
    click.echo(f"{export.examples} examples; {len(excluded)} episodes gave none", err=True)
    reasons = Counter(excluded.values()).most_common()
    for reason, times in reasons[:_REASONS]:
        click.echo(f"  {times}: {shown(reason)}", err=True)
    if len(reasons) > _REASONS:
        click.echo(f"  {sum(times for _, times in reasons[_REASONS:])}: for other reasons", err=True)


async def _training_files(settings: Settings, scenario: str, into: Path) -> None:
    async with reading_store(settings) as store:
        await known_scenario(store, scenario)
        await asyncio.to_thread(make_private_directory, into)
        manifest, sha256 = await write_training_data(
            store,
            scenario,
            into,
            config=lora_config(settings),
            models_of=partial(learn_models_of, settings),
            rules=rules_of(settings, scenario),
        )
    for line in told_of(manifest, into):
        click.echo(line, err=True)
    click.echo(f"{into / MANIFEST_FILE}: sha256 {sha256}", err=True)
