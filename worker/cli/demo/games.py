"""Gymnasium's toy-text environments as scenarios: what a state is called, what reaching the goal means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
from msgspec import Struct

#: An action carries its state, since what is right depends on where one stands.
SEPARATOR = ":"


class Game(Struct, frozen=True):
    """One environment as a scenario of the swarm."""

    scenario: str
    environment: str
    options: dict[str, Any]
    moves: tuple[str, ...]
    #: Whether an episode with this total reward, ended by the game and not by its step limit, reached the goal.
    won: Callable[[float, bool], bool]
    #: Nearness to the goal gained by a step, where the agent can see it: (environment, state before, state after) -> KPI.
    nearness: Callable[[gymnasium.Env[Any, Any], Any, Any], float | None]

    def make(self) -> gymnasium.Env[Any, Any]:
        """A fresh environment."""
        return gymnasium.make(self.environment, **self.options)

    def action(self, state: Any, move: int) -> str:
        """The action's name, such as `14:right`."""
        place = "-".join(str(int(part)) for part in state) if isinstance(state, tuple) else str(int(state))
        return f"{place}{SEPARATOR}{self.moves[move]}"


def _taxi_distance(environment: gymnasium.Env[Any, Any], state: Any) -> int:
    """Blocks to the passenger, or with the passenger to the destination; the walls are not seen."""
    row, column, passenger, destination = environment.unwrapped.decode(int(state))  # type: ignore[attr-defined]  # Taxi's own
    places = environment.unwrapped.locs  # type: ignore[attr-defined]  # Taxi's own
    riding = passenger >= len(places)
    goal_row, goal_column = places[destination if riding else passenger]
    return abs(row - goal_row) + abs(column - goal_column) + (0 if riding else 10)


def _taxi_nearness(environment: gymnasium.Env[Any, Any], before: Any, after: Any) -> float | None:
    gained = _taxi_distance(environment, before) - _taxi_distance(environment, after)
    return max(-1.0, min(1.0, float(gained)))


def _unseen(_environment: gymnasium.Env[Any, Any], _before: Any, _after: Any) -> float | None:
    return None


GAMES = (
    Game(
        "frozenlake",
        "FrozenLake-v1",
        {"is_slippery": True},
        ("left", "down", "right", "up"),
        lambda reward, ended: ended and reward > 0,
        _unseen,
    ),
    Game("blackjack", "Blackjack-v1", {}, ("stick", "hit"), lambda reward, ended: ended and reward > 0, _unseen),
    Game(
        "taxi",
        "Taxi-v4",
        {"max_episode_steps": 60},
        ("south", "north", "east", "west", "pickup", "dropoff"),
        lambda _reward, ended: ended,
        _taxi_nearness,
    ),
)
