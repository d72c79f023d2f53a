"""Sees to it that inference servers serve the live adapters: after a start, and when a server has lost one.

Beside everything else, not before it: a server may be away for long, and records must be taken in meanwhile. A server
that was started again may know nothing of adapters that were loaded while it ran (vLLM's are in its memory alone).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from worker.clock import sleep_unless
from worker.errors import StoreError
from worker.models.applier import Applier
from worker.store.port import ModelKind

log = structlog.get_logger(__name__)

#: Seconds between two looks at what is served; a look may cost the server a few tokens.
_LOOK_SECONDS = 60.0
#: First wait for a server that is away or refuses, in s; it doubles up to the time between two looks. A server that is
#: back and has lost its adapters turns every node away until then (vLLM after 181 s; the next look was due after 254).
_FIRST_WAIT = 2.0


class AdapterKeeper:
    """One for all scenarios, each of which it looks after apart: one that is loaded for long delays no other."""

    def __init__(
        self,
        applier: Applier,
        *,
        scenarios: Sequence[str],
        recover: Callable[[str, ModelKind], Awaitable[None]],
    ) -> None:
        """`recover` hands over what was registered and not handed over when the last life ended, of a scenario."""
        self._applier = applier
        self._scenarios = scenarios
        self._recover = recover

    async def run(self, stopping: asyncio.Event) -> None:
        """Look until `stopping`. No error of a server or of the store ends this."""
        if "lora" not in self._applier.kinds:
            return
        async with asyncio.TaskGroup() as group:
            for scenario in self._scenarios:
                group.create_task(self._look_after(scenario, stopping), name=f"adapter of {scenario}")

    async def _look_after(self, scenario: str, stopping: asyncio.Event) -> None:
        recovered = False
        again = _FIRST_WAIT
        while not stopping.is_set():
            served = False
            try:
                served = await self._applier.reconcile(scenario, "lora")
                if not recovered and not stopping.is_set():
                    await self._recover(scenario, "lora")
                    recovered = True
            except StoreError as error:
                log.warning("adapter_not_looked_at", scenario=scenario, error=str(error))
            except Exception:
                # An applicator's own fault must not end the worker, which would do the same again after its start.
                log.exception("adapter_not_looked_at", scenario=scenario)
            await sleep_unless(stopping, _LOOK_SECONDS if served else again)
            again = _FIRST_WAIT if served else min(_LOOK_SECONDS, again * 2)
