"""Answers to one command: who has spoken, and who or what is still waited for."""

from __future__ import annotations

import asyncio

from worker.wire.commands import Reply

#: How many workers hear a broadcast nobody can count over AMQP. So, after the first one's first word, others get this
#: long for theirs, in s; a worker says `accepted` within milliseconds, and later only where its store is away.
GATHER = 1.0
#: After so long a silence a broadcast is sent again, in s, for so long: its id makes that harmless, and the broker
#: says where its worker is gone.
_SILENCE, _SILENCE_MOST = 15.0, 240.0


class Answer(Reply, kw_only=True):
    """One worker's reply. `accepted` announces another; the rest are final."""

    #: Who answered; from the message's headers.
    worker: str = ""

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self.status != "accepted"


class Heard:
    """Who has answered one command so far, and what is still waited for."""

    def __init__(self, workers: int | None, *, first_words: bool, timeout: float) -> None:
        self.words: dict[str, Answer] = {}
        self._workers = workers
        self._first_words = first_words
        self._timeout = timeout
        self._began = self._last = asyncio.get_running_loop().time()
        self._gathered: float | None = None

    def note(self, reply: Answer) -> bool:
        """Take a reply; False for what was said before."""
        now = self._last = asyncio.get_running_loop().time()
        if self._gathered is None:
            self._gathered = now + GATHER
        before = self.words.get(reply.worker)
        if before is not None and (before.final or before.status == reply.status):
            return False
        self.words[reply.worker] = reply
        return True

    def enough(self) -> bool:
        """Whether everybody has said what is waited for."""
        now = asyncio.get_running_loop().time()
        said = sum(reply.final or self._first_words for reply in self.words.values())
        if self._workers is not None:
            return said >= self._workers
        if self._gathered is None or said < len(self.words):
            return False
        return now >= self._gathered or self.over()

    def look_again(self, routing_key: str) -> float:
        """When to look whether anything has changed, loop time."""
        moments = [self._began + self._timeout]
        if self._workers is None and self._gathered is not None and self._gathered > asyncio.get_running_loop().time():
            moments.append(self._gathered)
        if self._asks_again(routing_key):
            moments.append(self._last + _SILENCE)
        return min(moments)

    def silent(self, routing_key: str) -> bool:
        """Whether it has been quiet for so long that the command is sent again; counts as a word of ours."""
        now = asyncio.get_running_loop().time()
        if not self._asks_again(routing_key) or now < self._last + _SILENCE:
            return False
        self._last = now
        return True

    def _asks_again(self, routing_key: str) -> bool:
        # Not jobs: their queue takes the copy whether anybody lives or not, and a restarted worker answers by itself.
        return not routing_key.startswith("job.") and self._last + _SILENCE < self._began + _SILENCE_MOST

    def over(self) -> bool:
        """Whether the time is up."""
        return asyncio.get_running_loop().time() >= self._began + self._timeout

    def missing(self, routing_key: str) -> str:
        """Who has not ended, once the time is up."""
        waiting = [worker for worker, reply in self.words.items() if not reply.final]
        if waiting:
            hint = f"it was accepted by {', '.join(waiting)} and may still be carried out"
        else:
            hint = "is a worker of this scenario running, and does it obey this user and control key?"
        return f"no final answer to {routing_key!r} within {self._timeout:g} s; {hint}"

    def gone(self) -> str:
        """What became of a command whose workers have left."""
        waiting = ", ".join(worker for worker, reply in self.words.items() if not reply.final)
        return f"{waiting} accepted it and is gone, without a last word; what it left undone its next start carries on"
