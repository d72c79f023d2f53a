"""A training that was ended from outside goes on, also where a launcher stands between and says so in its own way."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import cast

import pytest

from tests.unit.test_training_kinds import told
from tests.unit.test_training_runs import ended
from tests.unit.training_world import opened, worker_over
from worker.training.child import ChildLauncher, TrainingStep
from worker.training.limits import EXIT_NOT_CONVERTED
from worker.training.recipe import Recipe
from worker.training.resuming import MOST_STARTS, goes_on

_SCRIPTED = '"$0" -P -m tests.unit.scripted_adapter "$@"'


@pytest.mark.parametrize(
    ("told_by", "launched"),
    [("exit $?", True), ("exit 1", True), (f"exit {EXIT_NOT_CONVERTED}", False)],
    ids=["shell", "torchrun", "converter"],
)
async def test_a_training_that_ends_too_early_inside_of_a_launcher_or_at_its_converter_goes_on_from_its_checkpoint(
    tmp_path: Path, told_by: str, launched: bool
) -> None:
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=("lora",))
        recipe = world.tools.recipes["lora"]
        shell = ("sh", "-c", f"{_SCRIPTED} || {told_by}", sys.executable)
        launcher = ChildLauncher(timeout=30, memory_mb=1024, grace=0.5, command=shell)
        within = dataclasses.replace(recipe, launcher=launcher, launched=launched)
        cast("dict[str, Recipe]", world.tools.recipes)["lora"] = within
        told(tmp_path, "die")
        await world.feed(30)
        async with world.running():
            run = await ended(world, await world.command("c1", kind="lora"))
        assert (run.state, run.attempts, run.reason) == ("trained", 2, None)


@pytest.mark.parametrize(
    ("reason", "launched", "checkpoint", "expected"),
    [
        ("signal:9", False, False, True),
        ("exit:1", False, True, False),  # our own child says by its status what went wrong
        ("exit:1", True, True, True),
        ("exit:1", True, False, False),  # it had not even begun
        ("exit:137", True, False, True),
        ("exit:137", False, True, False),
        ("exit:78", True, True, False),  # a setting is wrong
        ("oom", True, True, False),
        ("not_converted", False, True, True),
        ("bad_output: OSError", True, True, False),
    ],
)
def test_what_ended_a_training_says_whether_it_goes_on(
    reason: str, launched: bool, checkpoint: bool, expected: bool
) -> None:
    def may(starts: int) -> bool:
        return goes_on(reason, starts=starts, timeout=60, step=None, launched=launched, checkpoint=checkpoint)

    assert may(1) is may(MOST_STARTS - 1) is expected
    assert not may(MOST_STARTS)


def test_a_training_at_its_time_limit_goes_on_where_the_starts_that_are_left_suffice() -> None:
    step = TrainingStep(step=1, steps=2, loss=0.5, seconds_left=100.0)
    left = {starts: goes_on("timeout", starts=starts, timeout=60, step=step, launched=False, checkpoint=True)
            for starts in (1, 2)}  # fmt: skip
    assert left == {1: True, 2: False}
