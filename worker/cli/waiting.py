"""What a person sees who waits for a command: that something goes on, and how far a training is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from worker.broker.answers import Answer
from worker.cli.common import shown
from worker.errors import WorkerError

#: Seconds between two questions how far a training is.
_ASK_AGAIN = 1.0


class Waiting:
    """A line on standard error while one waits; a bar where it is known how far it is. Gone when it is over."""

    def __init__(self, text: str, console: Console | None = None) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            console=console or Console(stderr=True, highlight=False),
            transient=True,
        )
        self._line = self._progress.add_task(text, total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Something goes on, nobody knows how far it is."""
        self._progress.update(self._line, description=text, total=None)

    def training(self, training: dict[str, Any]) -> None:
        """A training that runs, as a worker's status has it."""
        what = "adapter" if training.get("kind") == "lora" else "model"
        text = shown(training.get("text", ""))
        self._progress.update(
            self._line, description=f"{what}: {text}", total=1.0, completed=float(training.get("progress", 0.0))
        )


#: Asks the worker that trains for its status.
AskStatus: TypeAlias = Callable[[], AsyncIterator[Answer]]


@contextmanager
def training_followed(ask: AskStatus, scenario: str, waiting: Waiting) -> Iterator[None]:
    """Show how far the scenario's training is, within the block."""
    task = asyncio.create_task(follow_training(ask, scenario, waiting), name="progress bar")
    try:
        yield
    finally:
        task.cancel()


async def follow_training(ask: AskStatus, scenario: str, waiting: Waiting) -> None:
    """Show how far the scenario's training is, until cancelled.

    Ends quietly where the worker does not tell (this user may not ask, it is busy): the command goes on all the same.
    """
    seen = False
    while True:
        try:
            async for answer in ask():
                training = answer.result.get("scenarios", {}).get(scenario, {}).get("training")
                if training:
                    waiting.training(training)
                elif answer.status in ("refused", "failed"):
                    return
                elif answer.final and seen:
                    waiting.say("the training has ended; now comes what is done with it")
                seen = seen or bool(training)
        except WorkerError:
            return
        await asyncio.sleep(_ASK_AGAIN)
