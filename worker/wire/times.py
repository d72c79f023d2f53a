"""When something happened, by what its record says and when the record came in."""

from __future__ import annotations

#: How far ahead of ours a producer's clock is believed, in ms: a day covers any time zone taken for UTC.
AHEAD_MS = 86_400_000


def happened_at(timestamp_ms: int | None, received_at_ms: int) -> int:
    """The record's own time (Unix ms); where it has none, or one that is still to come, when it came in.

    Newest first is how an analysis chooses sessions and a trigger outcomes: a few records from the year 3000 would be
    the newest for ever.
    """
    if timestamp_ms is None or timestamp_ms > received_at_ms + AHEAD_MS:
        return received_at_ms
    return timestamp_ms
