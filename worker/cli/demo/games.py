"""Gymnasium's toy-text environments as scenarios: what an agent sees, what it may do, what reaching the goal means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import gymnasium
from msgspec import Struct

Environment: TypeAlias = gymnasium.Env[Any, Any]

#: Between state and move in an action's name: what is right depends on where one stands.
SEPARATOR = ":"
#: Ends a game. It carries whether the game was won, so each game is an episode with its own outcome.
DONE = "done"


class View(Struct, frozen=True):
    """What an agent makes of an observation."""

    state: str
    #: Moves that can be made here, and the environment's number of each.
    moves: Mapping[str, int]
    #: Steps to the goal as the crow flies; None where an agent cannot tell.
    distance: float | None = None

    def action(self, move: str) -> str:
        """The action's name, such as `14:right`."""
        return f"{self.state}{SEPARATOR}{move}"


class Game(Struct, frozen=True):
    """One environment as a scenario of the swarm."""

    name: str
    environment: str
    options: Mapping[str, Any]
    look: Callable[[Environment, Any, Mapping[str, Any]], View]
    #: Whether a game that ended with this reward, by its own rules and not by its step limit, was won.
    won: Callable[[float, bool], bool]
    #: Games of one node that make a session.
    session_games: int
    #: Actions a second of one node, so that the figures do not depend on how fast the machine is.
    pace: float
    #: Visits of its own that a model's word on an action is worth to an agent, at most. Less where chance plays little:
    #: what a model knows of an action is how games went under the many ways of play before it.
    trust: int

    def make(self) -> Environment:
        """A fresh environment."""
        made: Environment = gymnasium.make(self.environment, **self.options)
        return made


_LAKE_MOVES = {"left": 0, "down": 1, "right": 2, "up": 3}
_CARD_MOVES = {"stick": 0, "hit": 1}
_TAXI_MOVES = ("south", "north", "east", "west", "serve", "serve")
_PICK_UP, _DROP_OFF = 4, 5


def _look_at_lake(_environment: Environment, observation: Any, _info: Mapping[str, Any]) -> View:
    return View(str(int(observation)), _LAKE_MOVES)


def _look_at_cards(_environment: Environment, observation: Any, _info: Mapping[str, Any]) -> View:
    """The agent's own hand; with the dealer's card there would be ten times as many states to learn."""
    total, _dealer, usable_ace = observation
    return View(f"{'soft' if usable_ace else ''}{int(total)}", _CARD_MOVES)


def _look_at_town(environment: Environment, observation: Any, info: Mapping[str, Any]) -> View:
    """Where the taxi is and where it has to go next: to its passenger, and with it aboard to the destination."""
    town: Any = environment.unwrapped
    row, column, passenger, destination = (int(number) for number in town.decode(int(observation)))
    riding = passenger >= len(town.locs)
    target = destination if riding else passenger
    goal_row, goal_column = town.locs[target]
    idle = _PICK_UP if riding else _DROP_OFF
    moves = {
        _TAXI_MOVES[number]: number for number, legal in enumerate(info["action_mask"]) if legal and number != idle
    }
    # Walls are not seen, and the first half of the way is far from the goal.
    distance = abs(row - goal_row) + abs(column - goal_column) + (0 if riding else 10)
    return View(f"{row}{column}-{'RGYB'[target]}", moves, distance)


GAMES = {
    game.name: game
    for game in (
        Game(
            name="frozenlake",
            environment="FrozenLake-v1",
            options={"is_slippery": True},
            look=_look_at_lake,
            won=lambda reward, ended: ended and reward > 0,
            session_games=20,
            pace=350.0,
            trust=300,
        ),
        Game(
            name="blackjack",
            environment="Blackjack-v1",
            options={},
            look=_look_at_cards,
            won=lambda reward, ended: ended and reward > 0,
            session_games=50,
            pace=250.0,
            trust=200,
        ),
        Game(
            name="taxi",
            environment="Taxi-v4",
            options={"max_episode_steps": 60},
            look=_look_at_town,
            won=lambda _reward, ended: ended,
            session_games=5,
            pace=200.0,
            trust=20,
        ),
    )
}
