"""What `export training-data --into` says of the files that it wrote: lines for people, whose figures add up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from worker.cli.common import shown
from worker.training.lora.inputs import HELD_OUT_FILE, TRAIN_FILE
from worker.training.lora.manifest import LoraManifest


def told_of(manifest: LoraManifest, into: Path) -> Iterator[str]:
    """A line for each file and for each reason why episodes were left out, and the sum."""
    sum_of = []
    for name, file in manifest.files.items():
        merged = f", {file.lived - file.examples} more say the same" if file.lived > file.examples else ""
        yield f"{into / name}: {file.examples} examples{merged}; {len(file.episodes)} episodes of {file.tasks} tasks"
        for producer, rows in file.capped.items():
            yield f"  {rows} examples left out: producer {shown(producer)} brought more than its share"
        sum_of.append(len(file.episodes))
    if manifest.files[TRAIN_FILE].examples and not manifest.files[HELD_OUT_FILE].examples:
        yield "nothing is held out: all examples are of one task (group_id, else session), so no gate can judge by it"
    elif manifest.seen:
        yield f"  {manifest.seen} examples ask what is trained on too, in another task"
    left_out = manifest.passed_over | manifest.excluded
    if above := sum(file.capped_episodes for file in manifest.files.values()):
        left_out |= {"their producer brought more than its share": above}
    for reason, times in left_out.items():
        yield f"{times} episodes left out: {shown(reason)}"
    trained_on, held_out = sum_of
    yield (
        f"{manifest.episodes} episodes: {trained_on} trained on, {held_out} held out, {sum(left_out.values())} left out"
    )
