"""Which tasks are trained on and which are held out: all attempts at one lie on one side, whichever model tells them.

A task is what attempts share: their `group_id`. Where records name none their session stands for it, and where there is
no session either the one attempt by itself. A task's side follows from its name alone, so more data moves none from
the side that is trained on to the one that is held out. Pure.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from msgspec import Struct

from worker.episodes.cut import holdout, holdout_hash, holdout_key
from worker.episodes.episode import Episode


def attempted(episode: Episode) -> str:
    """The name of the task that an episode is an attempt at."""
    return episode.group_id or episode.session_id or episode.task_id or episode.episode_id


class Split(Struct, frozen=True):
    """The sides of one scenario's tasks; `share` (0-1) is what is held out of many."""

    scenario: str
    share: float

    def is_held_out(self, name: str) -> bool:
        """Whether a task is held out, whatever others there are."""
        return holdout(holdout_key(self.scenario, name), self.share)

    def one_of_few(self, names: AbstractSet[str]) -> set[str]:
        """The task to hold out where `is_held_out` holds out none, so that the gate can tell: that of the lowest hash.

        With more tasks it may be trained on after all, and a new one is held out in its place. Never the other way
        round, but for a first task that was alone: no adapter that was judged is judged by what it has learnt.
        """
        by_hash = sorted(names, key=lambda name: (holdout_hash(holdout_key(self.scenario, name)), name))
        return set(by_hash[:1])
