"""Which commands are obeyed here and now: an operator's, signed, on their own road, not turned off, not too many."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping

from worker.broker.port import ControlMessage
from worker.clock import Clock
from worker.control.sparing import TokenBucket
from worker.wire.commands import Command, check_delivery
from worker.wire.reasons import Reason, Rejection
from worker.wire.signing import verify

#: Commands of one kind: more than a person types or a script's processes can start, less than costs ingest anything.
_BURST, _PER_SECOND = 20, 2.0
#: Ids whose second coming is taken for a repetition. Repetitions have tokens of their own: who caught one signed
#: command and sends it ten thousand times must not use up what everybody's next ones need.
_KNOWN_IDS = 1_000
_REPEATED = "repeated"


class Admission:
    """The doorkeeper of one worker. Remembers ids and times alone, nothing that must survive a restart."""

    def __init__(
        self,
        clock: Clock,
        *,
        worker_id: str,
        scenarios: frozenset[str],
        keys: Mapping[str, bytes],
        operators: frozenset[str] = frozenset(),
        disabled: frozenset[str] = frozenset(),
    ) -> None:
        """Refused are, with `keys` by id, the unsigned; with `operators`, other users of the broker; and `disabled`."""
        self._clock = clock
        self._worker_id = worker_id
        self._scenarios = scenarios
        self._keys = keys
        self._operators = operators
        self._disabled = disabled
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._buckets: defaultdict[str, TokenBucket] = defaultdict(
            lambda: TokenBucket(clock, burst=_BURST, rate=_PER_SECOND)
        )

    @property
    def for_known_only(self) -> bool:
        """Whether commands must be signed, or of certain users: then others get not even an answer."""
        return bool(self._keys or self._operators)

    def check(self, command: Command, message: ControlMessage) -> Rejection | None:
        """Why nobody could want this command obeyed here: forged, stale, or meant for another place."""
        # First, since it costs nothing. The broker refuses a user_id that is not the sender's.
        if self._operators and message.user_id not in self._operators:
            user = "without user_id" if message.user_id is None else f"of the user {message.user_id!r}"
            return Rejection(Reason.UNAUTHENTICATED_OPERATOR, f"the command is {user}; SWARM_OPERATORS names who may")
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
        rejection = self.check_time_and_road(command, message)
        if rejection is None and command.scenario is not None and command.scenario not in self._scenarios:
            return Rejection(Reason.WRONG_ROUTE, "$.scenario: this worker does not serve it")
        return rejection

    def check_time_and_road(self, command: Command, message: ControlMessage) -> Rejection | None:
        """What may have changed since the first look: its time may be over."""
        return check_delivery(
            command, routing_key=message.routing_key, worker_id=self._worker_id, now_ms=self._clock.now_ms()
        )

    def allow(self, command: Command) -> Rejection | None:
        """Why a good command is not carried out all the same; its sender is told."""
        disabled = self.turned_off(command)
        if disabled is not None:
            return disabled
        bucket = self._buckets[_REPEATED if self._seen(command.command_id) else command.command]
        if not bucket.take():
            return Rejection(
                Reason.RATE_LIMITED, f"more than {_PER_SECOND:g} a second of {command.command}; send it again later"
            )
        return None

    def turned_off(self, command: Command) -> Rejection | None:
        """Whether this worker never obeys it, however it came."""
        if command.command not in self._disabled:
            return None
        return Rejection(Reason.DISABLED, f"{command.command} is turned off here by SWARM_DISABLED_COMMANDS")

    def _seen(self, command_id: str) -> bool:
        """Whether it came before, as far as is remembered; the ledger knows for sure, and makes it harmless."""
        known = command_id in self._ids
        self._ids[command_id] = None
        self._ids.move_to_end(command_id)
        if len(self._ids) > _KNOWN_IDS:
            self._ids.popitem(last=False)
        return known
