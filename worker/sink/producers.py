"""Who may publish for whom: broker users, which the broker vouches for, and the producer ids that are theirs.

The broker refuses a message whose `user_id` is not the user of its connection (406), so a `user_id` that arrives is
true. What it does not check everywhere is where a message goes: on RabbitMQ 3.10 topic permissions look at the routing
key alone, and the headers CC and BCC carry a copy past them into any scenario's queue (measured, 3.10.8). Such a copy
still has the routing key it was published with, so that is looked at here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from worker.broker.dead import SENT_BY, SENT_WITH
from worker.wire.names import RECORDS_EXCHANGE
from worker.wire.reasons import MAX_DETAIL, Reason, Rejection


class Sender(NamedTuple):
    """What the broker vouches for of a message's way here."""

    user_id: str | None
    routing_key: str | None

    def as_headers(self) -> dict[str, str]:
        """For the quarantine, so that a replay can check it again."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class Producers:
    """The setting SWARM_PRODUCERS: by broker user, patterns of producer ids, in which `*` is any text."""

    def __init__(self, patterns: Mapping[str, Sequence[str]], *, own_user: str) -> None:
        """`own_user` is the worker's: what it sends back from the dead letters says who had sent it first."""
        self._own_user = own_user
        self._allowed = {
            user: re.compile("|".join(re.escape(one).replace(r"\*", ".*") for one in own))
            for user, own in patterns.items()
        }

    def sender(self, user_id: str | None, routing_key: str | None, headers: Callable[[], Mapping[str, str]]) -> Sender:
        """Who published it first, and with which routing key; `headers` is asked only of what the worker sent back."""
        if user_id == self._own_user:
            said = headers()
            if SENT_WITH in said:
                return Sender(said.get(SENT_BY), said[SENT_WITH])
        return Sender(user_id, routing_key)

    def refuse_sender(self, sender: Sender, scenario: str) -> Rejection | None:
        """Why nothing of this sender is taken for the scenario, whatever stands in it."""
        if sender.user_id is None:
            return _refused("the message carries no user_id; set it to the user of the connection")
        if sender.user_id not in self._allowed:
            return _refused(f"SWARM_PRODUCERS does not name the user {sender.user_id!r}")
        key = sender.routing_key or ""
        if key not in (scenario, f"{RECORDS_EXCHANGE}.{scenario}") and not key.startswith(f"{scenario}."):
            return _refused(f"it was published with another scenario's routing key, {key[:80]!r}")
        return None

    def refuse_producer(self, sender: Sender, producer_id: str | None) -> Rejection | None:
        """Why this producer's batch is not taken of a sender whom `refuse_sender` let pass."""
        if producer_id is None:
            return _refused("$.producer_id: it and batch_seq must be there, since only named producers are taken")
        if sender.user_id is None or self._allowed[sender.user_id].fullmatch(producer_id) is None:
            return _refused(f"$.producer_id: {producer_id!r} is not one of the user {sender.user_id!r}")
        return None


def _refused(detail: str) -> Rejection:
    return Rejection(Reason.UNAUTHENTICATED_PRODUCER, detail[:MAX_DETAIL])
