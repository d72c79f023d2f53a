"""What a person sees who waits for a training."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from worker.broker.answers import Answer
from worker.cli.waiting import Waiting, follow_training
from worker.errors import NoAnswer

TRAINING = {"kind": "lora", "progress": 0.5, "text": "step 12 of 40, loss 0.750, 2 min left"}


def terminal() -> Console:
    return Console(file=StringIO(), force_terminal=True, width=120)


def seen(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


class Worker:
    """Answers `status`, each time with the next of these; then nobody answers."""

    def __init__(self, *trainings: dict[str, Any] | None, refuses: bool = False) -> None:
        self.trainings = list(trainings)
        self.refuses = refuses
        self.asked = 0

    async def ask(self) -> AsyncIterator[Answer]:
        self.asked += 1
        if self.refuses:
            yield Answer(command_id="c", status="refused", result={}, error="not you")
            return
        if not self.trainings:
            raise NoAnswer("gone")
        result = {"scenarios": {"S": {"training": self.trainings.pop(0)}}}
        yield Answer(command_id="c", status="accepted", result={})
        yield Answer(command_id="c", status="done", result=result)


async def test_step_loss_and_what_is_left_are_shown_with_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.cli.waiting._ASK_AGAIN", 0)
    console, worker = terminal(), Worker(None, TRAINING, TRAINING)
    with Waiting("train-now ...", console) as waiting:
        await follow_training(worker.ask, "S", waiting)
        waiting._progress.refresh()
        text = seen(console)
    assert "adapter: step 12 of 40, loss 0.750, 2 min left" in text
    assert "50%" in text
    assert worker.asked == 4


async def test_an_end_is_told_since_an_apply_may_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter is loaded, probed and watched; a bar that stands still would say that the training hangs."""
    monkeypatch.setattr("worker.cli.waiting._ASK_AGAIN", 0)
    console = terminal()
    with Waiting("train-now ...", console) as waiting:
        await follow_training(Worker(None, TRAINING, None).ask, "S", waiting)
        waiting._progress.refresh()
        text = seen(console)
    assert "the training has ended" in text.rpartition("\x1b[2K")[2]


async def test_who_may_not_ask_waits_without_a_bar() -> None:
    """The command itself goes on: it is told by its own answers."""
    worker = Worker(refuses=True)
    with Waiting("train-now ...", terminal()) as waiting:
        await asyncio.wait_for(follow_training(worker.ask, "S", waiting), 5)
    assert worker.asked == 1


def test_what_a_worker_says_writes_no_control_sequences_to_the_terminal() -> None:
    """Nor rich's own: a node chooses names."""
    console = terminal()
    with Waiting("train-now ...", console) as waiting:
        waiting.training({**TRAINING, "text": "\x1b]0;owned\x07 [bold]loud[/bold]"})
        waiting._progress.refresh()
        text = seen(console)
    assert "\x1b]0;" not in text
    assert "[bold]loud[/bold]" in text
