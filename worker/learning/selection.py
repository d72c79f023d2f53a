"""How well each selection strategy (UCB1, Greedy, Thompson, ...) did, and which one to use (the original's)."""

from __future__ import annotations

from msgspec import Struct, field

from worker.learning.rates import success_rate

UCB1 = "ucb1"
GREEDY = "greedy"
THOMPSON = "thompson"

#: Defaults of the original's adaptive provider.
MATURITY_THRESHOLD = 5
ERROR_RATE_THRESHOLD = 0.45


class StrategyStats(Struct, kw_only=True):
    """What one strategy's choices led to: actions, and episodes that ended under it."""

    visits: int = 0
    successes: int = 0
    failures: int = 0
    episodes_success: int = 0
    episodes_failure: int = 0

    @property
    def episodes(self) -> int:
        """Episodes with a known outcome."""
        return self.episodes_success + self.episodes_failure

    def effectiveness(self) -> float:
        """Success rate over episodes if any ended under it, else over its actions."""
        if self.episodes:
            return success_rate(self.episodes_success, self.episodes)
        return success_rate(self.successes, self.visits)


class StrategySwitchEvent(Struct, frozen=True, kw_only=True):
    """A change of strategy: after how many visits, and at what success rate of the one that was left."""

    from_: str | None = field(default=None, name="from")
    to: str
    visits: int = 0
    success_rate: float = 0.0


class SelectionPerformance(Struct, kw_only=True):
    """Statistics per strategy name, the history of switches, and the strategy in use."""

    strategy_stats: dict[str, StrategyStats] = {}
    switch_history: list[StrategySwitchEvent] = []
    current_strategy: str | None = None
    strategy_start_visits: int = 0
    strategy_start_success_rate: float = 0.0

    def start_strategy(self, name: str, visits: int, rate: float) -> None:
        """Use `name` from now on; a switch from another strategy enters the history."""
        if self.current_strategy is not None and self.current_strategy != name:
            self.switch_history.append(
                StrategySwitchEvent(from_=self.current_strategy, to=name, visits=visits, success_rate=rate)
            )
        self.strategy_stats.setdefault(name, StrategyStats())
        self.current_strategy = name
        self.strategy_start_visits = visits
        self.strategy_start_success_rate = rate

    def record_action(self, ok: bool) -> None:  # noqa: FBT001 - the original's signature: record_action(ok)
        """Count one action of the current strategy; without one, nothing."""
        if self.current_strategy is None:
            return
        stats = self.strategy_stats[self.current_strategy]
        stats.visits += 1
        stats.successes += ok
        stats.failures += not ok

    def record_episode_end(self, ok: bool) -> None:  # noqa: FBT001 - the original's signature
        """Credit the episode to the strategy in use at its end; without one, nothing."""
        if self.current_strategy is None:
            return
        stats = self.strategy_stats[self.current_strategy]
        stats.episodes_success += ok
        stats.episodes_failure += not ok

    def strategy_effectiveness(self, name: str) -> float | None:
        """Success rate of one strategy, None where it was never used."""
        stats = self.strategy_stats.get(name)
        if stats is None or (stats.visits == 0 and stats.episodes == 0):
            return None
        return stats.effectiveness()

    def best_strategy(self, min_episodes: int = 0) -> tuple[str, float] | None:
        """The most effective strategy of at least `min_episodes` known episodes; ties: more episodes, then name."""
        ranked = sorted(
            (-stats.effectiveness(), -stats.episodes, name)
            for name, stats in self.strategy_stats.items()
            if stats.episodes >= min_episodes and (stats.visits or stats.episodes)
        )
        if not ranked:
            return None
        effectiveness, _, name = ranked[0]
        return name, -effectiveness

    def recommended_strategy(
        self,
        failure_rate: float,
        visits: int,
        *,
        maturity_threshold: int = MATURITY_THRESHOLD,
        error_rate_threshold: float = ERROR_RATE_THRESHOLD,
    ) -> str:
        """The original's adaptive rule: immature -> UCB1; mature with few errors -> Greedy, with many -> Thompson."""
        if visits < maturity_threshold:
            return UCB1
        return GREEDY if failure_rate <= error_rate_threshold else THOMPSON
