"""What the commands share: settings as flags, printing for people or as JSON, the store beside a running worker."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar, get_args

import click
import msgspec
import orjson
from click.core import ParameterSource
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.cli.written import default, form, heading
from worker.clock import SystemClock
from worker.configuration import secrets_of
from worker.errors import NotFound, StoreCorrupt
from worker.learning.rates import p_words
from worker.ops.logging import configure_logging
from worker.ops.printable import printable
from worker.settings import Settings, load_settings
from worker.store import open_store
from worker.store.port import Store
from worker.wire.names import is_slug

P = ParamSpec("P")
R = TypeVar("R")

#: Settings that a command needs to find the store.
PLACES = ("data_dir", "store_url", "log_level")
#: And the broker.
BROKER = ("amqp_url", "amqp_ca_file", "amqp_cert_file", "amqp_key_file", "amqp_allow_plaintext")

#: Only from the environment, .env or the secrets directory. The broker's address is a flag: it need hold no password.
_SECRETS = frozenset(
    name
    for name, field in Settings.model_fields.items()
    if SecretStr in (field.annotation, *get_args(field.annotation)) and name != "amqp_url"
)


def console() -> Console:
    """Standard output, as wide as the terminal or wide enough for a pipe."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


class SettingsCommand(click.Command):
    """A command that takes all settings: its help lists them in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Its own options first."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in sorted(self.get_params(ctx), key=lambda one: one.name in Settings.model_fields):
            record = parameter.get_help_record(ctx)
            if record is not None:
                above = heading(parameter.name) if parameter.name in Settings.model_fields else "Options"
                groups.setdefault(above, []).append(record)
        for above, records in groups.items():
            with formatter.section(above):
                formatter.write_dl(records)


def settings_options(*names: str, serves: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Flags for these settings (all of them where none is named); the command gets `settings`.

    A command that `serves` logs as set; one that a person waits for says its own words, and logs only when asked to.
    """
    # No secret is a flag: a command line can be read by everybody on the machine, and stays in the shell's history.
    chosen = tuple(name for name in names or Settings.model_fields if name not in _SECRETS)

    def decorate(command: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(command)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            flags = {name: kwargs.pop(name) for name in chosen}
            settings = load_settings(**flags)
            level = settings.log_level if serves or "log_level" in settings.model_fields_set else "critical"
            configure_logging(level, settings.log_format, secrets=secrets_of(settings))
            return command(*args, settings=settings, **kwargs)  # type: ignore[arg-type]  # ParamSpec cannot say "plus one"

        for name in reversed(chosen):
            usual = f"; default: {default(name)}" if default(name) else ""
            help_text = f"{Settings.model_fields[name].description} [SWARM_{name.upper()}{usual}]"
            flag = f"--{name.replace('_', '-')}"
            wrapped = click.option(flag, name, default=None, metavar=form(name), help=help_text)(wrapped)
        return wrapped

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="print JSON")


def _scenario_name(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not is_slug(value):
        raise click.BadParameter(f"{value!r} is no scenario name; use letters, digits, - and _, at most 64")
    return value


def _worker_name(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not is_slug(value):
        raise click.BadParameter(f"{value!r} is no worker's name; use letters, digits, - and _, at most 64")
    return value


worker_option = click.option("--worker", "worker_id", callback=_worker_name, help="only this worker")
default_scenario_option = click.option(
    "--scenario", callback=_scenario_name, help="the scenario's name; default: the only one of SWARM_SCENARIOS"
)
any_scenario_option = click.option("--scenario", callback=_scenario_name, help="only this scenario")


def flags_behind(context: click.Context) -> None:
    """`UsageError` where flags stand before the subcommand, which does not see them."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"write {', '.join(given)} behind {context.invoked_subcommand}")


def run_async(coroutine: Awaitable[R]) -> R:
    """Run a command's coroutine to its end."""

    async def main() -> R:
        return await coroutine

    return asyncio.run(main())


@asynccontextmanager
async def reading_store(settings: Settings) -> AsyncIterator[Store]:
    """The store, read-only, beside a worker that may be running.

    `StoreCorrupt` at the end where a row it should have read was damaged: what was written is whole but for that.
    """
    store = open_store(settings.effective_store_url, SystemClock(), read_only=True)
    await store.open()
    try:
        yield store
        if store.damage:
            rows = "\n".join(f"  {row}" for row in store.damage)
            raise StoreCorrupt(f"{len(store.damage)} damaged rows were left out:\n{rows}")
    finally:
        await store.close()


def one_scenario(scenario: str | None, settings: Settings) -> str:
    """The scenario asked for, or the only one configured."""
    if scenario is not None:
        return scenario
    if len(settings.scenarios) == 1:
        return settings.scenarios[0]
    raise click.UsageError("which scenario? say --scenario NAME, or set SWARM_SCENARIOS to a single one")


async def known_scenario(store: Store, scenario: str) -> None:
    """`NotFound` where nothing was ever stored of a scenario: its name is mistyped, or it is another store."""
    known = await store.scenarios()
    if scenario not in known:
        there = f"it knows {', '.join(known)}" if known else "nothing was stored yet"
        raise NotFound(f"the store knows no scenario {scenario!r}; {there}")


def plain(value: Any) -> Any:
    """Structs, enums and bytes as JSON values."""
    return msgspec.to_builtins(value, enc_hook=_encode)


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)


def print_json(value: Any) -> None:
    """One JSON document on one line, for programs."""
    sys.stdout.buffer.write(orjson.dumps(plain(value)) + b"\n")
    sys.stdout.buffer.flush()


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """A table for people, or one line that says why there is none."""
    drawn = Table(header_style="bold", box=None, pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(shown(cell)) for cell in row))
    if drawn.row_count:
        # Not as the table's own title: that wraps at the table's width, and some tables are narrow.
        console().print(shown(title), style="italic", markup=False)
        console().print(drawn)
    else:
        console().print(shown(empty), markup=False, soft_wrap=True)


def shown(value: Any) -> str:
    """A value as a person would write it: yes rather than True, words rather than Python's lists."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    # Names come from whoever may publish: none of them writes control sequences to the terminal.
    return printable(str(value))


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Rows of a table from a document, whatever its depth: `gate.verdict`, and times and chances as people read them.

    Nothing of what is empty; a row for each part of a list whose parts are sentences.
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{name}.")
        elif isinstance(value, list | tuple) and any(" " in str(part) for part in value):
            yield from ((above + name if number == 0 else "", part) for number, part in enumerate(value))
        elif name.endswith("p_value") and isinstance(value, float):
            yield above + name, p_words(value).removeprefix("p ")
        elif name.endswith("_at_ms"):
            yield f"{above}{name.removesuffix('_ms')}", when(value)
        elif value not in (None, "", [], ()):
            yield above + name, value


def when(milliseconds: int | None) -> str:
    """Wall time for people."""
    if milliseconds is None:
        return "never"
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def percent(share: float | None) -> str:
    """0.123 as 12.3 %."""
    return "-" if share is None else f"{share * 100:.1f} %"
