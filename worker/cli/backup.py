"""`swarm-worker backup`: a consistent, checked copy of the store while the worker goes on."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli.common import PLACES, json_option, print_json, reading_store, run_async, settings_options
from worker.settings import Settings


@click.command()
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@json_option
@settings_options(*PLACES)
def backup(*, settings: Settings, target: Path, as_json: bool) -> None:
    """Copy the store to TARGET and check the copy. Restore by putting it in the store's place."""
    if target.exists():
        raise click.BadParameter(f"{target} exists; name a file that does not")
    run_async(_backup(settings, target))
    size = target.stat().st_size
    if as_json:
        print_json({"target": str(target), "bytes": size, "checked": True})
    else:
        click.echo(f"backed up {size:,} bytes to {target}, checked")


async def _backup(settings: Settings, target: Path) -> None:
    async with reading_store(settings) as store:
        await store.backup(target)
