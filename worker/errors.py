"""Every error the worker raises on purpose. The floor: imports nothing of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class WorkerError(Exception):
    """The worker could not continue."""

    #: Process exit status when this error ends the program (sysexits.h).
    exit_code = 70

    def __str__(self) -> str:
        return super().__str__() or (self.__doc__ or "").strip()


class ConfigurationError(WorkerError):
    """A setting is wrong; the message names the setting and the cure."""

    exit_code = 78


class BrokerUnreachable(WorkerError):
    """No AMQP broker answered; check SWARM_AMQP_URL."""

    exit_code = 75


class BrokerRefused(WorkerError):
    """The broker answered and refused us (credentials, permission, unequal topology): retrying cannot help."""

    exit_code = 78


class BrokerUntrusted(BrokerRefused):
    """Who answered cannot prove to be the broker, or speaks no safe TLS; no credentials were sent."""


class BrokerTurnedAway(BrokerRefused):
    """The broker let us in at first and refuses us now: a new start goes on, or says what is wrong with status 78."""

    exit_code = 75


class PublishFailed(WorkerError):
    """A message was not confirmed by the broker; it must be kept and sent again."""

    def __init__(self, message: str = "", *, reason: str = "unknown") -> None:
        super().__init__(message)
        #: `returned` (no queue takes it), `no_exchange`, `nacked` (queue full), `refused`, `timeout`, `no_connection`.
        self.reason = reason


class StoreError(WorkerError):
    """The store failed; nothing of the transaction was kept, so the same work may be tried again."""

    exit_code = 75


class StoreUnavailable(StoreError):
    """The store cannot take writes now (locked, full, read-only, unreachable); try again later."""


class DataRefused(StoreError):
    """The store refuses this data for what it is; splitting the group finds the culprit."""


class Overtaken(DataRefused):
    """Another worker changed what this was decided by; read again, and decide anew."""


class StoreCorrupt(StoreError):
    """The store file is damaged; restore a backup (`swarm-worker backup` makes them)."""

    exit_code = 70


class LeaseLost(WorkerError):
    """Another worker holds the lease now; what we computed must not be committed."""


class ApplyFailed(WorkerError):
    """The model could not be applied or what is served is not what was applied."""


class NotFound(WorkerError):
    """There is nothing under this name."""

    exit_code = 1


class NoListener(NotFound):
    """No worker listens to this routing key: none runs, or not with this broker, scenario or name."""

    exit_code = 75


class CommandFailed(WorkerError):
    """A worker refused a command, or failed at it; `result` says how far it came."""

    exit_code = 1

    def __init__(self, message: str = "", result: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.result = dict(result or {})


class NoAnswer(WorkerError):
    """No worker answered in time; the command may still be carried out."""

    exit_code = 75


class InvalidRecord(WorkerError):
    """A record that no worker would store; the message names the field at fault."""
