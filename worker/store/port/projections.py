"""Projections: what is derived from the log, and can be dropped and made again from it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from worker.episodes.episode import Episode
from worker.episodes.task import UNNAMED, TaskView
from worker.learning.bounds import FAMILIES, Family, Take
from worker.learning.counts import BucketedCounts, Counts
from worker.learning.shares import ProducerTotals
from worker.wire.records import DependencyGraphRecord, LearnStatsRecord

#: A task of more actions than this is not projected anew for each late record: only once none came for a millisecond
#: an action. All of it is read and cut each time: 100,000 actions take 5 to 10 s of processor time (measured).
HUGE_TASK = 4_000


class PendingTask(Struct, kw_only=True):
    """A task that may be projected now: all of its actions as of `upto`, and what was projected of it before."""

    task: TaskView
    upto: int  # highest batch_no among its actions and its session
    session_batch_no: int | None
    projected_upto: int | None  # None: never projected
    projected_idle: bool


class Session(Struct, kw_only=True):
    """One ended session with its place in the log."""

    scenario: str
    batch_no: int
    received_at_ms: int
    record: LearnStatsRecord


class PendingSession(Session, kw_only=True):
    """A session whose statistics were not counted yet."""

    producer: str = UNNAMED


class PendingGraph(Struct, kw_only=True):
    """A dependency-graph record that was not made an episode yet."""

    scenario: str
    batch_no: int
    index: int
    received_at_ms: int
    record: DependencyGraphRecord


Pending: TypeAlias = PendingTask | PendingSession | PendingGraph


class Projection(Struct, kw_only=True):
    """What came of a pending item: its episodes (all of them, replacing earlier ones) and the change of the counts."""

    of: Pending
    episodes: list[Episode]
    counts: BucketedCounts
    #: An open sequence is left in the task, so it becomes pending once more when it is idle, though no record comes.
    open_tail: bool = False


class EpisodeFilter(Struct, kw_only=True):
    """The original's `EpisodeFilter`; times are Unix ms, an absent field does not filter."""

    learn_model: str | None = None
    outcome: Literal["success", "failure", "timeout", "unknown"] | None = None
    min_score: float | None = None
    group_id: str | None = None
    session_id: str | None = None
    task_id: str | None = None
    worker_id: int | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    holdout: bool | None = None
    newest_first: bool = False
    limit: int | None = None
    offset: int = 0


class Projections(Protocol):
    """What is derived from the log, and can be dropped and rebuilt from it."""

    async def pending(
        self, *, now_ms: int, idle_ms: int, limit: int, scenarios: Sequence[str] | None = None
    ) -> list[Pending]:
        """Items of `scenarios` (None: of all) that are ready, at least one; `limit` bounds the number of actions read.

        In the order of the log: a session comes after those of its tasks that were closed by then.

        Tasks that are dirty and closed (terminal action, ended session, idle for `idle_ms`) or were projected before
        (a huge one once it rests: see `HUGE_TASK`),
        tasks projected with an `open_tail` that are idle now, sessions and graphs not counted yet.
        """
        ...

    async def project(self, projections: Sequence[Projection]) -> None:
        """Replace the episodes, add the counts, mark as projected: one transaction.

        Items that changed since they were read stay pending.
        """
        ...

    async def rebuild(self, scenario: str, *, under: str | None = None) -> None:
        """Drop every projection of the scenario and make all of its log pending again.

        `under` is remembered as the rules that what is projected from now on goes by; None leaves what was remembered.
        """
        ...

    async def projected_under(self, scenario: str) -> str | None:
        """The rules remembered by `rebuild`; None where there are none."""
        ...

    def episodes(self, scenario: str, where: EpisodeFilter) -> AsyncIterator[Episode]:
        """Episodes of a scenario by the time they ended, oldest or newest first."""
        ...

    async def count_episodes(self, scenario: str, where: EpisodeFilter) -> int:
        """How many there are; `limit` and `offset` do not count."""
        ...

    async def sessions(
        self,
        scenario: str,
        *,
        latest: int | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
        group_id: str | None = None,
        phase: str | None = None,
        session_id: str | None = None,
        most_of_one: int | None = None,
    ) -> list[Session]:
        """Ended sessions, newest first by their own time.

        `most_of_one` takes no more than so many of any one producer, out of the newest 100,000 sessions.
        """
        ...

    async def counts(
        self, scenario: str | None, *, holdout: bool | None = None, since_day: int | None = None
    ) -> Counts:
        """The aggregates, summed over days; `scenario` None sums over all scenarios."""
        ...

    async def producers(self, scenario: str) -> dict[str, ProducerTotals]:
        """What the aggregates hold of each producer: of the log where it saw any action, else of the learn stats."""
        ...

    async def learnable_counts(
        self,
        scenario: str,
        take: Take,
        *,
        holdout: bool,
        weights: Mapping[str, int],
        families: Sequence[Family] = FAMILIES,
    ) -> None:
        """Hand the aggregates to `take`, a chunk of rows at a time and all as of one moment, whatever is stored.

        Of each of `families` the best supported names, the others summed (`worker.learning.bounds`); counts of the
        producers in `weights` are multiplied by so many billionths. `take` may be called in a thread of the store's.
        """
        ...

    async def graphs(self, scenario: str, *, latest: int) -> list[PendingGraph]:
        """The newest dependency-graph records, newest first, projected or not."""
        ...
