"""At most so often: tokens for work that others ask for, and a gate for log lines that they could repeat for ever."""

from __future__ import annotations

from worker.clock import Clock


class TokenBucket:
    """`burst` at once, then `rate` a second."""

    def __init__(self, clock: Clock, *, burst: int, rate: float) -> None:
        self._clock = clock
        self._burst = float(burst)
        self._rate = rate
        self._tokens = float(burst)
        self._at = clock.monotonic()

    def take(self) -> bool:
        """Whether there was a token; it is gone now."""
        now = self._clock.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Sparing:
    """Lets one line of a kind through in `seconds`. The kinds are few and ours, never text from outside."""

    def __init__(self, clock: Clock, *, seconds: float = 60.0) -> None:
        self._clock = clock
        self._seconds = seconds
        self._last: dict[str, float] = {}
        self._held_back: dict[str, int] = {}

    def due(self, kind: str) -> int | None:
        """None while it is too soon; else for how many, since the last one, this line speaks."""
        now = self._clock.monotonic()
        times = self._held_back.get(kind, 0) + 1
        if kind in self._last and now - self._last[kind] < self._seconds:
            self._held_back[kind] = times
            return None
        self._last[kind] = now
        self._held_back[kind] = 0
        return times
