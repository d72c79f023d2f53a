"""Why a message was refused: stable codes that operators, metrics and the quarantine table rely on."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from msgspec import Struct

#: Characters of a rejection's detail. It names the place at fault and never carries the body.
MAX_DETAIL = 300


class Reason(StrEnum):
    """A code that never changes its meaning, with one line for people. New ones may be added, none is reused."""

    explanation: str

    def __new__(cls, code: str, explanation: str) -> Self:
        """A member that is its code and carries its explanation."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.explanation = explanation
        return member

    # -- the body before it is JSON
    EMPTY_BODY = "empty_body", "the body has no bytes"
    TOO_LARGE = "too_large", "the body is over the byte limit, before or after decompression"
    BAD_CONTENT_TYPE = "bad_content_type", "the content type is not application/json in UTF-8"
    BAD_CONTENT_ENCODING = "bad_content_encoding", "the content encoding is neither absent, identity nor gzip"
    BAD_COMPRESSION = "bad_compression", "the gzip data is damaged, cut short, or followed by something else"
    NOT_UTF8 = "not_utf8", "the text is not plain UTF-8 (another encoding, a byte order mark, broken bytes)"
    NOT_JSON = "not_json", "the text is not one JSON value"

    # -- JSON beyond the limits
    TOO_DEEP = "too_deep", "arrays and objects are nested beyond the limit"
    TOO_MANY_VALUES = "too_many_values", "there are more JSON values than any real batch has"
    BAD_TEXT = "bad_text", "a string holds NUL or a lone surrogate, which not every store can keep"
    STRING_TOO_LONG = "string_too_long", "a string is over the character limit"
    BAD_NUMBER = "bad_number", "a number is NaN, infinite or beyond a signed 64-bit integer"

    # -- a batch that cannot be one
    UNKNOWN_VERSION = "unknown_version", "the schema_version is not one this worker reads"
    BAD_SCHEMA = "bad_schema", "a field is missing, of the wrong type or out of range"
    NO_RECORDS = "no_records", "the batch holds no records"
    TOO_MANY_RECORDS = "too_many_records", "the batch holds more records than the limit"
    BAD_STATS = "bad_stats", "the stats_json of a session is not learn statistics"
    SCENARIO_MISMATCH = "scenario_mismatch", "learn stats name another scenario than the one they were sent to"

    # -- found by those who know more than the body
    UNAUTHENTICATED_PRODUCER = "unauthenticated_producer", "the AMQP user may not publish for this producer"
    KEY_CONFLICT = "key_conflict", "a batch of this identity is stored with another content"
    RECORD_CONFLICT = "record_conflict", "a record of this identity is stored with another content"
    CRASHED_DECODER = "crashed_decoder", "decoding or storing the body ended the process that tried it, twice"
    STORE_REFUSED = "store_refused", "the store refused the data for what it is"
    UNEXPECTED = "unexpected", "the worker failed on this message in a way nobody foresaw; please report it"

    # -- commands
    UNKNOWN_COMMAND = "unknown_command", "there is no such command"
    WRONG_ROUTE = "wrong_route", "the command came with a routing key of another command or scenario"
    EXPIRED = "expired", "the command's time is over"
    BAD_TIMES = "bad_times", "a signed command is issued in the future, never expires or lives too long"
    UNAUTHENTICATED_OPERATOR = "unauthenticated_operator", "the AMQP user may not command this worker"
    UNSIGNED = "unsigned", "a control key is set and the command carries no signature"
    BAD_SIGNATURE = "bad_signature", "the signature does not fit the message, or its key is unknown"
    DISABLED = "disabled", "the command is turned off on this worker"
    RATE_LIMITED = "rate_limited", "more commands of this kind came than are carried out in that time"
    COMMAND_CONFLICT = "command_conflict", "another command came with this id before; give each command its own"
    STOPPING = "stopping", "the worker ends and could not store the command any more"


class Rejection(Struct, frozen=True):
    """A message that was refused, as a value."""

    reason: Reason
    detail: str  # names the place at fault, such as `$.records[3].tick`; never the body


class Refusal(ValueError):
    """A rejection on its way up inside wire/, which turns it into a value at its borders.

    `steps` is filled from the inside out while the exception passes the containers that hold the fault.
    """

    def __init__(self, reason: Reason, detail: str, *steps: str | int, tail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.steps: list[str | int] = list(steps)
        self.tail = tail  # the rest of the place where somebody else wrote it already: `.outcome.score`

    def inside(self, *steps: str | int) -> Self:
        """The same refusal seen from the container that holds the fault under `steps`."""
        self.steps[:0] = steps
        return self

    @property
    def place(self) -> str:
        """Where the fault is: `$.records[3].tick`."""
        return "$" + "".join(_step(step) for step in self.steps) + self.tail

    def as_rejection(self) -> Rejection:
        """The value that leaves wire/."""
        return Rejection(self.reason, f"{self.place}: {self.detail}"[:MAX_DETAIL])

    def __str__(self) -> str:
        return f"{self.place}: {self.detail}"[:MAX_DETAIL]


def _step(step: str | int) -> str:
    """One step of a place. Foreign keys are shown only where they are short and plain."""
    if isinstance(step, int):
        return f"[{step}]"
    if len(step) <= 64 and step.isascii() and step.replace("_", "a").isalnum():  # noqa: PLR2004  64: a slug's length
        return f".{step}"
    return "[...]"
