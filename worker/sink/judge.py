"""Judging: a delivery becomes a batch for the log or a reject for the quarantine. Never raises, whatever the input."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog

from worker.broker.port import Delivery
from worker.clock import Clock
from worker.episodes.rules import Rules
from worker.store.port import Incoming, IncomingBatch, IncomingReject
from worker.wire.codec import decode_batch
from worker.wire.reasons import MAX_DETAIL, Reason, Rejection
from worker.wire.records import ActionRecord, Batch

log = structlog.get_logger(__name__)

#: Action names remembered per scenario. Names come from outside, so somebody may send a new one with each record.
_REMEMBERED_NAMES = 10_000
#: How a gzip member begins; JSON never does, so a kept body tells by itself whether it is compressed.
GZIP_MAGIC = b"\x1f\x8b"


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
    """Decodes and checks messages. `rules_of` gives a scenario's rules; it is asked once a scenario."""

    def __init__(self, rules_of: Callable[[str], Rules], clock: Clock) -> None:
        self._rules_of = rules_of
        self._clock = clock
        self._terminal: dict[str, _TerminalNames] = {}

    def delivery(self, delivery: Delivery) -> Incoming:
        """What comes of a message from the broker."""
        return self.message(
            delivery.scenario,
            delivery.body,
            content_type=delivery.content_type,
            content_encoding=delivery.content_encoding,
            headers=lambda: _kept_headers(delivery),
        )

    def deadly(self, delivery: Delivery, end: str) -> Incoming:
        """What comes of a message whose decoding ended the process that tried it."""
        return IncomingReject(
            scenario=delivery.scenario,
            reason=Reason.CRASHED_DECODER,
            detail=f"decoding it ended the process: {end}",
            body=delivery.body,
            received_at_ms=self._clock.now_ms(),
            headers=_kept_headers(delivery),
        )

    def message(
        self,
        scenario: str,
        body: bytes,
        *,
        content_type: str | None,
        content_encoding: str | None,
        headers: Callable[[], Mapping[str, str]] = dict,
    ) -> Incoming:
        """What comes of these bytes; `headers` is asked only where they are rejected."""
        now_ms = self._clock.now_ms()
        try:
            found = decode_batch(body, scenario=scenario, content_type=content_type, content_encoding=content_encoding)
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
            )

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


def _kept_headers(delivery: Delivery) -> dict[str, str]:
    """The delivery's headers with the two properties that a replay needs to read the body again."""
    kept = dict(delivery.headers)
    if delivery.content_type is not None:
        kept["content_type"] = delivery.content_type
    if delivery.content_encoding is not None:
        kept["content_encoding"] = delivery.content_encoding
    return kept
