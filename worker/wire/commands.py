"""Commands and replies: what an operator may tell a worker over `swarm.control`, and what it answers."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta, Struct

from worker.wire.jsontext import convert, parse_json
from worker.wire.reasons import Reason, Refusal, Rejection
from worker.wire.records import SCHEMA_VERSION, Count, Key, Milliseconds, Slug64

#: Bytes of a command, which is a few hundred.
MAX_COMMAND = 64 * 1024
#: Where a routing key of this form leads: the workers of a scenario.
_TO_SCENARIO = "scenario."
#: A free `reply_to` would let anybody write into any queue through us.
_REPLY_TO = re.compile(r"amq\.rabbitmq\.reply-to\.[\x21-\x7e]{1,200}|swarm\.reply\.[a-z0-9-]{1,64}")


class _Args(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What all arguments share: a misspelt `force` must not be ignored."""


class TrainNow(_Args, frozen=True, kw_only=True):
    """Train a scenario now."""

    kind: Literal["offline", "lora"] | None = None  # none: as processor_mode says, both where it says so
    apply: bool | None = None  # none: as apply_mode says
    force: bool = False  # also where nothing is new
    dry_run: bool = False  # only say what would be trained


class Apply(_Args, frozen=True, kw_only=True):
    """Bring a model to those who use it: the one named, else the newest candidate."""

    model_id: Key | None = None
    version: Annotated[int, Meta(ge=1)] | None = None
    force: bool = False  # also where the gate did not bless it
    kind: Literal["offline", "lora"] | None = None  # none: the named model's, else that of the newest candidate

    def __post_init__(self) -> None:
        """One name is enough."""
        if self.model_id is not None and self.version is not None:
            raise ValueError("give model_id or version, not both")


class Rollback(_Args, frozen=True, kw_only=True):
    """Back to the model before, or to the one named."""

    model_id: Key | None = None
    kind: Literal["offline", "lora"] | None = None  # none: the named model's, else that which was changed last


class Rebuild(_Args, frozen=True, kw_only=True):
    """Make every projection of the scenario again from its log."""


class ReplayQuarantine(_Args, frozen=True, kw_only=True):
    """Judge quarantined messages again: those named, those of a reason, or all."""

    reason: str | None = None
    entry_ids: Annotated[list[Count], Meta(max_length=10_000)] | None = None
    limit: Annotated[int, Meta(ge=1)] | None = None


class ListDead(_Args, frozen=True, kw_only=True):
    """Say what died on its way to the scenario, the first letters one by one."""

    limit: Annotated[int, Meta(ge=1, le=50)] = 20


class ReplayDead(_Args, frozen=True, kw_only=True):
    """Send records that died back to where they came from, all or so many."""

    limit: Annotated[int, Meta(ge=1)] | None = None


class Shutdown(_Args, frozen=True, kw_only=True):
    """Drain and stop."""


class Pause(_Args, frozen=True, kw_only=True):
    """Take in no more records, start no more trainings, or both, until resumed."""

    what: Literal["ingest", "training", "all"] = "all"


class Resume(_Args, frozen=True, kw_only=True):
    """The end of a pause."""

    what: Literal["ingest", "training", "all"] = "all"


class Status(_Args, frozen=True, kw_only=True):
    """Say what the worker does and what is stored."""


Args: TypeAlias = (
    TrainNow
    | Apply
    | Rollback
    | Rebuild
    | ReplayQuarantine
    | ListDead
    | ReplayDead
    | Shutdown
    | Pause
    | Resume
    | Status
)


class CommandKind(NamedTuple):
    """A command's arguments, and whether every worker obeys it or exactly one."""

    args: type[Args]
    road: Literal["broadcast", "job"]


COMMANDS: dict[str, CommandKind] = {
    "shutdown": CommandKind(Shutdown, "broadcast"),
    "pause": CommandKind(Pause, "broadcast"),
    "resume": CommandKind(Resume, "broadcast"),
    "status": CommandKind(Status, "broadcast"),
    "train-now": CommandKind(TrainNow, "job"),
    "apply": CommandKind(Apply, "job"),
    "rollback": CommandKind(Rollback, "job"),
    "rebuild": CommandKind(Rebuild, "job"),
    "replay-quarantine": CommandKind(ReplayQuarantine, "job"),
    "list-dead": CommandKind(ListDead, "job"),
    "replay-dead": CommandKind(ReplayDead, "job"),
}


class Command(Struct, frozen=True, kw_only=True):
    """One command, found good. The same `command_id` twice is the same command."""

    command: str
    command_id: str
    args: Args
    scenario: str | None = None
    issued_at_ms: int = 0
    expires_at_ms: int = 0  # 0: never


class CommandEnvelope(Struct, kw_only=True, omit_defaults=True):
    """A command on the wire."""

    command: str
    command_id: Key
    schema_version: Count = SCHEMA_VERSION
    scenario: Slug64 | None = None
    args: dict[str, Any] | None = None
    issued_at_ms: Milliseconds = 0
    expires_at_ms: Milliseconds = 0


class Reply(Struct, kw_only=True):
    """What came of a command so far."""

    command_id: Key
    status: Literal["accepted", "done", "refused", "failed"]
    result: dict[str, Any] = {}
    error: str | None = None


_decode_reply = msgspec.json.Decoder(Reply).decode


def routing_key_for(command: str, *, scenario: str | None = None, worker_id: str | None = None) -> str:
    """Where a command is published: `job.<S>`, or `worker.<id>`, `scenario.<S>` or `all`, the narrowest that is given.

    Raises `ValueError` for a job without scenario or an unknown command.
    """
    if command not in COMMANDS:
        raise ValueError(f"there is no command {command!r}; there are {', '.join(COMMANDS)}")
    if COMMANDS[command].road == "job":
        if scenario is None:
            raise ValueError(f"{command} needs a scenario")
        return f"job.{scenario}"
    if worker_id is not None:
        return f"worker.{worker_id}"
    return "all" if scenario is None else f"scenario.{scenario}"


def encode_command(command: Command) -> bytes:
    """The body of a command."""
    envelope = {"schema_version": SCHEMA_VERSION, "command": command.command, "command_id": command.command_id}
    if command.scenario is not None:
        envelope["scenario"] = command.scenario
    rest = {"args": command.args, "issued_at_ms": command.issued_at_ms, "expires_at_ms": command.expires_at_ms}
    return msgspec.json.encode(envelope | rest)


def decode_command(body: bytes) -> Command | Rejection:
    """The command in `body`, or why there is none. Never raises, whatever the input."""
    try:
        return _read_command(body)
    except Refusal as refusal:
        return refusal.as_rejection()


def check_delivery(command: Command, *, routing_key: str, worker_id: str, now_ms: int) -> Rejection | None:
    """Why a good command must not be obeyed here and now: it came on another road than its own, or its time is over.

    What is addressed to another worker may reach this one all the same: by a binding that somebody made to its queue.
    """
    if COMMANDS[command.command].road == "job":
        on_its_road = routing_key == f"job.{command.scenario}"
    else:
        # Whoever may write to one scenario's workers must not command another scenario through them.
        to_scenario = routing_key.startswith(_TO_SCENARIO) and command.scenario in (None, _scenario_in(routing_key))
        on_its_road = routing_key in ("all", f"worker.{worker_id}") or to_scenario
    if not on_its_road:
        return Rejection(Reason.WRONG_ROUTE, "$: the routing key is not this command's")
    if command.expires_at_ms and now_ms >= command.expires_at_ms:
        return Rejection(Reason.EXPIRED, "$.expires_at_ms: the command's time is over")
    return None


def as_addressed(command: Command, routing_key: str) -> Command:
    """The command as its road narrows it: sent to a scenario's workers without naming one, it means that scenario."""
    if command.scenario is None and routing_key.startswith(_TO_SCENARIO):
        return msgspec.structs.replace(command, scenario=_scenario_in(routing_key))
    return command


def encode_reply(reply: Reply) -> bytes:
    """The body of a reply."""
    return msgspec.json.encode(reply)


def decode_reply(body: bytes) -> Reply:
    """The reply in `body`; raises `ValueError` where it is none."""
    try:
        return _decode_reply(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no reply: {error}") from None


def is_allowed_reply_to(reply_to: str | None) -> bool:
    """Whether an answer may be sent there: the broker's direct reply-to, or `swarm.reply.<name>`."""
    return reply_to is not None and _REPLY_TO.fullmatch(reply_to) is not None


def _scenario_in(routing_key: str) -> str:
    return routing_key.removeprefix(_TO_SCENARIO)


def _read_command(body: bytes) -> Command:
    if len(body) > MAX_COMMAND:
        raise Refusal(Reason.TOO_LARGE, f"{len(body)} bytes, at most {MAX_COMMAND}")
    message = parse_json(bytes(body))
    if isinstance(message, dict):
        version = message.get("schema_version", SCHEMA_VERSION)
        if type(version) is int and version != SCHEMA_VERSION:
            raise Refusal(Reason.UNKNOWN_VERSION, f"this worker reads {SCHEMA_VERSION}", "schema_version")
    envelope = convert(message, CommandEnvelope, Reason.BAD_SCHEMA)
    kind = COMMANDS.get(envelope.command)
    if kind is None:
        raise Refusal(Reason.UNKNOWN_COMMAND, f"there are {', '.join(COMMANDS)}", "command")
    if kind.road == "job" and envelope.scenario is None:
        raise Refusal(Reason.BAD_SCHEMA, f"{envelope.command} needs a scenario", "scenario")
    try:
        args = convert(envelope.args or {}, kind.args, Reason.BAD_SCHEMA)
    except Refusal as refusal:
        raise refusal.inside("args")  # noqa: B904  the same exception, with one more step
    return Command(
        command=envelope.command,
        command_id=envelope.command_id,
        args=args,
        scenario=envelope.scenario,
        issued_at_ms=envelope.issued_at_ms,
        expires_at_ms=envelope.expires_at_ms,
    )
