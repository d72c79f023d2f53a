"""`swarm-worker check`: finds faults of settings, broker, topology, permissions and store, and names the cure."""

from __future__ import annotations

import difflib
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click

from worker.app import WorkerBuilder
from worker.broker.faults import BROKER_ERRORS, describe
from worker.broker.permissions import missing_permissions
from worker.broker.session import Session
from worker.broker.topology import ensure_topology, scenario_objects, shared_objects
from worker.broker.url import broker_url
from worker.cli.check_lora import lora_findings
from worker.cli.common import SettingsCommand, console, json_option, print_json, run_async, settings_options, shown
from worker.cli.findings import Finding
from worker.clock import SystemClock
from worker.errors import ConfigurationError, WorkerError
from worker.settings import Settings, unknown_variables
from worker.store import open_store

_LEAST_FREE = 500_000_000
_BROKER_SECONDS = 10.0


@click.command(cls=SettingsCommand)
@json_option
@settings_options()
def check(*, settings: Settings, as_json: bool) -> None:
    """Check everything the worker needs.

    Changes nothing that is there; broker objects that are missing are made. Status 78 where something is wrong.
    """
    findings = run_async(_collect(settings, quiet=as_json))
    bad = [finding for finding in findings if not finding.good]
    if as_json:
        print_json({"good": not bad, "findings": findings})
    else:
        click.echo(f"\n{len(bad)} of {len(findings)} checks found a fault" if bad else "\neverything is fine")
    if bad:
        sys.exit(ConfigurationError.exit_code)


async def _collect(settings: Settings, *, quiet: bool) -> list[Finding]:
    findings = []
    async for finding in _findings(settings):
        findings.append(finding)
        if not quiet:
            mark = "[green]ok  [/green]" if finding.good else "[red]BAD [/red]"
            console().print(mark, end="")
            console().print(shown(f"{finding.what}: {finding.detail}"), markup=False, soft_wrap=True)
    return findings


async def _findings(settings: Settings) -> AsyncIterator[Finding]:
    try:
        WorkerBuilder(settings).build()
        yield Finding(what="settings", good=True, detail=f"scenarios {', '.join(settings.scenarios)}")
        async for finding in lora_findings(settings):
            yield finding
    except ConfigurationError as error:
        yield Finding(what="settings", good=False, detail=str(error))
    for name, meant in unknown_variables().items():
        cure = f"did you mean {meant}?" if meant else "remove it; `swarm-worker describe` lists all there are"
        yield Finding(what="settings", good=False, detail=f"{name} is no setting and has no effect; {cure}")
    for name in settings.scenario_options.keys() - set(settings.scenarios):
        # Options for a scenario that another worker serves are no fault.
        for meant in difflib.get_close_matches(name, settings.scenarios, 1):
            detail = f"SWARM_SCENARIO_OPTIONS: {name} is not served here; did you mean {meant}?"
            yield Finding(what="settings", good=False, detail=detail)
    yield _disk(settings)
    yield await _store(settings)
    async for finding in _broker(settings):
        yield finding


def _disk(settings: Settings) -> Finding:
    place = settings.data_dir
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    good = free >= _LEAST_FREE
    cure = "" if good else f"; free at least {_LEAST_FREE // 1_000_000} MB, or set SWARM_DATA_DIR"
    return Finding(what="disk", good=good, detail=f"{free // 1_000_000:,} MB free for {settings.data_dir}{cure}")


def _absent_store(settings: Settings) -> Finding | None:
    """What a store that is not there yet means: no fault where the first start may make it."""
    url = urlsplit(settings.effective_store_url)
    path = Path(unquote(url.path))
    if url.scheme != "sqlite" or path.exists():
        return None
    above = next(folder for folder in path.parents if folder.exists())
    if os.access(above, os.W_OK | os.X_OK):
        return Finding(what="store", good=True, detail=f"{path} is not there yet; the worker makes it")
    detail = f"{path} is not there, and {above} is not writable; make it so, or set SWARM_STORE_URL"
    return Finding(what="store", good=False, detail=detail)


async def _store(settings: Settings) -> Finding:
    absent = _absent_store(settings)
    if absent is not None:
        return absent
    try:
        # Read-only: a running worker holds the lock, and its own /ready says whether it can write.
        store = open_store(settings.effective_store_url, SystemClock(), read_only=True)
        await store.open()
        try:
            facts = await store.describe()
        finally:
            await store.close()
    except WorkerError as error:
        return Finding(what="store", good=False, detail=str(error))
    return Finding(what="store", good=True, detail=", ".join(f"{key} {value}" for key, value in facts.items()))


def _permissions(scenario: str, missing: list[str]) -> Finding:
    cure = "; give the user of SWARM_AMQP_URL these permissions, deploy/rabbitmq/definitions.json has them"
    detail = f"may not {', nor '.join(missing)}{cure}" if missing else "may read and write what a worker must"
    return Finding(what=f"permissions for {scenario}", good=not missing, detail=detail)


async def _broker(settings: Settings) -> AsyncIterator[Finding]:
    try:
        url = broker_url(settings)
        session = Session("control", url, start_timeout=_BROKER_SECONDS)
        await session.start()
    except WorkerError as error:
        yield Finding(what="broker", good=False, detail=str(error))
        return
    try:
        yield Finding(what="broker", good=True, detail=f"RabbitMQ {session.version} at {url.masked}")
        for scenario in settings.scenarios:
            try:
                await ensure_topology(session, [*shared_objects(), *scenario_objects(scenario)], settings.topology)
                detail = "there, equal to what is needed"
                yield Finding(what=f"broker objects of {scenario}", good=True, detail=detail)
                yield _permissions(scenario, await missing_permissions(session, scenario))
            except (WorkerError, *BROKER_ERRORS) as error:
                detail = str(error) if isinstance(error, WorkerError) else describe(error)
                yield Finding(what=f"broker objects of {scenario}", good=False, detail=detail)
    finally:
        await session.close()
