"""What a person sees while the demo runs: a live table on a terminal, plain lines elsewhere, nothing for programs."""

from __future__ import annotations

import time
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from worker.cli.common import console, percent
from worker.cli.demo.state import Course, State
from worker.cli.demo.tally import Rate

#: Seconds between two plain reports.
_PLAIN_EVERY = 10.0


class Screen(Protocol):
    """Shows what happens, as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def say(self, text: str) -> None:
        """Something happened."""
        ...

    def show(self, state: State) -> None:
        """This is how things stand; called often."""
        ...


class LiveScreen:
    """A table that changes in place, what happened above it."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._live = Live(console=console(), auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """A line above the table."""
        self._live.console.print(_stamped(self._began, text), markup=False)

    def show(self, state: State) -> None:
        """Draw the table anew."""
        self._live.update(Group(_table(state), Text(_footer(state), style="bold")), refresh=True)


class PlainScreen:
    """Lines without control characters, for a log."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._next = 0.0
        self._console: Console = console()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def say(self, text: str) -> None:
        """A line."""
        print(_stamped(self._began, text), flush=True)

    def show(self, state: State) -> None:
        """A line a game, now and then."""
        now = time.monotonic()
        if now < self._next or state.phase != "playing":
            return
        self._next = now + _PLAIN_EVERY
        self.say(_footer(state))
        for course in state.courses.values():
            records, episodes, runs, live = _stored(course)
            without, under = course.tally.before, course.tally.after
            self.say(
                f"  {course.game:<10} {records} records stored, {episodes} episodes, trainings: {runs}, "
                f"live model: {live}; won {_won(without)} before, {_won(under)} with it"
            )


class NoScreen:
    """Nothing, where a program reads the result."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def say(self, text: str) -> None:
        """Nothing."""

    def show(self, state: State) -> None:
        """Nothing."""


def screen_for(*, as_json: bool) -> Screen:
    """The one that fits where the output goes."""
    if as_json:
        return NoScreen()
    return LiveScreen() if console().is_terminal else PlainScreen()


def _table(state: State) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("game")
    for name in ("records stored", "episodes", "trainings", "live model"):
        table.add_column(name, justify="right")
    for name in ("won before", "won with the model", "won alone"):
        table.add_column(name, justify="right")
    table.add_column("next training waits for")
    for course in state.courses.values():
        tally = course.tally
        alone = tally.alone_before if tally.first_model_ms is None else tally.alone_after
        table.add_row(
            course.game, *_stored(course), _won(tally.before), _won(tally.after), _won(alone),
            str(course.status.get("waiting_for", "")),
        )  # fmt: skip
    return table


def _stored(course: Course) -> tuple[str, str, str, str]:
    status = course.status
    return (
        f"{status.get('records_received', 0):,}",
        f"{status.get('episodes_created', 0):,}",
        str(status.get("trainings_completed", 0)),
        "none" if course.live_version is None else str(course.live_version),
    )


def _won(rate: Rate) -> str:
    return f"{percent(rate.share)} of {rate.games:,}" if rate.games else "-"


def _footer(state: State) -> str:
    return f"playing, {state.seconds_left:.0f} s left" if state.phase == "playing" else state.phase


def _stamped(began: float, text: str) -> str:
    return f"[{time.monotonic() - began:5.1f} s] {text}"
