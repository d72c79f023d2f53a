"""`swarm-worker models`: what was learnt, what the gate said of it, what is live."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
import msgspec

from worker.cli.common import (
    PLACES,
    any_scenario_option,
    default_scenario_option,
    flags_behind,
    flat,
    json_option,
    known_scenario,
    one_scenario,
    print_json,
    reading_store,
    run_async,
    settings_options,
    table,
    when,
)
from worker.errors import NotFound
from worker.models.files import ModelFiles, read_adapter
from worker.settings import Settings
from worker.store.port import Model, ModelKind, Store

#: Of a model's fields, what fills a screen.
_LONG = ("metrics", "lineage")

kind_option = click.option("--kind", type=click.Choice(["offline", "lora"]), help="default: both")


@click.group(invoke_without_command=True)
@any_scenario_option
@kind_option
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@json_option
@settings_options(*PLACES)
@click.pass_context
def models(
    context: click.Context, *, settings: Settings, scenario: str | None, kind: Any, limit: int, as_json: bool
) -> None:
    """List models, newest first, with their aliases."""
    if context.invoked_subcommand is not None:
        flags_behind(context)
    else:
        run_async(_list(settings, scenario, kind, limit, as_json))


async def _list(settings: Settings, scenario: str | None, kind: ModelKind | None, limit: int, as_json: bool) -> None:
    listed, files = [], ModelFiles(settings.data_dir)
    async with reading_store(settings) as store:
        if scenario is not None:
            await known_scenario(store, scenario)
        for name in [scenario] if scenario else await store.scenarios():
            aliases = await store.aliases(name)
            for model in await store.models(name, kind=kind, limit=limit):
                names = [alias for alias, model_id in aliases.items() if model_id == model.model_id]
                listed.append((files.located(model), names))
    if as_json:
        print_json([{**_fields(model), "aliases": names} for model, names in listed])
        return
    table(
        "Models",
        ("scenario", "version", "kind", "model", "gate", "is", "made"),
        (
            (m.scenario, m.version, m.kind, m.model_id, m.gate_verdict, ", ".join(names), when(m.created_at_ms))
            for m, names in listed
        ),
        empty="No model yet. A trigger makes one, or: swarm-worker train-now --scenario NAME",
    )


def _fields(model: object) -> dict[str, object]:
    return {name: getattr(model, name) for name in type(model).__struct_fields__}  # type: ignore[attr-defined]  # a Struct


@models.command("show")
@click.argument("model")
@default_scenario_option
@json_option
@settings_options(*PLACES)
def show(*, settings: Settings, model: str, scenario: str | None, as_json: bool) -> None:
    """Show one model: lineage, metrics, the gate's reasons.

    MODEL is its id, or the version or alias in a scenario.
    """
    run_async(_show(settings, model, scenario, as_json))


async def _show(settings: Settings, name: str, scenario: str | None, as_json: bool) -> None:
    async with reading_store(settings) as store:
        model = await store.model(name)
        if model is None:
            model = await _by_version_or_alias(store, name, one_scenario(scenario, settings))
    model = ModelFiles(settings.data_dir).located(model)
    fields = _fields(model) | ({"adapter": _adapter(model)} if model.kind == "lora" else {})
    if as_json:
        print_json(fields)
    else:
        table(f"Model {model.version} of {model.scenario}", ("field", "value"), flat(_readable(fields)), empty="")


def _readable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The long last, and of each file a line."""
    shown = {name: value for name, value in fields.items() if name not in _LONG}
    if "adapter" in shown:
        files = [
            f"{file['path']}, {file['size']:,} bytes, sha256 {file['sha256']}"
            for file in shown["adapter"].get("files", [])
        ]
        shown["adapter"] = shown["adapter"] | {"files": files}
    return shown | {name: fields[name] for name in _LONG}


def _adapter(model: Model) -> dict[str, Any]:
    """What model.json says of an adapter, without its probes; why not, where it cannot be read here."""
    try:
        document = read_adapter(model)
    except (OSError, ValueError) as error:
        return {"unreadable": str(error)}
    told: dict[str, Any] = msgspec.to_builtins(document)
    return {name: value for name, value in told.items() if name not in ("format", "kind", "scenario", "probes")} | {
        "probes": len(document.probes)
    }


async def _by_version_or_alias(store: Store, name: str, scenario: str) -> Model:
    model_id = (await store.aliases(scenario)).get(name)
    for model in await store.models(scenario):
        if model.model_id == model_id or str(model.version) == name:
            return model
    raise NotFound(f"scenario {scenario} has no model {name!r}; list them with: swarm-worker models")


@models.command("history")
@default_scenario_option
@kind_option
@json_option
@settings_options(*PLACES)
def history(*, settings: Settings, scenario: str | None, kind: Any, as_json: bool) -> None:
    """Show what was live when: the deployment log, newest first."""
    run_async(_history(settings, one_scenario(scenario, settings), kind, as_json))


async def _history(settings: Settings, scenario: str, kind: ModelKind | None, as_json: bool) -> None:
    async with reading_store(settings) as store:
        await known_scenario(store, scenario)
        deployments = await store.deployments(scenario, kind=kind)
        known = {model.model_id: model for model in await store.models(scenario)}
    versions = {model_id: model.version for model_id, model in known.items()}
    if as_json:
        print_json(deployments)
        return
    table(
        f"Deployments of {scenario}",
        ("at", "kind", "action", "version", "before", "state", "forced", "by", "target", "detail"),
        (
            (
                when(d.at_ms),
                known[d.model_id].kind if d.model_id in known else "",
                d.action,
                versions.get(d.model_id, d.model_id),
                versions.get(d.previous_model_id or "", d.previous_model_id),
                d.state,
                d.forced,
                d.by.partition(" ")[0],  # the command's id is in the JSON
                d.target,
                d.detail,
            )
            for d in deployments
        ),
        empty="Nothing was applied yet.",
    )
