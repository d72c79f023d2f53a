"""Names: of the exchanges, and those that may become part of a queue, a routing key or a path: slugs."""

from __future__ import annotations

import re
from typing import TypeGuard

RECORDS_EXCHANGE = "swarm.records"
DEAD_EXCHANGE = "swarm.dead"
LEARNING_EXCHANGE = "swarm.learning"
CONTROL_EXCHANGE = "swarm.control"

#: `swarm.#` of a scenario of this name would match `swarm.records.<S>`, the key that leads to the queue of <S>.
RESERVED_SCENARIO = RECORDS_EXCHANGE.partition(".")[0]

#: Scenario, producer and worker names. Always used with `fullmatch`: `$` would let a trailing newline through.
SLUG = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,62}[A-Za-z0-9])?")


def is_slug(text: object) -> TypeGuard[str]:
    """Whether `text` is 1 to 64 ASCII letters, digits, `-` or `_` that start and end with a letter or digit."""
    return isinstance(text, str) and SLUG.fullmatch(text) is not None
