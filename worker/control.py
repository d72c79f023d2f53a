"""Commands from arrival to answer: checked, stored under their id, acknowledged, carried out, answered.

The acknowledgement comes before the work: a shutdown that was not acknowledged would come back to the restarted worker,
for ever. What a crash interrupts between the two is in the store and carried on at the next start.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog
from msgspec import Struct
from msgspec.structs import replace
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from worker import crash
from worker.broker.control import CommandSource
from worker.broker.port import ControlMessage
from worker.clock import Clock
from worker.errors import DataRefused, StoreError, StoreUnavailable, WorkerError
from worker.operations import CommandFailed, CommandRefused
from worker.store.port import CommandLedger, StoredCommand
from worker.wire.commands import (
    COMMANDS,
    Command,
    Reply,
    Status,
    as_addressed,
    check_delivery,
    decode_command,
    encode_reply,
)
from worker.wire.reasons import Reason, Rejection
from worker.wire.signing import verify

log = structlog.get_logger(__name__)

FinalStatus = Literal["done", "refused", "failed"]
#: Done again after a crash, these give the same result: a run is found by its command's id, the rest settle.
_REPEATABLE = frozenset({"train-now", "apply", "rebuild", "replay-quarantine", "pause", "resume"})

#: How long a command waits for a store that is away, in s: as long as records do. Then the worker ends, and the broker
#: hands the command to whoever is started next; kept unacknowledged by a worker that lives, it would be lost.
_PATIENCE = 600.0
#: How long the end of a command waits, in s; somebody waits for the answer.
_END_PATIENCE = 30.0


def _while_store_is_away(seconds: float) -> AsyncRetrying:
    return AsyncRetrying(
        stop=stop_after_delay(seconds),
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
        carry_out: Callable[[Command], Awaitable[dict[str, Any]]],
        *,
        worker_id: str,
        scenarios: frozenset[str],
        keys: Mapping[str, bytes],
    ) -> None:
        """`keys` by id: with any, unsigned commands are refused, and silently so."""
        self._source = source
        self._ledger = ledger
        self._clock = clock
        self._carry_out = carry_out
        self._worker_id = worker_id
        self._scenarios = scenarios
        self._keys = keys
        self._waiting: defaultdict[str, list[ControlMessage]] = defaultdict(list)
        self._tasks: set[asyncio.Task[None]] = set()
        self._to_store: asyncio.Queue[tuple[Command, ControlMessage]] = asyncio.Queue()
        self.stats = ControlStats()

    async def run(self) -> None:
        """Take commands until cancelled. Raises `StoreError` where the store did not take a command in `_PATIENCE`."""
        await self._resume()
        async with asyncio.TaskGroup() as group:
            # Beside this loop: while the store is away, `status` is answered all the same.
            group.create_task(self._accept_in_turn(), name="commands to store")
            while True:
                await self._take(await self._source.inbox.get())

    async def settle(self, seconds: float) -> None:
        """Wait for commands that are being carried out, at most so long."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=seconds)

    async def _take(self, message: ControlMessage) -> None:
        command = decode_command(message.body)
        if isinstance(command, Rejection):
            await self._refuse(message, "", command)
            return
        rejection = self._check(command, message)
        if rejection is not None:
            await self._refuse(message, command.command_id, rejection)
        elif isinstance(command.args, Status):
            # Changes nothing, and its answer is always of now: nothing to store.
            await message.ack()
            self._start(self._answer_status(command, message))
        else:
            self._to_store.put_nowait((as_addressed(command, message.routing_key), message))

    async def _accept_in_turn(self) -> None:
        """Store, acknowledge, begin, one after the other: what came first is stored and begun first."""
        while True:
            command, message = await self._to_store.get()
            try:
                await self._begin(command, message)
            except DataRefused as error:
                await self._refuse(message, command.command_id, Rejection(Reason.STORE_REFUSED, str(error)))

    async def _begin(self, command: Command, message: ControlMessage) -> None:
        # Each worker has its own copy of a broadcast command, and its own answer.
        broadcast = COMMANDS[command.command].road == "broadcast"
        ledger_id = f"{command.command_id}@{self._worker_id}" if broadcast else command.command_id
        known = await self._accept(command, ledger_id, message)
        if isinstance(known, Rejection):
            await self._refuse(message, command.command_id, known)
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
            self._start(self._execute(command, ledger_id))
            return
        self.stats.repeated += 1
        await self._reply(message, command.command_id, known.status, known.result, known.error)

    def _check(self, command: Command, message: ControlMessage) -> Rejection | None:
        if self._keys:
            rejection = verify(
                command,
                message.body,
                exchange=message.exchange,
                routing_key=message.routing_key,
                message_id=message.message_id,
                headers=message.headers,
                keys=self._keys,
                now_ms=self._clock.now_ms(),
            )
            if rejection is not None:
                return rejection
        rejection = check_delivery(command, routing_key=message.routing_key, now_ms=self._clock.now_ms())
        if rejection is None and command.scenario is not None and command.scenario not in self._scenarios:
            return Rejection(Reason.WRONG_ROUTE, "$.scenario: this worker does not serve it")
        return rejection

    async def _accept(
        self, command: Command, ledger_id: str, message: ControlMessage
    ) -> StoredCommand | Rejection | None:
        """Store it, as soon as the store takes it; its time may be over by then."""
        stored = StoredCommand(
            command_id=ledger_id,
            command=command.command,
            scenario=command.scenario,
            body=message.body,
            received_at_ms=self._clock.now_ms(),
            reply_to=message.reply_to,
            correlation_id=message.correlation_id,
        )

        async def attempt() -> StoredCommand | Rejection | None:
            late = check_delivery(command, routing_key=message.routing_key, now_ms=self._clock.now_ms())
            return late or await self._ledger.accept_command(stored)

        return await _while_store_is_away(_PATIENCE)(attempt)

    async def _execute(self, command: Command, ledger_id: str) -> None:
        status: FinalStatus = "done"
        error: str | None = None
        result: dict[str, Any] = {}
        try:
            result = await self._carry_out(command)
        except CommandRefused as refused:
            status, error = "refused", str(refused)
        except CommandFailed as failed:
            status, error, result = "failed", str(failed), failed.result
        except WorkerError as failed:
            status, error = "failed", str(failed)
        except Exception as unexpected:
            log.exception("command_broke", command=command.command, command_id=command.command_id)
            status, error = "failed", f"{type(unexpected).__name__}: {unexpected}; see the worker's log"
        await self._finish(command, ledger_id, status, result, error)

    async def _finish(
        self, command: Command, ledger_id: str, status: FinalStatus, result: dict[str, Any], error: str | None
    ) -> None:
        try:
            await _while_store_is_away(_END_PATIENCE)(
                self._ledger.finish_command,
                ledger_id,
                status=status,
                result=result,
                error=error,
                now_ms=self._clock.now_ms(),
            )
        except StoreError as failed:
            # The next start finds it unfinished and carries it on; whoever waits is told now all the same.
            log.warning("command_end_not_stored", command_id=command.command_id, error=str(failed))
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
            await self._reply(message, command.command_id, "done", await self._carry_out(command), None)
        except WorkerError as error:
            await self._reply(message, command.command_id, "failed", {}, str(error))

    async def _resume(self) -> None:
        """Carry on what an earlier life of this worker had accepted and not ended."""
        for stored in await self._ledger.unfinished_commands():
            decoded = decode_command(stored.body)
            ours = stored.scenario is None or stored.scenario in self._scenarios
            if isinstance(decoded, Rejection) or not ours:
                continue
            # The row knows the scenario it was addressed to, where the body names none.
            command = replace(decoded, scenario=stored.scenario)
            address = _Address(stored.body, "", "", command.command_id, stored.reply_to, stored.correlation_id, {})
            self._waiting[stored.command_id].append(address)
            if command.command in _REPEATABLE:
                log.info("command_resumed", command=command.command, command_id=command.command_id)
                self._start(self._execute(command, stored.command_id))
            elif command.command == "shutdown":
                await self._finish(command, stored.command_id, "done", {"drained": False}, None)
            else:
                error = "interrupted by a restart; look at `swarm-worker models history` before asking again"
                await self._finish(command, stored.command_id, "failed", {}, error)

    async def _refuse(self, message: ControlMessage, command_id: str, rejection: Rejection) -> None:
        """Count and acknowledge; with keys configured nobody unsigned gets as much as an answer."""
        self.stats.count_refused(str(rejection.reason))
        log.warning("command_refused", reason=str(rejection.reason), detail=rejection.detail)
        await message.ack()
        if not self._keys:
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
