"""One agent at one game: plays it to its end and tells what it did, as events for the worker."""

from __future__ import annotations

from itertools import count
from random import Random
from time import time_ns

from msgspec import Struct

from worker.cli.demo.games import DONE, Game
from worker.cli.demo.policy import SELECTION_LOGIC, Policy
from worker.client.actions import ActionContext, ActionEvent, ActionEventBuilder, ActionEventResult


class Played(Struct, frozen=True):
    """One game."""

    events: list[ActionEvent]
    won: bool
    #: Version of the model that was followed; None without one.
    version: int | None


class Player:
    """Plays one game after another, each a task of its own."""

    def __init__(self, game: Game, *, agent: str, worker_id: int, seed: int) -> None:
        self.game = game
        self.policy = Policy(Random(seed), trust=game.trust)  # noqa: S311  it plays games
        self._agent = agent
        self._worker_id = worker_id
        self._seed: int | None = seed  # for the first game; the environment goes on from there
        self._environment = game.make()
        self._numbers = count()

    def play(self, session_id: str) -> Played:
        """Play one game to its end."""
        policy, game, environment = self.policy, self.game, self._environment
        task_id = f"{self._agent}-{next(self._numbers)}"
        model = policy.model
        observation, info = environment.reset(seed=self._seed)
        self._seed = None
        view = game.look(environment, observation, info)
        events: list[ActionEvent] = []
        steps: list[tuple[str, float | None]] = []
        over = won = False
        while not over:
            actions = {view.action(move): number for move, number in view.moves.items()}
            choice = policy.choose(list(actions))
            observation, reward, ended, cut_short, info = environment.step(actions[choice.action])
            seen = game.look(environment, observation, info)
            over, won = ended or cut_short, game.won(float(reward), ended)
            kpi = _kpi(view.distance, seen.distance, won=won)
            context = ActionContext(
                selection_logic=SELECTION_LOGIC,
                previous_action=steps[-1][0] if steps else None,
                propensity=choice.propensity,
                candidates=tuple(actions),
                policy_version=None if model is None else model.model_id,
            )
            # A move always succeeds as a move; whether it was right, the game's end tells.
            result = ActionEventResult(success=True, kpi_contribution=kpi)
            events.append(self._event(len(steps), choice.action, task_id, session_id, result, context))
            steps.append((choice.action, kpi))
            view = seen
        result = ActionEventResult.succeeded() if won else ActionEventResult.failure(_defeat(ended=ended))
        events.append(self._event(len(steps), DONE, task_id, session_id, result, ActionContext()))
        policy.learn(steps, won=won)
        return Played(events, won, None if model is None else model.version)

    def _event(
        self, tick: int, action: str, task_id: str, session_id: str, result: ActionEventResult, context: ActionContext
    ) -> ActionEvent:
        return (
            ActionEventBuilder(tick, self._worker_id, action)
            .task_id(task_id)
            .session_id(session_id)
            .result(result)
            .context(context)
            .timestamp(time_ns() // 1_000_000)
            .build()
        )


def _kpi(before: float | None, after: float | None, *, won: bool) -> float | None:
    """Nearness to the goal that a step gained, -1 to 1; None where the agent cannot tell."""
    if before is None or after is None:
        return None
    return 1.0 if won else max(-1.0, min(1.0, before - after))


def _defeat(*, ended: bool) -> str:
    return "the game was lost" if ended else "out of steps"
