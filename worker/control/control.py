"""Commands from arrival to answer: checked, stored under their id, acknowledged, carried out, answered.

The acknowledgement comes before the work: a shutdown that was not acknowledged would come back to the restarted worker,
for ever. What a crash interrupts between the two is in the store and carried on at the next start.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from worker import crash
from worker.broker.control import MAX_REPLY, CommandSource
from worker.broker.port import ControlMessage
from worker.clock import Clock, after
from worker.control.admission import Admission
from worker.control.operations import CommandRefused
from worker.control.sparing import Sparing, TokenBucket
from worker.errors import CommandFailed, DataRefused, NotFound, StoreError, StoreUnavailable, WorkerError
from worker.models.deployer import EndNotStored
from worker.store.port import CommandLedger, StoredCommand
from worker.wire.commands import (
    COMMANDS,
    Command,
    Reply,
    Shutdown,
    Status,
    as_addressed,
    decode_command,
    encode_reply,
)
from worker.wire.reasons import Reason, Rejection

log = structlog.get_logger(__name__)

FinalStatus = Literal["done", "refused", "failed"]

#: How long a command waits for a store that is away, in s: as long as records do. Then the worker ends, and the broker
#: hands the command to whoever is started next; kept unacknowledged by a worker that lives, it would be lost.
_PATIENCE = 600.0
#: How long a shutdown waits for the store, in s, at its beginning and at its end: it must work while the store is away.
_SHUTDOWN_PATIENCE, _SHUTDOWN_END_PATIENCE = 5.0, 0.5
#: Answers to commands that are refused: so many at once, then so many a second. More would be work for whoever asks.
_REFUSALS_AT_ONCE, _REFUSALS_PER_SECOND = 50, 5.0

#: Bytes of a status, which grows with the scenarios; the rest of the reply has room beside it.
_MAX_STATUS = MAX_REPLY - 4096

#: Reasons of those whose command was good when it came: they are told.
_FOUND_BY_THE_LEDGER = frozenset({Reason.STORE_REFUSED, Reason.COMMAND_CONFLICT})

#: How often the end of a life looks whether all commands are answered, in s.
_LOOK_AGAIN = 0.01


def _while_store_is_away(clock: Clock, seconds: float) -> AsyncRetrying:
    return AsyncRetrying(
        stop=after(clock, seconds),
        wait=wait_random_exponential(multiplier=0.1, max=5),
        retry=retry_if_exception_type(StoreUnavailable),
        reraise=True,
    )


@dataclass(slots=True)
class ControlStats:
    """What came since the start."""

    accepted: int = 0
    repeated: int = 0
    done: int = 0
    failed: int = 0
    #: By reason; `as_things_are` is a good command that cannot be carried out now.
    refused: dict[str, int] = field(default_factory=dict)

    def count_refused(self, reason: str) -> None:
        """One more."""
        self.refused[reason] = self.refused.get(reason, 0) + 1


class _Address(Struct, frozen=True):
    """Where the answer to a command of an earlier life goes."""

    body: bytes
    exchange: str
    routing_key: str
    message_id: str | None
    reply_to: str | None
    correlation_id: str | None
    user_id: str | None
    headers: Mapping[str, str]

    async def ack(self) -> None:
        """It was acknowledged then."""


class Control:
    """Obeys one worker's commands; `run` until stopped, `settle` to let the last answers out."""

    def __init__(
        self,
        source: CommandSource,
        ledger: CommandLedger,
        clock: Clock,
        carry_out: Callable[[Command, int], Awaitable[dict[str, Any]]],
        *,
        worker_id: str,
        scenarios: frozenset[str],
        admission: Admission,
    ) -> None:
        """`carry_out` takes a command and when it came, Unix ms.

        `admission` says which commands are obeyed; where they must be signed, others get not even an answer.
        """
        self._source = source
        self._ledger = ledger
        self._clock = clock
        self._carry_out = carry_out
        self._worker_id = worker_id
        self._scenarios = scenarios
        self._admission = admission
        self._refusals = TokenBucket(clock, burst=_REFUSALS_AT_ONCE, rate=_REFUSALS_PER_SECOND)
        self._sparing = Sparing(clock)
        self._acceptor: asyncio.Task[None] | None = None
        self._accepting: tuple[Command, ControlMessage] | None = None
        self._waiting: defaultdict[str, list[ControlMessage]] = defaultdict(list)
        self._tasks: set[asyncio.Task[None]] = set()
        self._to_store: asyncio.Queue[tuple[Command, ControlMessage]] = asyncio.Queue()
        self.stats = ControlStats()

    async def run(self) -> None:
        """Take commands until cancelled. Raises `StoreError` where the store did not take a command in `_PATIENCE`."""
        await self._resume()
        async with asyncio.TaskGroup() as group:
            # Beside this loop: while the store is away, `status` is answered all the same.
            self._acceptor = group.create_task(self._accept_in_turn(), name="commands to store")
            while True:
                await self._take(await self._source.inbox.get())

    async def settle(self, seconds: float) -> None:
        """Wait, at most so long, for commands that came and are being carried out; tell the others that it is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._busy():  # noqa: ASYNC110 - four things, at the end of a life, for a second
                    await asyncio.sleep(_LOOK_AGAIN)
        if self._acceptor is not None:
            self._acceptor.cancel()
        left = [] if self._accepting is None else [self._accepting]
        while not self._to_store.empty():
            left.append(self._to_store.get_nowait())
        for command, message in left:
            # A job stays unacknowledged, for another worker. This worker's own copy of a broadcast goes with its queue.
            if COMMANDS[command.command].road == "broadcast":
                stopping = Rejection(Reason.STOPPING, "$: the worker ends, and its store did not take the command")
                await self._refuse(message, command.command_id, stopping, tell=True)

    def _busy(self) -> bool:
        waiting = not self._source.inbox.empty() or not self._to_store.empty() or self._accepting is not None
        return waiting or bool(self._tasks)

    async def _take(self, message: ControlMessage) -> None:
        decoded = decode_command(message.body)
        if isinstance(decoded, Rejection):
            await self._refuse(message, "", decoded)
            return
        command = as_addressed(decoded, message.routing_key)
        rejection = self._admission.check(command, message)
        if rejection is not None:
            await self._refuse(message, command.command_id, rejection)
            return
        rejection = self._admission.allow(command)
        if rejection is not None:
            await self._refuse(message, command.command_id, rejection, tell=True)
        elif isinstance(command.args, Status):
            # Changes nothing, and its answer is always of now: nothing to store.
            await message.ack()
            self._start(self._answer_status(command, message))
        elif isinstance(command.args, Shutdown):
            # Not behind what waits for a store that is away: nothing but a shutdown helps then.
            self._start(self._begin(command, message))
        else:
            self._to_store.put_nowait((command, message))

    async def _accept_in_turn(self) -> None:
        """Store, acknowledge, begin, one after the other: what came first is stored and begun first."""
        while True:
            self._accepting = command, message = await self._to_store.get()
            await self._begin(command, message)
            self._accepting = None

    async def _begin(self, command: Command, message: ControlMessage) -> None:
        ledger_id = self._ledger_id(command)
        received_at_ms = self._clock.now_ms()
        try:
            known = await self._accept(command, ledger_id, message, received_at_ms)
        except DataRefused as error:
            known = Rejection(Reason.STORE_REFUSED, str(error))
        if isinstance(known, StoredCommand) and _is_another(known, command):
            known = Rejection(Reason.COMMAND_CONFLICT, f"$.command_id: another {known.command} had it before")
        if isinstance(known, Rejection):
            await self._refuse(message, command.command_id, known, tell=known.reason in _FOUND_BY_THE_LEDGER)
            return
        if known is not None and known.status == "accepted":
            # Before anything that waits: it may end meanwhile.
            self._waiting[ledger_id].append(message)
        crash.point("control_persisted")
        await message.ack()
        if known is None:
            self.stats.accepted += 1
            log.info("command_accepted", command=command.command, command_id=command.command_id)
            await self._reply(message, command.command_id, "accepted", {}, None)
            self._waiting[ledger_id].append(message)
            self._start(self._execute(command, ledger_id, received_at_ms))
            return
        self.stats.repeated += 1
        await self._reply(message, command.command_id, known.status, known.result, known.error)

    async def _accept(
        self, command: Command, ledger_id: str, message: ControlMessage, received_at_ms: int
    ) -> StoredCommand | Rejection | None:
        """Store it, as soon as the store takes it; its time may be over by then."""
        stored = StoredCommand(
            command_id=ledger_id,
            command=command.command,
            scenario=command.scenario,
            body=message.body,
            received_at_ms=received_at_ms,
            reply_to=message.reply_to,
            correlation_id=message.correlation_id,
        )

        async def attempt() -> StoredCommand | Rejection | None:
            late = self._admission.check_time_and_road(command, message)
            return late or await self._ledger.accept_command(stored)

        if not isinstance(command.args, Shutdown):
            return await _while_store_is_away(self._clock, _PATIENCE)(attempt)
        try:
            # Bounded as a whole: one attempt alone may wait for a lock longer than a shutdown may.
            async with asyncio.timeout(_SHUTDOWN_PATIENCE):
                return await _while_store_is_away(self._clock, _SHUTDOWN_PATIENCE)(attempt)
        except DataRefused:
            raise
        except (StoreError, TimeoutError) as error:
            log.warning("shutdown_not_stored", command_id=command.command_id, error=str(error))
            return None

    async def _execute(self, command: Command, ledger_id: str, received_at_ms: int) -> None:
        status: FinalStatus = "done"
        error: str | None = None
        result: dict[str, Any] = {}
        try:
            result = await self._carry_out(command, received_at_ms)
        except CommandRefused as refused:
            status, error = "refused", str(refused)
        except CommandFailed as failed:
            status, error, result = "failed", str(failed), failed.result
        except EndNotStored as unknown:
            # Neither failed nor done: as with an end that the store did not take, the next start says which.
            log.warning("command_end_not_known", command_id=command.command_id, error=str(unknown))
            self._waiting.pop(ledger_id, None)
            return
        except WorkerError as failed:
            status, error = "failed", str(failed)
        except Exception as unexpected:
            log.exception("command_broke", command=command.command, command_id=command.command_id)
            status, error = "failed", f"{type(unexpected).__name__}: {unexpected}; see the worker's log"
        await self._finish(command, ledger_id, status, result, error)

    async def _finish(
        self, command: Command, ledger_id: str, status: FinalStatus, result: dict[str, Any], error: str | None
    ) -> None:
        ends = isinstance(command.args, Shutdown)
        try:
            async with asyncio.timeout(_SHUTDOWN_END_PATIENCE if ends else None):
                stored: StoredCommand = await _while_store_is_away(self._clock, _PATIENCE)(
                    self._ledger.finish_command,
                    ledger_id,
                    status=status,
                    result=result,
                    error=error,
                    now_ms=self._clock.now_ms(),
                )
        except (StoreError, NotFound, TimeoutError) as failed:
            # Not found: a shutdown that the store did not take.
            log.warning("command_end_not_stored", command_id=command.command_id, error=str(failed))
            if not ends:
                # The next start finds it unfinished, carries it on and answers: an answer now might be another one.
                self._waiting.pop(ledger_id, None)
                return
        else:
            # The first word stands: another start may have carried it on meanwhile, and told so.
            status, result, error = cast("FinalStatus", stored.status), stored.result, stored.error
        self.stats.done += status == "done"
        self.stats.failed += status == "failed"
        if status == "refused":
            self.stats.count_refused("as_things_are")
        log.info(
            "command_ended", command=command.command, command_id=command.command_id, status=status, error=error
        )  # fmt: skip
        for message in self._waiting.pop(ledger_id, ()):
            await self._reply(message, command.command_id, status, result, error)

    async def _answer_status(self, command: Command, message: ControlMessage) -> None:
        try:
            result = await self._carry_out(command, self._clock.now_ms())
        except WorkerError as error:
            await self._reply(message, command.command_id, "failed", {}, str(error))
            return
        size = len(msgspec.json.encode(result))
        if size <= _MAX_STATUS:
            await self._reply(message, command.command_id, "done", result, None)
            return
        # Unanswered, it would look as if there were no worker.
        why = f"it has {size} bytes and an answer at most {_MAX_STATUS}; look at /status on the worker's HTTP port"
        await self._reply(message, command.command_id, "failed", {}, why)

    async def _resume(self) -> None:
        """Carry on what an earlier life of this worker had accepted and not ended."""
        for stored in await self._ledger.unfinished_commands():
            decoded = decode_command(stored.body)
            ours = stored.scenario is None or stored.scenario in self._scenarios
            if isinstance(decoded, Rejection) or not ours:
                continue
            if COMMANDS[decoded.command].road == "broadcast" and stored.command_id != self._ledger_id(decoded):
                continue  # another worker's own copy: obeyed here, a pause of that one would pause this one too
            # The row knows the scenario it was addressed to, where the body names none.
            command = replace(decoded, scenario=stored.scenario)
            address = _Address(
                stored.body, "", "", command.command_id, stored.reply_to, stored.correlation_id, None, {}
            )
            self._waiting[stored.command_id].append(address)
            disabled = self._admission.turned_off(command)
            if disabled is not None:
                result = {"reason": str(disabled.reason)}
                await self._finish(command, stored.command_id, "refused", result, disabled.detail)
            elif command.command == "shutdown":
                await self._finish(command, stored.command_id, "done", {"drained": False}, None)
            else:
                # Done again, all give the same result: runs and deployments are found by their command's id.
                log.info("command_resumed", command=command.command, command_id=command.command_id)
                self._start(self._execute(command, stored.command_id, stored.received_at_ms))

    def _ledger_id(self, command: Command) -> str:
        """Each worker has its own copy of a broadcast command, and its own answer."""
        broadcast = COMMANDS[command.command].road == "broadcast"
        return f"{command.command_id}@{self._worker_id}" if broadcast else command.command_id

    async def _refuse(
        self, message: ControlMessage, command_id: str, rejection: Rejection, *, tell: bool = False
    ) -> None:
        """Count and acknowledge. Where commands must be signed, who is not known to have the key gets no answer."""
        self.stats.count_refused(str(rejection.reason))
        times = self._sparing.due(rejection.reason)
        if times is not None:
            log.warning("command_refused", reason=str(rejection.reason), detail=rejection.detail, times=times)
        await message.ack()
        if (tell or not self._admission.for_known_only) and self._refusals.take():
            await self._reply(
                message, command_id or message.message_id or "unknown", "refused", {"reason": str(rejection.reason)},
                f"{rejection.reason}: {rejection.detail}",
            )  # fmt: skip

    async def _reply(
        self, to: ControlMessage, command_id: str, status: str, result: dict[str, Any], error: str | None
    ) -> None:
        reply = Reply(command_id=command_id, status=status, result=result, error=error)  # type: ignore[arg-type]  # FinalStatus or accepted
        await self._source.reply(to, encode_reply(reply))

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_another(known: StoredCommand, command: Command) -> bool:
    """Whether its id was that of something else: answered with what came of that, a rollback seemed done."""
    stored = decode_command(known.body)
    args = command.args if isinstance(stored, Rejection) else stored.args
    return (known.command, known.scenario, args) != (command.command, command.scenario, command.args)
