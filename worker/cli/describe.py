"""`swarm-worker describe`: the settings that count and the versions at work. Secrets are masked."""

from __future__ import annotations

import platform
import sqlite3
from importlib.metadata import version
from typing import Any

import click
from pydantic import SecretStr

from worker import __version__
from worker.cli.check_lora import lora_versions
from worker.cli.common import SettingsCommand, json_option, print_json, settings_options, table
from worker.cli.written import heading, written
from worker.redaction import MASK, redact
from worker.settings import Settings


@click.command(cls=SettingsCommand)
@json_option
@settings_options()
def describe(*, settings: Settings, as_json: bool) -> None:
    """Show the settings in force, and versions. Secrets are masked."""
    effective = masked(settings)
    versions = {
        "swarm-worker": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in ("aio-pika", "aiormq", "msgspec", "pydantic-settings")},
        **lora_versions(),
    }
    if as_json:
        print_json({"settings": effective, "versions": versions})
        return
    rows: list[tuple[str, str, str]] = []
    above = ""
    for name, value in effective.items():
        if heading(name) != above:
            above = heading(name)
            rows += [("", "", "")] * bool(rows) + [(above, "", "")]
        text = written(name, value)
        rows.append((f"SWARM_{name.upper()}", text, "set" if name in settings.model_fields_set else ""))
    table("Settings", ("variable", "value", ""), rows, empty="")
    click.echo()
    table("Versions", ("what", "version"), versions.items(), empty="")


def masked(settings: Settings) -> dict[str, Any]:
    """Effective settings as JSON values; of a secret URL the user and password are hidden, of other secrets all."""
    shown: dict[str, Any] = {}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            shown[name] = _masked_url(value.get_secret_value()) if name == "amqp_url" else MASK
        else:
            shown[name] = value
    shown["store_url"] = redact(settings.effective_store_url)
    return {name: _jsonable(value) for name, value in shown.items()}


def _masked_url(url: str) -> str:
    """Without all that stands before the last @: whoever mistyped the address looks at it here, password and all."""
    scheme, found, rest = url.partition("://")
    _, at, place = rest.rpartition("@")
    return str(redact(f"{scheme}{found}{MASK}{at}{place}" if at else url))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: item.model_dump(exclude_none=True) if hasattr(item, "model_dump") else item
            for key, item in value.items()
        }
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
