"""The demo's games: what agents see and may do, and that what they tell is a whole episode each."""

from __future__ import annotations

import pytest

from worker.cli.demo.games import DONE, GAMES, SEPARATOR
from worker.cli.demo.playing import Played, Player
from worker.client.checking import checked_json
from worker.client.models import CurrentModel
from worker.learning.offline_model import MOST_ACTIONS, OfflineModel
from worker.wire.records import ActionRecord


def player(game: str, *, seed: int = 1) -> Player:
    return Player(GAMES[game], agent=f"n-{game}", worker_id=7, seed=seed)


def records(played: Played) -> list[ActionRecord]:
    return [event.to_record() for event in played.events]


@pytest.mark.parametrize("game", GAMES)
def test_a_game_is_a_task_of_its_own_that_ends_with_done_and_who_won(game: str) -> None:
    """So that an episode closes at once, with its own outcome."""
    agent = player(game)
    games = [agent.play("s-1") for _ in range(30)]
    assert len({records(played)[0].task_id for played in games}) == 30
    for played in games:
        actions = records(played)
        assert len({action.task_id for action in actions}) == 1
        assert [action.action == DONE for action in actions] == [False] * (len(actions) - 1) + [True]
        assert actions[-1].success is played.won
        assert [action.tick for action in actions] == list(range(len(actions)))
        assert len({action.event_id for action in actions}) == len(actions)
        assert {(action.session_id, action.worker_id) for action in actions} == {("s-1", 7)}


@pytest.mark.parametrize("game", GAMES)
def test_every_step_tells_how_it_was_chosen_and_the_worker_takes_it(game: str) -> None:
    for action in records(player(game).play("s-1"))[:-1]:
        assert action.selection_logic == "UCB1"
        assert action.candidates is not None
        assert action.action in action.candidates
        assert action.propensity is not None
        assert action.policy_version is None
        checked_json(action, "S")  # raises what the worker would refuse


def test_a_game_under_a_model_says_so() -> None:
    agent = player("frozenlake")
    agent.policy.follow(CurrentModel(scenario="S", model_id="m-3", version=3, model=OfflineModel(scenario="S")))
    played = agent.play("s-1")
    assert played.version == 3
    assert records(played)[0].policy_version == "m-3"


@pytest.mark.parametrize("game", GAMES)
def test_the_same_dice_give_the_same_games(game: str) -> None:
    first, second = player(game, seed=5), player(game, seed=5)
    for _ in range(10):
        one, other = first.play("s"), second.play("s")
        assert [event.action for event in one.events] == [event.action for event in other.events]


@pytest.mark.parametrize("game", GAMES)
def test_what_agents_can_do_fits_a_model(game: str) -> None:
    """An action that is left out of a model for want of room could not be followed."""
    agent = player(game)
    seen = {action.action for _ in range(2_000 if game == "blackjack" else 300) for action in records(agent.play("s"))}
    assert len(seen) <= MOST_ACTIONS
    assert all(name == DONE or SEPARATOR in name for name in seen)


def test_only_taxi_knows_how_near_it_came() -> None:
    """Its KPI is the way gained; a goal reached is 1."""
    assert all(action.kpi is None for action in records(player("frozenlake").play("s")))
    kpis = [action.kpi for action in records(player("taxi").play("s"))[:-1]]
    assert all(kpi is not None and -1 <= kpi <= 1 for kpi in kpis)
    assert {kpi for kpi in kpis if kpi is not None and kpi > 0}
