"""Watches what was just applied for a while before it counts as live: a server may fall over after its first answers.

It counts as live only at the window's end: until then the deployment is `started`, so a worker that dies meanwhile
watches again, and a server that does not stay well gets the model before it back, as after any failed apply.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from worker.clock import Clock, sleep_unless
from worker.errors import ApplyFailed
from worker.models.applicators.port import Applicator
from worker.store.port import Model

#: Looks in a row without an answer that are forgiven: a server that is busy is not a server that is broken.
_FORGIVEN: Final = 2
_MOST_SECONDS_BETWEEN: Final = 5.0


class GivenUp(ApplyFailed):
    """Somebody ended the window by a rollback."""

    def __init__(self, model: Model, by: str, at_ms: int) -> None:
        """`by`: who; `at_ms`: when they asked for it, Unix ms."""
        super().__init__(f"version {model.version} was given up in its health window by {by}")
        self.by = by
        self.at_ms = at_ms


@dataclass(slots=True)
class _Watched:
    model: Model
    verdict: GivenUp | None = None
    given_up: asyncio.Event = field(default_factory=asyncio.Event)


class HealthWindow:
    """For every model of one kind."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        """How long it is watched; 0: not at all."""
        self._seconds = seconds
        self._clock = clock
        self._every = min(_MOST_SECONDS_BETWEEN, seconds / 10)
        self._watched: dict[str, _Watched] = {}

    def watches(self, scenario: str) -> bool:
        """Whether a model of the scenario is being watched."""
        return scenario in self._watched

    def give_up(self, scenario: str, by: str, at_ms: int) -> Model:
        """End the watch of the scenario's model as failed, since somebody says so; KeyError where none is watched."""
        watched = self._watched[scenario]
        watched.verdict = GivenUp(watched.model, by, at_ms)
        watched.given_up.set()
        return watched.model

    async def watch(self, applicator: Applicator, model: Model) -> None:
        """Look again and again what is served. Returns at the window's end; raises `ApplyFailed` before, or then.

        `GivenUp` wherever somebody gave it up meanwhile, whatever else was seen.
        """
        watched = self._watched[model.scenario] = _Watched(model)
        try:
            await self._watch(applicator, watched)
        except ApplyFailed:
            self._refuse_given_up(watched)
            raise
        finally:
            del self._watched[model.scenario]

    async def _watch(self, applicator: Applicator, watched: _Watched) -> None:
        model = watched.model
        end = self._clock.monotonic() + self._seconds
        unanswered = 0
        while self._clock.monotonic() < end or unanswered:
            await sleep_unless(watched.given_up, self._every)
            self._refuse_given_up(watched)
            try:
                served = await applicator.served(model.scenario)
            except ApplyFailed as error:
                unanswered += 1
                if unanswered > _FORGIVEN:
                    raise ApplyFailed(f"{self._what(applicator, model)} gave no answer: {error}") from error
                continue
            unanswered = 0
            if served != model.sha256:
                raise ApplyFailed(f"{self._what(applicator, model)} served {served or 'no model'} instead")
        self._refuse_given_up(watched)  # during the last look: whoever said so was told that it is

    def _refuse_given_up(self, watched: _Watched) -> None:
        if watched.verdict is not None:
            raise watched.verdict

    def _what(self, applicator: Applicator, model: Model) -> str:
        return (
            f"version {model.version} did not stay healthy for {self._seconds:g} s (SWARM_LORA_HEALTH_WINDOW): "
            f"{applicator.target(model.scenario)}"
        )
