"""`swarm-worker run`: the worker itself, until a signal or a command stops it."""

from __future__ import annotations

import asyncio
import os
import signal

import click
import structlog

from worker.app import WorkerBuilder
from worker.cli.common import settings_options
from worker.life import Worker
from worker.settings import Settings

log = structlog.get_logger(__name__)


@click.command()
@settings_options(serves=True)
def run(*, settings: Settings) -> None:
    """Serve the scenarios of SWARM_SCENARIOS until SIGTERM, SIGINT or a shutdown command.

    The first signal drains (at most SWARM_SHUTDOWN_GRACE), the second stops at once; nothing is lost by either.
    """
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    worker = WorkerBuilder(settings).build()
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
