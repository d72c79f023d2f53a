"""`swarm-worker models`: what was learnt, what the gate said of it, what is live."""

from __future__ import annotations

import click

from worker.cli.common import (
    PLACES,
    any_scenario_option,
    default_scenario_option,
    json_option,
    one_scenario,
    print_json,
    reading_store,
    run_async,
    settings_options,
    table,
    when,
)
from worker.errors import NotFound
from worker.settings import Settings


@click.group(invoke_without_command=True)
@any_scenario_option
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@json_option
@settings_options(*PLACES)
@click.pass_context
def models(context: click.Context, *, settings: Settings, scenario: str | None, limit: int, as_json: bool) -> None:
    """List models, newest first, with their aliases."""
    if context.invoked_subcommand is None:
        run_async(_list(settings, scenario, limit, as_json))


async def _list(settings: Settings, scenario: str | None, limit: int, as_json: bool) -> None:
    listed = []
    async with reading_store(settings) as store:
        for name in [scenario] if scenario else await store.scenarios():
            aliases = await store.aliases(name)
            for model in await store.models(name, limit=limit):
                names = [alias for alias, model_id in aliases.items() if model_id == model.model_id]
                listed.append((model, names))
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
@click.argument("model_id")
@json_option
@settings_options(*PLACES)
def show(*, settings: Settings, model_id: str, as_json: bool) -> None:
    """Show one model: lineage, metrics, the gate's reasons."""
    run_async(_show(settings, model_id, as_json))


async def _show(settings: Settings, model_id: str, as_json: bool) -> None:
    async with reading_store(settings) as store:
        model = await store.model(model_id)
    if model is None:
        raise NotFound(f"there is no model {model_id!r}; list them with: swarm-worker models")
    if as_json:
        print_json(_fields(model))
        return
    rows = [(name, value) for name, value in _fields(model).items() if name not in ("lineage", "metrics")]
    rows += [(f"lineage.{name}", value) for name, value in model.lineage.items()]
    rows += [(f"metrics.{name}", value) for name, value in model.metrics.items()]
    table(f"Model {model.model_id}", ("field", "value"), rows, empty="")


@models.command("history")
@default_scenario_option
@json_option
@settings_options(*PLACES)
def history(*, settings: Settings, scenario: str | None, as_json: bool) -> None:
    """Show what was live when: the deployment log, newest first."""
    run_async(_history(settings, one_scenario(scenario, settings), as_json))


async def _history(settings: Settings, scenario: str, as_json: bool) -> None:
    async with reading_store(settings) as store:
        deployments = await store.deployments(scenario)
    if as_json:
        print_json(deployments)
        return
    table(
        f"Deployments of {scenario}",
        ("at", "action", "model", "before", "state", "by", "forced", "target", "detail"),
        (
            (when(d.at_ms), d.action, d.model_id, d.previous_model_id, d.state, d.by, d.forced, d.target, d.detail)
            for d in deployments
        ),
        empty="Nothing was applied yet.",
    )
