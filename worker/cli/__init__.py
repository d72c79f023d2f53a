"""What a person types: `swarm-worker <command>`, one command a module."""

from __future__ import annotations

import sys

import click

from worker import __version__
from worker.cli.backup import backup
from worker.cli.check import check
from worker.cli.commands import apply, pause, rebuild, replay, resume, rollback, shutdown, train_now
from worker.cli.demo import demo
from worker.cli.describe import describe
from worker.cli.episodes import episodes, sessions
from worker.cli.export import export
from worker.cli.models import models
from worker.cli.quarantine import quarantine
from worker.cli.run import run
from worker.cli.status import status
from worker.errors import WorkerError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="swarm-worker")
def cli() -> None:
    """The swarm learning worker: records in over RabbitMQ, models and learning events out.

    Exit codes: 0 clean, 1 a command was refused or failed, 2 wrong usage, 70 internal, 75 broker or store never
    reachable, 78 configuration.
    """


for command in (run, check, status, demo, train_now, apply, rollback, rebuild, pause, resume, shutdown):
    cli.add_command(command)
for command in (models, episodes, sessions, quarantine, export, backup, describe):
    cli.add_command(command)
quarantine.add_command(replay)


def main() -> None:
    """Entry point: an error the worker raises on purpose is one clear line and its exit code."""
    try:
        cli()
    except WorkerError as error:
        click.echo(f"swarm-worker: {error}", err=True)
        sys.exit(error.exit_code)
