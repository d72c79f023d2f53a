"""The states of two servers that take turns: the original's `ServerState`, and which endpoint is asked in each. Pure.

A switch goes Active -> Starting -> Active -> Releasing -> Active; where it is broken off, or over, what holds is looked
up again, since the servers are other processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, TypeAlias

Colour: TypeAlias = Literal["blue", "green"]


class ServerState(Enum):
    """What goes on; in every state one endpoint is the one to ask."""

    ACTIVE = "active"  # one server serves
    STARTING = "starting"  # the other one is started and tried; the old one still serves
    RELEASING = "releasing"  # the new one serves; the old one ends its requests
    DOWN = "down"  # the server that should serve does not


class WrongState(ValueError):
    """A step that does not follow from the state."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Blue and green at one moment."""

    state: ServerState
    active: Colour

    @property
    def standby(self) -> Colour:
        """The one that is not to be asked."""
        return other(self.active)

    def starting(self) -> Pair:
        """The standby is started; also where the active one is down."""
        return self._step({ServerState.ACTIVE, ServerState.DOWN}, ServerState.STARTING)

    def switched(self) -> Pair:
        """The one that was started is asked from now on."""
        return replace(self._step({ServerState.STARTING}, ServerState.ACTIVE), active=self.standby)

    def releasing(self) -> Pair:
        """The one that was asked before ends its requests, if it runs."""
        return self._step({ServerState.ACTIVE}, ServerState.RELEASING)

    def _step(self, allowed: set[ServerState], to: ServerState) -> Pair:
        if self.state not in allowed:
            raise WrongState(f"from {self.state.value} no step leads to {to.value}")
        return replace(self, state=to)


def other(colour: Colour) -> Colour:
    """Of two."""
    return "green" if colour == "blue" else "blue"
