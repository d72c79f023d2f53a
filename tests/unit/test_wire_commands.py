"""Commands: what is taken, what is refused and why, where each goes, replies, and signatures."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.wire.commands import (
    COMMANDS,
    MAX_COMMAND,
    Apply,
    Command,
    Pause,
    Reply,
    Shutdown,
    TrainNow,
    as_addressed,
    check_delivery,
    decode_command,
    decode_reply,
    encode_command,
    encode_reply,
    is_allowed_reply_to,
    routing_key_for,
)
from worker.wire.reasons import Reason, Rejection
from worker.wire.signing import KEY_HEADER, SIGNATURE_HEADER, parse_keys, sign, verify

NOW = 1_769_900_000_000
TRAIN: dict[str, Any] = {"schema_version": 1, "command": "train-now", "command_id": "c-1", "scenario": "S", "args": {}}


def decode(**fields: Any) -> Command | Rejection:
    """A train-now, with `fields` changed."""
    return decode_command(json.dumps(TRAIN | fields).encode())


def test_a_command_reads_back() -> None:
    """Every one, as it was written."""
    for name, kind in COMMANDS.items():
        command = Command(
            command=name, command_id="c-1", args=kind.args(), scenario="S", issued_at_ms=NOW, expires_at_ms=NOW + 1000
        )
        assert decode_command(encode_command(command)) == command


@pytest.mark.parametrize(
    ("fields", "args"),
    [
        ({}, TrainNow()),
        ({"args": None}, TrainNow()),
        ({"args": {"kind": "lora", "apply": False}}, TrainNow(kind="lora", apply=False)),
        ({"args": {"force": True, "dry_run": True}}, TrainNow(force=True, dry_run=True)),
        ({"command": "apply", "args": {"version": 3, "force": True}}, Apply(version=3, force=True)),
        ({"command": "apply", "args": {"model_id": "m"}}, Apply(model_id="m")),
        ({"command": "pause", "args": {"what": "ingest"}}, Pause(what="ingest")),
        ({"command": "shutdown", "scenario": None}, Shutdown()),
        ({"x": "unknown fields of the envelope are ignored"}, TrainNow()),
    ],
)  # fmt: skip
def test_arguments_are_typed(fields: dict[str, Any], args: Any) -> None:
    """Each command has its own."""
    command = decode(**fields)
    assert isinstance(command, Command), command
    assert command.args == args


@pytest.mark.parametrize(
    ("fields", "reason", "place"),
    [
        ({"schema_version": 2}, Reason.UNKNOWN_VERSION, "$.schema_version"),
        ({"schema_version": "1"}, Reason.BAD_SCHEMA, "$.schema_version"),
        ({"command": "dance"}, Reason.UNKNOWN_COMMAND, "$.command"),
        ({"command": 1}, Reason.BAD_SCHEMA, "$.command"),
        ({"command_id": ""}, Reason.BAD_SCHEMA, "$.command_id"),
        ({"command_id": None}, Reason.BAD_SCHEMA, "$.command_id"),
        ({"scenario": None}, Reason.BAD_SCHEMA, "$.scenario"),
        ({"scenario": "../S"}, Reason.BAD_SCHEMA, "$.scenario"),
        ({"scenario": "S\n"}, Reason.BAD_SCHEMA, "$.scenario"),
        ({"scenario": "x" * 65}, Reason.BAD_SCHEMA, "$.scenario"),
        ({"args": []}, Reason.BAD_SCHEMA, "$.args"),
        ({"args": {"froce": True}}, Reason.BAD_SCHEMA, "$.args"),
        ({"args": {"kind": "both"}}, Reason.BAD_SCHEMA, "$.args.kind"),
        ({"command": "apply", "args": {"model_id": "m", "version": 1}}, Reason.BAD_SCHEMA, "$.args"),
        ({"command": "apply", "args": {"version": 0}}, Reason.BAD_SCHEMA, "$.args.version"),
        ({"command": "replay-quarantine", "args": {"entry_ids": [-1]}}, Reason.BAD_SCHEMA, "$.args.entry_ids[0]"),
        ({"issued_at_ms": -1}, Reason.BAD_SCHEMA, "$.issued_at_ms"),
        ({"expires_at_ms": 2**63}, Reason.BAD_NUMBER, "$.expires_at_ms"),
        ({"x": "a\0b"}, Reason.BAD_TEXT, "$.x"),
    ],
)
def test_a_bad_command_is_refused_with_its_reason(fields: dict[str, Any], reason: Reason, place: str) -> None:
    """And with the place at fault."""
    verdict = decode(**fields)
    assert isinstance(verdict, Rejection)
    assert (verdict.reason, verdict.detail.split(":")[0]) == (reason, place)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", Reason.EMPTY_BODY), (b"{", Reason.NOT_JSON), (b"[]", Reason.BAD_SCHEMA), (b"\xff", Reason.NOT_UTF8),
        (b"[" * MAX_COMMAND, Reason.TOO_DEEP), (b" " * (MAX_COMMAND + 1), Reason.TOO_LARGE), (b"{}", Reason.BAD_SCHEMA),
    ],
)  # fmt: skip
def test_what_is_no_command_is_refused(body: bytes, reason: Reason) -> None:
    """As bad records are."""
    verdict = decode_command(body)
    assert isinstance(verdict, Rejection)
    assert verdict.reason is reason


@given(st.binary(max_size=200))
def test_nothing_makes_the_decoder_raise(body: bytes) -> None:
    """Whatever comes, the answer is a value."""
    assert isinstance(decode_command(body), Command | Rejection)


def test_each_command_has_its_road() -> None:
    """Broadcasts reach all, a scenario's or one worker; a job is one scenario's."""
    assert routing_key_for("status") == "all"
    assert routing_key_for("pause", scenario="S") == "scenario.S"
    assert routing_key_for("shutdown", scenario="S", worker_id="w1") == "worker.w1"
    assert routing_key_for("train-now", scenario="S") == "job.S"
    with pytest.raises(ValueError, match="needs a scenario"):
        routing_key_for("rollback")
    with pytest.raises(ValueError, match="no command 'dance'"):
        routing_key_for("dance")


@pytest.mark.parametrize(
    ("fields", "routing_key", "reason"),
    [
        ({}, "job.S", None),
        ({}, "job.T", Reason.WRONG_ROUTE),
        ({}, "all", Reason.WRONG_ROUTE),
        ({"command": "shutdown"}, "all", None),
        ({"command": "shutdown"}, "worker.w1", None),
        ({"command": "shutdown"}, "worker.w2", Reason.WRONG_ROUTE),
        ({"command": "pause", "scenario": "S"}, "scenario.S", None),
        ({"command": "pause", "scenario": None}, "scenario.S", None),
        ({"command": "pause", "scenario": "S"}, "scenario.T", Reason.WRONG_ROUTE),
        ({"command": "shutdown"}, "job.S", Reason.WRONG_ROUTE),
        ({"command": "shutdown"}, "swarm.control.w.w1.b1", Reason.WRONG_ROUTE),
        ({"expires_at_ms": NOW + 1}, "job.S", None),
        ({"expires_at_ms": NOW}, "job.S", Reason.EXPIRED),
    ],
)
def test_a_command_is_obeyed_only_on_its_road_and_in_its_time(
    fields: dict[str, Any], routing_key: str, reason: Reason | None
) -> None:
    """A shutdown that waited in a jobs queue must not stop tomorrow's worker."""
    command = decode(**fields)
    assert isinstance(command, Command)
    verdict = check_delivery(command, routing_key=routing_key, worker_id="w1", now_ms=NOW)
    assert (verdict.reason if verdict else None) == reason


def test_a_command_to_a_scenario_means_that_scenario() -> None:
    """Or leave to write to `scenario.T` would be leave to pause every scenario that T's workers serve."""
    command = decode(command="pause", scenario=None)
    assert isinstance(command, Command)
    assert as_addressed(command, "scenario.T").scenario == "T"
    assert as_addressed(command, "all").scenario is None
    assert as_addressed(command, "worker.w1").scenario is None


def test_a_reply_reads_back() -> None:
    """In the four states, with its result."""
    reply = Reply(command_id="c-1", status="done", result={"run_id": "r1"})
    assert decode_reply(encode_reply(reply)) == reply
    assert json.loads(encode_reply(reply))["error"] is None
    for body in (b"", b"{}", b'{"command_id": "c", "status": "maybe"}', b"\xff", b"[" * 100_000):
        with pytest.raises(ValueError, match="no reply"):
            decode_reply(body)


@pytest.mark.parametrize(
    ("reply_to", "allowed"),
    [
        ("amq.rabbitmq.reply-to.g1h2AA5yZXBseUAyNzc.abc==", True), ("swarm.reply.ops-1", True),
        (None, False), ("", False), ("swarm.records.x", False), ("amq.rabbitmq.reply-to.", False),
        ("swarm.reply.", False), ("swarm.reply.A", False), ("swarm.reply.a\n", False), ("xswarm.reply.a", False),
        ("swarm.reply." + "a" * 65, False), ("amq.rabbitmq.reply-to.a b", False),
    ],
)  # fmt: skip
def test_replies_go_only_where_replies_belong(reply_to: str | None, allowed: bool) -> None:
    """Else the worker would write into any queue for anybody."""
    assert is_allowed_reply_to(reply_to) is allowed


# ---------------------------------------------------------------- signatures

KEYS = parse_keys("new:s3cret, old:0ther")
COMMAND = Command(
    command="train-now", command_id="c-1", args=TrainNow(), scenario="S", issued_at_ms=NOW, expires_at_ms=NOW + 60_000
)


@dataclasses.dataclass
class Signed:
    """A signed message as it arrives, to be tampered with."""

    command: Command = COMMAND
    body: bytes = encode_command(COMMAND)
    exchange: str = "swarm.control"
    routing_key: str = "job.S"
    message_id: str | None = "c-1"
    keys: Any = dataclasses.field(default_factory=lambda: dict(KEYS))
    now_ms: int = NOW
    headers: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.headers = sign(
            self.command, self.body, exchange=self.exchange, routing_key=self.routing_key,
            message_id=self.message_id or "", keys=self.keys,
        )  # fmt: skip

    def verdict(self) -> Reason | None:
        """Why it is refused."""
        rejection = verify(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})
        return rejection.reason if rejection else None


def at(issued: int, expires: int) -> Signed:
    """A message with other times, well signed."""
    command = msgspec.structs.replace(COMMAND, issued_at_ms=issued, expires_at_ms=expires)
    return Signed(command=command, body=encode_command(command))


def test_a_signed_command_is_obeyed() -> None:
    """With the first key, and while keys change with the second."""
    message = Signed()
    assert message.verdict() is None
    assert message.headers[KEY_HEADER] == "new"
    assert Signed(keys={"old": KEYS["old"]}).headers[KEY_HEADER] == "old"
    message = Signed(keys={"old": KEYS["old"]})
    message.keys = KEYS
    assert message.verdict() is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("body", encode_command(COMMAND)[:-1] + b" "), ("exchange", "amq.topic"), ("routing_key", "job.T"),
        ("message_id", "c-2"), ("message_id", None), ("keys", {"new": b"wrong"}), ("keys", {"old": KEYS["old"]}),
        ("keys", {}),
        ("command", msgspec.structs.replace(COMMAND, expires_at_ms=NOW + 61_000)),
    ],
)  # fmt: skip
def test_a_signature_fits_nothing_else(field: str, value: Any) -> None:
    """Neither another body, road, message, time, nor key."""
    message = Signed()
    setattr(message, field, value)
    assert message.verdict() is Reason.BAD_SIGNATURE


@pytest.mark.parametrize("signature", ["", "00", "é", "\udc80", "0" * 64])
def test_a_false_signature_is_refused(signature: str) -> None:
    """Whatever its text is."""
    message = Signed()
    message.headers[SIGNATURE_HEADER] = signature
    assert message.verdict() is Reason.BAD_SIGNATURE


def test_an_unsigned_command_is_refused() -> None:
    """Once there is a key."""
    message = Signed()
    message.headers = {}
    assert message.verdict() is Reason.UNSIGNED


@pytest.mark.parametrize(
    ("issued", "expires", "reason"),
    [
        (NOW - 1000, NOW + 1000, None),
        (NOW + 60_000, NOW + 61_000, None),
        (NOW + 60_001, NOW + 61_000, Reason.BAD_TIMES),
        (NOW, NOW + 300_001, Reason.BAD_TIMES),
        (NOW, 0, Reason.BAD_TIMES),
        (0, 0, Reason.BAD_TIMES),
        (NOW, NOW, Reason.BAD_TIMES),
        (NOW - 1000, NOW, Reason.EXPIRED),
        (NOW - 300_000, NOW + 1, Reason.BAD_TIMES),
    ],
)
def test_a_signature_lives_for_minutes(issued: int, expires: int, reason: Reason | None) -> None:
    """At most five, and its clock may be a minute ahead of ours."""
    assert at(issued, expires).verdict() == reason


@pytest.mark.parametrize("text", ["", "a:", ":x", "a b:x", "a:x,a:y", "a:x,", "s3cret"])
def test_bad_keys_are_refused_without_showing_them(text: str) -> None:
    """A setting's error lands in logs."""
    with pytest.raises(ValueError, match="control key"):
        parse_keys(text)
    with pytest.raises(ValueError, match="control key") as caught:
        parse_keys("no slug!:s3cret")
    assert "s3cret" not in str(caught.value)
