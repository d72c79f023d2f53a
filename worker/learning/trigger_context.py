"""What a trigger may look at: counts and times of one scenario, and its newest outcomes (the original's)."""

from __future__ import annotations

from msgspec import Struct


class TriggerError(Exception):
    """A trigger could not say; the message is for the operator. It counts as "no" and is shown."""


class TriggerMetrics(Struct, frozen=True, kw_only=True):
    """Outcomes of some closed episodes: how many are known, the share of successes, the mean score."""

    sample_count: int
    success_rate: float
    avg_score: float = 0.0

    def before(self, newest: TriggerMetrics) -> TriggerMetrics | None:
        """These outcomes without the newest of them; None where nothing is left."""
        left = self.sample_count - newest.sample_count
        if left <= 0:
            return None
        successes = self.success_rate * self.sample_count - newest.success_rate * newest.sample_count
        score = self.avg_score * self.sample_count - newest.avg_score * newest.sample_count
        return TriggerMetrics(
            sample_count=left, success_rate=min(1.0, max(0.0, successes / left)), avg_score=score / left
        )


class TriggerContext(Struct, frozen=True, kw_only=True):
    """What a trigger may look at. Times in Unix ms; None of the last training: never trained."""

    #: Closed episodes of one learn model, as in the original, which ran but one: several cut the same actions.
    event_count: int = 0
    session_count: int = 0
    other_news: bool = False  # an episode of any learn model came since the last training
    now_ms: int = 0
    first_record_at_ms: int | None = None
    last_train_at_ms: int | None = None
    last_train_count: int = 0
    last_train_sessions: int = 0
    #: The newest outcomes, and those of before them.
    metrics: TriggerMetrics | None = None
    earlier: TriggerMetrics | None = None

    @property
    def new_episodes(self) -> int:
        """Episodes since the last training; never below 0, though a rebuild may leave fewer than there were."""
        return max(0, self.event_count - self.last_train_count)

    @property
    def new_sessions(self) -> int:
        """Sessions since the last training, never below 0."""
        return max(0, self.session_count - self.last_train_sessions)

    @property
    def anything_new(self) -> bool:
        """Whether there is an episode or a session that the last training did not see."""
        return self.other_news or self.new_episodes > 0 or self.new_sessions > 0

    @property
    def elapsed_ms(self) -> int | None:
        """Time since the last training, or since the first record; None without either.

        0 where the clock was set back.
        """
        since = self.first_record_at_ms if self.last_train_at_ms is None else self.last_train_at_ms
        return None if since is None else max(0, self.now_ms - since)
