"""`swarm-worker run`: the worker itself, until a signal or a command stops it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal

import click
import structlog

from worker import crash
from worker.app import WorkerBuilder
from worker.cli.common import SettingsCommand, settings_options
from worker.life import Worker
from worker.settings import Settings

log = structlog.get_logger(__name__)

#: Objects made and not freed before the collector looks for cycles. A group of 6,400 records holds 7,200 objects until
#: it is stored: at CPython's 700 it looked six times a group and found nothing, 6 % of all processor time (measured).
_COLLECT_AFTER = 50_000


@click.command(cls=SettingsCommand)
@settings_options(serves=True)
def run(*, settings: Settings) -> None:
    """Serve the scenarios of SWARM_SCENARIOS.

    Ends at SIGTERM, SIGINT or a shutdown command. The first signal drains (at most SWARM_SHUTDOWN_GRACE), the second
    stops at once; nothing is lost by either.

    Secrets are no flags: SWARM_CONTROL_KEY, SWARM_WEBHOOK_URL, SWARM_WEBHOOK_KEY, SWARM_LLAMA_API_KEY and
    SWARM_VLLM_API_KEY are variables, or stand in .env or in files of /run/secrets, as all settings may.
    """
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    crash.arm(settings.crash_at)
    worker = WorkerBuilder(settings).build()
    # Code and libraries stay for as long as the process, so the collector need not look at them ever again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, number, worker)
    await worker.run()


def _on_signal(number: signal.Signals, worker: Worker) -> None:
    if worker.stopping:
        log.warning("stopped_at_once", signal=number.name)
        # No clean-up that could hang: what is unacknowledged comes again, and the trainer dies with its parent.
        os._exit(128 + number)
    worker.request_stop(number.name)
