"""What the demo knows while it runs; whoever learns something writes it here, and the screen shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from worker.cli.demo.tally import Tally

Phase: TypeAlias = Literal["setting up", "playing", "ending"]


@dataclass(slots=True, kw_only=True)
class Course:
    """One game's."""

    game: str
    scenario: str
    tally: Tally = field(default_factory=Tally)
    #: What the worker says of the scenario, newest.
    status: dict[str, Any] = field(default_factory=dict)
    #: Version that `learning.applied` named last.
    live_version: int | None = None
    #: Learning events by their type.
    events: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class State:
    """The whole demo's."""

    courses: dict[str, Course]
    phase: Phase = "setting up"
    #: Unix ms at which play began.
    began_ms: int = 0
    seconds_left: float = 0.0

    def course_of(self, scenario: str) -> Course | None:
        """The course that this scenario is."""
        return next((course for course in self.courses.values() if course.scenario == scenario), None)
