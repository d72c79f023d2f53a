"""Judging: a delivery becomes a batch for the log or a reject for the quarantine. Never raises, whatever the input."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog

from worker.broker.port import Delivery
from worker.clock import Clock
from worker.episodes.rules import Rules
from worker.redaction import MASK, is_secret_name
from worker.sink.producers import Producers, Sender
from worker.store.port import Incoming, IncomingBatch, IncomingReject, QuarantineEntry
from worker.wire.codec import decode_batch
from worker.wire.reasons import MAX_DETAIL, Reason, Rejection
from worker.wire.records import ActionRecord, Batch

log = structlog.get_logger(__name__)

#: Action names remembered per scenario. Names come from outside, so somebody may send a new one with each record.
_REMEMBERED_NAMES = 10_000
#: How a gzip member begins; JSON never does, so a kept body tells by itself whether it is compressed.
GZIP_MAGIC = b"\x1f\x8b"
_FOUND_BY_THE_STORE = frozenset({Reason.KEY_CONFLICT, Reason.RECORD_CONFLICT, Reason.STORE_REFUSED})

_PROPERTIES_OF_A_REPLAY = frozenset({"user_id", "content_type", "content_encoding"})


class _TerminalNames(dict[str, bool]):
    """Which actions end a sequence: asked once a name and not once a record."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    def __missing__(self, action: str) -> bool:
        if len(self) >= _REMEMBERED_NAMES:
            self.clear()
        self[action] = terminal = self._rules.is_terminal(action)
        return terminal


class Judge:
    """Decodes and checks messages. `rules_of` gives a scenario's rules; it is asked once a scenario.

    With `producers`, only what the broker's users may publish is taken; without, what anybody does.
    """

    def __init__(self, rules_of: Callable[[str], Rules], clock: Clock, producers: Producers | None = None) -> None:
        self._rules_of = rules_of
        self._clock = clock
        self._producers = producers
        self._terminal: dict[str, _TerminalNames] = {}

    def delivery(self, delivery: Delivery) -> Incoming:
        """What comes of a message from the broker."""
        return self.message(
            delivery.scenario,
            delivery.body,
            content_type=delivery.content_type,
            content_encoding=delivery.content_encoding,
            sender=None if self._producers is None else _sender(self._producers, delivery),
            headers=lambda: kept_headers(delivery),
        )

    def sender_of(self, entry: QuarantineEntry) -> Sender | None:
        """Whom a replay of this entry must check again; None where that is nobody."""
        # What failed only at the store had passed that check when it came, and was kept without headers.
        if self._producers is None or entry.reason in _FOUND_BY_THE_STORE:
            return None
        headers = entry.headers
        return self._producers.sender(headers.get("user_id"), headers.get("routing_key"), lambda: headers)

    def deadly(self, delivery: Delivery, end: str) -> Incoming:
        """What comes of a message that ended the process which tried it."""
        return IncomingReject(
            scenario=delivery.scenario,
            reason=Reason.CRASHED_DECODER,
            detail=f"decoding or storing it ended the process: {end}",
            body=delivery.body,
            received_at_ms=self._clock.now_ms(),
            headers=kept_headers(delivery),
        )

    def message(
        self,
        scenario: str,
        body: bytes,
        *,
        content_type: str | None,
        content_encoding: str | None,
        sender: Sender | None = None,
        headers: Callable[[], Mapping[str, str]] = dict,
    ) -> Incoming:
        """What comes of these bytes; `headers` is asked only where they are rejected. No `sender`: unchecked."""
        now_ms = self._clock.now_ms()
        try:
            refusal = None if sender is None else self._refuse_sender(sender, scenario)
            found = refusal or decode_batch(
                body, scenario=scenario, content_type=content_type, content_encoding=content_encoding
            )
            if sender is not None and isinstance(found, Batch):
                found = self._refuse_producer(sender, found) or found
            if isinstance(found, Rejection):
                return IncomingReject(
                    scenario=scenario,
                    reason=found.reason,
                    detail=found.detail,
                    body=body,
                    received_at_ms=now_ms,
                    headers=headers(),
                )
            return IncomingBatch(
                scenario=scenario,
                batch=found,
                body=body,
                received_at_ms=now_ms,
                terminal_tasks=self._terminal_tasks(scenario, found),
            )
        except Exception as error:  # a fault of ours: this message waits in quarantine, its neighbours go on
            log.exception("judge_failed", scenario=scenario, size=len(body), error=type(error).__name__)
            return IncomingReject(
                scenario=scenario,
                reason=Reason.UNEXPECTED,
                detail=f"judging it raised {type(error).__name__}: {error}"[:MAX_DETAIL],
                body=body,
                received_at_ms=now_ms,
                headers={} if sender is None else sender.as_headers(),
            )

    def _refuse_sender(self, sender: Sender, scenario: str) -> Rejection | None:
        return None if self._producers is None else self._producers.refuse_sender(sender, scenario)

    def _refuse_producer(self, sender: Sender, batch: Batch) -> Rejection | None:
        return None if self._producers is None else self._producers.refuse_producer(sender, batch.identity.producer_id)

    def _terminal_tasks(self, scenario: str, batch: Batch) -> frozenset[str]:
        ends = self._terminal.get(scenario)
        if ends is None:
            ends = self._terminal[scenario] = _TerminalNames(self._rules_of(scenario))
        # The type is compared, not asked with isinstance: this runs once a record.
        return frozenset([r.task_id for r in batch.records if type(r) is ActionRecord and ends[r.action]])


def decoded_size(incoming: Incoming) -> int:
    """Bytes of the message in memory: those after decompression, which is what a group must be bounded by."""
    body = incoming.body
    if isinstance(incoming, IncomingBatch) and body.startswith(GZIP_MAGIC):
        # The codec took it as exactly one gzip member below its limit, so the trailer's length is right.
        return int.from_bytes(body[-4:], "little")
    return len(body)


def _sender(producers: Producers, delivery: Delivery) -> Sender:
    return producers.sender(delivery.user_id, delivery.routing_key, lambda: delivery.headers)


def kept_headers(delivery: Delivery) -> dict[str, str]:
    """The delivery's headers, with what a replay needs to read the body and to check its sender again."""
    # A header of the sender's own may be called like a property, which alone says how to read the body and who sent it.
    kept = {name: value for name, value in delivery.headers.items() if name not in _PROPERTIES_OF_A_REPLAY}
    # Whoever looks at the quarantine must not read there what somebody proved himself by.
    kept = {name: MASK if is_secret_name(name) else value for name, value in kept.items()}
    kept["routing_key"] = delivery.routing_key
    if delivery.user_id is not None:
        kept["user_id"] = delivery.user_id
    if delivery.content_type is not None:
        kept["content_type"] = delivery.content_type
    if delivery.content_encoding is not None:
        kept["content_encoding"] = delivery.content_encoding
    return kept
