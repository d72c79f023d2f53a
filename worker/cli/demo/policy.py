"""How an agent chooses: UCB1, over its own statistics alone, or over the model's with its own since then on top.

The rule is the same with and without a model. What a model changes is how much is known (the experience of the whole
swarm comes first) and how much is explored (its `ucb1_c`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from random import Random

from msgspec import Struct

from worker.client.models import CurrentModel
from worker.learning.offline_model import OfflineModel

#: How an action says that it was chosen this way.
SELECTION_LOGIC = "UCB1"
#: Exploration without a model: the number in the original's examples.
FIRST_C = 1.41
#: Where an action reports how much nearer it came, this share of its worth is how its games ended; the rest is that.
OUTCOME_WEIGHT = 0.8


class Arm(Struct):
    """What is known of one action."""

    visits: float = 0.0
    won: float = 0.0  # visits in games that were won
    nearness: float = 0.0  # sum over the visits that report a KPI, each 0-1
    reports: float = 0.0

    def at_most(self, visits: int) -> Arm:
        """The same worth from no more than so many visits."""
        share = min(1.0, visits / self.visits) if self.visits else 1.0
        return Arm(self.visits * share, self.won * share, self.nearness * share, self.reports * share)

    def __add__(self, other: Arm) -> Arm:
        return Arm(
            self.visits + other.visits,
            self.won + other.won,
            self.nearness + other.nearness,
            self.reports + other.reports,
        )

    @property
    def worth(self) -> float:
        """Mean reward of a visit, 0-1."""
        share = self.won / self.visits
        if not self.reports:
            return share
        return OUTCOME_WEIGHT * share + (1 - OUTCOME_WEIGHT) * self.nearness / self.reports


class Choice(Struct, frozen=True):
    """The action that was chosen, and how probable that was."""

    action: str
    propensity: float


class Policy:
    """One agent's mind."""

    def __init__(self, random: Random, *, trust: int) -> None:
        """`trust`: visits of its own that a model's word on an action is worth to the agent, at most."""
        self._random = random
        self._trust = trust
        self._own: dict[str, Arm] = {}
        self._prior: Mapping[str, Arm] = {}
        self._c = FIRST_C
        #: The model that is followed; None: none yet.
        self.model: CurrentModel | None = None

    def follow(self, model: CurrentModel | None) -> None:
        """Go on with this model: what was learnt here before is in it, so the agent's own statistics begin anew."""
        if model is None or model is self.model:
            return
        self.model = model
        self._prior = {action: arm.at_most(self._trust) for action, arm in prior_of(model.model).items()}
        self._c = model.model.parameters.ucb1_c
        self._own = {}

    def choose(self, actions: Sequence[str]) -> Choice:
        """One of these; what was never tried comes first, ties are decided by chance."""
        known = [self._known(action) for action in actions]
        total = sum((arm.visits for arm in known), 0.0)
        scores = [self._score(arm, total) for arm in known]
        highest = max(scores)
        best = [action for action, score in zip(actions, scores, strict=True) if score == highest]
        return Choice(self._random.choice(best), 1 / len(best))

    def learn(self, steps: Iterable[tuple[str, float | None]], *, won: bool) -> None:
        """Note a game's end: its actions, each with its KPI (-1 to 1) where it has one."""
        for action, kpi in steps:
            arm = self._own.setdefault(action, Arm())
            arm.visits += 1
            arm.won += won
            if kpi is not None:
                arm.nearness += (1 + kpi) / 2
                arm.reports += 1

    def _known(self, action: str) -> Arm:
        own, prior = self._own.get(action), self._prior.get(action)
        if own is None or prior is None:
            return own or prior or Arm()
        return own + prior

    def _score(self, arm: Arm, total: float) -> float:
        if not arm.visits:
            return math.inf
        return arm.worth + self._c * math.sqrt(math.log(total) / arm.visits)


def prior_of(model: OfflineModel) -> dict[str, Arm]:
    """What a model knows of each action: how the games ended in which it was taken, and its mean KPI.

    A name here says the state as well as the move, so the action before does not matter and is summed over.
    """
    arms: dict[str, Arm] = {}
    for row in model.transitions:
        arm = arms.setdefault(row.action, Arm())
        arm.visits += row.successes + row.failures
        arm.won += row.successes
    for statistic in model.actions:
        known = arms.get(statistic.action)
        if known is not None and statistic.mean_kpi is not None:
            known.nearness = (1 + statistic.mean_kpi) / 2 * known.visits
            known.reports = known.visits
    return arms
