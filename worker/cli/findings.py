"""What `swarm-worker check` says of one thing that it looked at."""

from __future__ import annotations

from msgspec import Struct


class Finding(Struct, frozen=True, kw_only=True):
    """One thing looked at."""

    what: str
    good: bool
    detail: str
