"""What the training data of an adapter was: `manifest.json`, beside the rows and kept with the registered adapter."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import msgspec
from msgspec import Struct

from worker.durable import replace_file
from worker.episodes.model import Excluded
from worker.training.lora.examples import Side
from worker.training.lora.inputs import HELD_OUT_FILE, MANIFEST_FILE, TRAIN_FILE, LoraConfig, Objective


class ManifestFile(Struct, frozen=True, kw_only=True):
    """One file of rows."""

    sha256: str
    examples: int  # rows
    lived: int  # examples that they stand for: those that say the same are merged
    episodes: list[str]  # all that are taught from, of pairs both, sorted
    tasks: int  # that these are attempts at: see `worker.training.lora.split`
    capped: dict[str, int]  # rows left out, by the producer that had brought more than its share
    capped_episodes: int  # that nothing is taught from, since their rows were capped


class LoraManifest(Struct, frozen=True, kw_only=True):
    """Follows from the data and the settings alone: the same records in any order give the same manifest.

    Where there are more than `max_episodes`, or more text than fits, that holds for records with a `timestamp_ms`:
    newest among others are those that came in last.
    """

    format: int = 1
    scenario: str
    objective: Objective
    learn_models: list[str]
    holdout: float
    producer_share: float
    max_episodes: int
    files: dict[str, ManifestFile]
    #: Held-out rows whose prompt is trained on too, from another task.
    seen: int
    #: All of these learn models: those of both files, their `capped_episodes`, and those passed over and excluded.
    episodes: int
    #: Episodes that were not looked at, by reason.
    passed_over: dict[str, int]
    #: Episodes that gave no example, by kind of reason, and each of them once with a reason.
    excluded: dict[str, int]
    excluded_episodes: list[Excluded]


def write_data(
    directory: Path,
    sides: tuple[Side, Side],
    *,
    scenario: str,
    config: LoraConfig,
    learn_models: list[str],
    episodes: int,
    passed_over: dict[str, int],
    excluded: list[Excluded],
) -> tuple[LoraManifest, str]:
    """Put both files of rows and the manifest in `directory`, read-only; the manifest and its SHA-256."""
    told = {episode for side in sides for episode in (*side.episodes, *side.capped_episodes)}
    by_reason = sorted(excluded, key=lambda one: (one.episode_id, one.reason), reverse=True)
    without = {one.episode_id: one for one in by_reason if one.episode_id not in told}  # the first reason
    files = {}
    for name, side in zip((TRAIN_FILE, HELD_OUT_FILE), sides, strict=True):
        lines = msgspec.json.Encoder().encode_lines(side.rows)
        replace_file(directory / name, lines, mode=0o400)
        files[name] = ManifestFile(
            sha256=hashlib.sha256(lines).hexdigest(),
            examples=len(side.rows),
            lived=sum(row.times for row in side.rows),
            episodes=side.episodes,
            tasks=side.tasks,
            capped=side.capped,
            capped_episodes=len(side.capped_episodes),
        )
    manifest = LoraManifest(
        scenario=scenario,
        objective=config.objective,
        learn_models=learn_models,
        holdout=config.holdout,
        producer_share=config.producer_share,
        max_episodes=config.max_episodes,
        files=files,
        seen=sum(row.seen for row in sides[1].rows),
        episodes=episodes,
        passed_over=passed_over,
        # What stands before the colon: behind it a learn model may name the episode, so no two are the same.
        excluded=dict(sorted(Counter(one.reason.partition(":")[0] for one in without.values()).items())),
        excluded_episodes=sorted(without.values(), key=lambda one: one.episode_id),
    )
    data = msgspec.json.encode(manifest, order="sorted")
    replace_file(directory / MANIFEST_FILE, data, mode=0o400)
    return manifest, hashlib.sha256(data).hexdigest()
