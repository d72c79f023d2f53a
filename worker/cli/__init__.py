"""What a person types: `swarm-worker <command>`, one command a module."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from worker import __version__
from worker.errors import WorkerError
from worker.ops.printable import printable

#: Command to where it is. A command's module is imported when it is asked for: all of them together take a second.
_COMMANDS = {
    "run": "run:run",
    "check": "check:check",
    "status": "status:status",
    "demo": "demo:demo",
    "train-now": "commands:train_now",
    "apply": "commands:apply",
    "rollback": "commands:rollback",
    "rebuild": "commands:rebuild",
    "pause": "commands:pause",
    "resume": "commands:resume",
    "shutdown": "commands:shutdown",
    "models": "models:models",
    "episodes": "episodes:episodes",
    "sessions": "episodes:sessions",
    "quarantine": "quarantine:quarantine",
    "dead": "dead:dead",
    "export": "export:export",
    "backup": "backup:backup",
    "describe": "describe:describe",
}


class _Commands(click.Group):
    """The commands, in the order above."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command: click.Command = getattr(import_module(f"worker.cli.{module}"), name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="swarm-worker")
def cli() -> None:
    """The swarm learning worker: records in over RabbitMQ, models and learning events out.

    Exit codes: 0 clean, 1 a command was refused or failed, 2 wrong usage, 70 internal, 75 broker, store or worker not
    reached, 78 configuration.
    """


def main() -> None:
    """Entry point: an error the worker raises on purpose is one clear line and its exit code."""
    try:
        cli()
    except WorkerError as error:
        click.echo(f"swarm-worker: {printable(str(error))}", err=True)
        sys.exit(error.exit_code)
