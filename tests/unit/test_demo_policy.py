"""How the demo's agents choose, and what they make of a model."""

from __future__ import annotations

from random import Random

from worker.cli.demo.policy import FIRST_C, OUTCOME_WEIGHT, Arm, Policy, prior_of
from worker.client.models import CurrentModel
from worker.learning.offline_model import ActionStatistic, OfflineModel, OptimalParameters, TransitionStatistic


def step(previous: str | None, action: str, successes: int, failures: int) -> TransitionStatistic:
    return TransitionStatistic(
        previous=previous, action=action, successes=successes, failures=failures, success_rate=0.5, low=0.0, high=1.0
    )


def statistic(action: str, mean_kpi: float | None) -> ActionStatistic:
    return ActionStatistic(
        action=action, visits=9, successes=9, failures=0, success_rate=1.0, low=0.0, high=1.0, mean_duration_ms=0.0,
        mean_kpi=mean_kpi,
    )  # fmt: skip


def current(model: OfflineModel) -> CurrentModel:
    return CurrentModel(scenario="S", model_id="m", version=1, model=model)


def policy(*, trust: int = 100, seed: int = 0) -> Policy:
    return Policy(Random(seed), trust=trust)


def test_what_was_never_tried_comes_first_and_ties_are_told_as_chance() -> None:
    mind = policy()
    assert mind.choose(["a", "b"]).propensity == 0.5
    mind.learn([("a", None)], won=True)
    choice = mind.choose(["a", "b"])
    assert (choice.action, choice.propensity) == ("b", 1.0)


def test_what_wins_is_chosen_more_often_and_what_loses_is_still_tried() -> None:
    """UCB1 explores for ever, and less and less."""
    mind = policy()
    chosen = []
    for _ in range(400):
        action = mind.choose(["good", "bad"]).action
        mind.learn([(action, None)], won=action == "good")
        chosen.append(action)
    assert chosen[200:].count("bad") > 0
    assert chosen.count("bad") < 40


def test_a_model_says_of_an_action_how_games_ended_with_it_whatever_came_before() -> None:
    """The name holds the state, so contexts are summed."""
    model = OfflineModel(
        scenario="S",
        transitions=[step(None, "1:up", 3, 1), step("0:up", "1:up", 2, 4), step("0:up", "1:down", 0, 5)],
        actions=[statistic("1:up", 0.5), statistic("1:down", None), statistic("unseen", 1.0)],
    )
    assert prior_of(model) == {
        "1:up": Arm(visits=10, won=5, nearness=7.5, reports=10),
        "1:down": Arm(visits=5, won=0),
    }


def test_with_a_model_the_rule_stays_and_its_counts_and_exploration_come_in() -> None:
    """Own statistics begin anew, since the model has them."""
    mind = policy(trust=1_000)
    for _ in range(50):
        mind.learn([("bad", None)], won=True)
    model = OfflineModel(
        scenario="S",
        parameters=OptimalParameters(ucb1_c=0.1),
        transitions=[step(None, "good", 90, 10), step(None, "bad", 10, 90)],
    )
    mind.follow(current(model))
    assert {mind.choose(["good", "bad"]).action for _ in range(20)} == {"good"}
    for _ in range(400):
        mind.learn([("good", None)], won=False)
    assert mind.choose(["good", "bad"]).action == "good", "0.18 + 0.1 * 0.12 is above 0.1 + 0.1 * 0.26"
    for _ in range(4_000):
        mind.learn([("good", None)], won=False)
    assert mind.choose(["good", "bad"]).action == "bad"


def test_a_model_is_trusted_as_far_as_the_agent_trusts() -> None:
    """What it knows is worth `trust` visits at most, so that experience with it counts."""
    mind = policy(trust=10)
    mind.follow(current(OfflineModel(scenario="S", transitions=[step(None, "a", 900, 100), step(None, "b", 0, 2)])))
    for _ in range(200):
        mind.learn([("a", None)], won=False)
        mind.learn([("b", None)], won=True)
    assert mind.choose(["a", "b"]).action == "b"
    assert Arm(visits=1000, won=900).at_most(10) == Arm(visits=10, won=9)
    assert Arm(visits=2, won=1).at_most(10) == Arm(visits=2, won=1)


def test_the_same_model_again_and_no_model_change_nothing() -> None:
    """A node looks after every game."""
    mind = policy()
    model = current(OfflineModel(scenario="S", transitions=[step(None, "a", 1, 0)]))
    mind.follow(model)
    mind.learn([("b", None)], won=True)
    mind.follow(model)
    mind.follow(None)
    assert mind.model is model
    assert mind.choose(["b", "c"]).action == "c", "b was tried since"


def test_nearness_counts_where_it_is_reported() -> None:
    """An action that comes nearer is worth more, though neither wins."""
    assert Arm(visits=4, won=1).worth == 0.25
    nearer = Arm(visits=4, won=1, nearness=3, reports=4)
    assert nearer.worth == OUTCOME_WEIGHT * 0.25 + (1 - OUTCOME_WEIGHT) * 0.75
    mind = policy()
    for _ in range(2_000):
        mind.learn([("near", 1.0), ("far", -1.0)], won=False)
    assert mind.choose(["near", "far"]).action == "near"
    assert FIRST_C == 1.41
