"""How far a training is, for people: a share, a step, the loss and how long it will still take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

#: Shares of the whole, roughly as long as they take.
LOADED, TRAINED, JUDGED, PROBED = 0.05, 0.80, 0.92, 0.95
#: Seconds between two words about steps: they are stored, and read by people.
_PAUSE = 1.0
_MINUTE, _HOUR = 60, 3600


class Report(Protocol):
    """Tells the parent; see `worker.training.trainer.report`."""

    def __call__(
        self, progress: float, text: str, step: tuple[int, int, float, float] | None = None
    ) -> None:  # fmt: skip
        """Progress is 0-1."""
        ...


class StepProgress:
    """Says where the steps stand, at most once a second and at the last one."""

    def __init__(self, report: Report, *, steps: int, clock: Callable[[], float]) -> None:
        """`clock` in seconds."""
        self._report = report
        self._steps = steps
        self._clock = clock
        self._began = self._said = clock()
        self._first: int | None = None

    def __call__(self, done: int, loss: float) -> None:
        """`done` steps are made; those of an earlier attempt say nothing of the pace."""
        now = self._clock()
        if self._first is None:
            self._first = done - 1
        if now - self._said < _PAUSE and done < self._steps:
            return
        self._said = now
        left = (now - self._began) / (done - self._first) * (self._steps - done)
        text = f"step {done} of {self._steps}, loss {loss:.3f}" + (f", {in_words(left)} left" if left else "")
        share = LOADED + (TRAINED - LOADED) * done / self._steps
        self._report(share, text, (done, self._steps, round(loss, 6), round(left, 1)))


def in_words(seconds: float) -> str:
    """A time that is still to come, roughly: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 2 * _MINUTE:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / _MINUTE)} min" if seconds < 2 * _HOUR else f"{seconds / _HOUR:.1f} h"
