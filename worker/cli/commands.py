"""The commands that a running worker carries out: sent over `swarm.control`, answered on a queue of our own."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar, cast
from uuid import uuid4

import click

from worker.broker.answers import Answer
from worker.broker.control_client import ControlClient
from worker.broker.port import OutgoingMessage
from worker.broker.session import Session
from worker.broker.url import broker_url
from worker.cli.common import (
    BROKER,
    PLACES,
    any_scenario_option,
    default_scenario_option,
    flat,
    json_option,
    one_scenario,
    print_json,
    reading_store,
    run_async,
    settings_options,
    shown,
    table,
    worker_option,
)
from worker.cli.waiting import Waiting, training_followed
from worker.configuration import control_keys
from worker.errors import ConfigurationError, StoreError, WorkerError
from worker.settings import Settings
from worker.wire.commands import (
    COMMANDS,
    Apply,
    Args,
    Command,
    Pause,
    Rebuild,
    Resume,
    Rollback,
    Shutdown,
    Status,
    TrainNow,
    decode_command,
    encode_command,
    routing_key_for,
)
from worker.wire.reasons import Rejection
from worker.wire.signing import MAX_LIFETIME, sign

F = TypeVar("F", bound=Callable[..., Any])

#: How long to wait for the first word of a worker, in s.
_FIRST_ANSWER = 15.0
_FAILED = 1
#: A model's id, which says alone what is meant; versions and aliases are a scenario's.
_MODEL_ID = re.compile(r"[0-9a-f]{32}")
_ENDED = {"done": "was done by", "refused": "was refused by", "failed": "failed at"}
#: Fields of results whose names are a program's.
_RESULT_WORDS = {
    "applied.applied": "applied",
    "applied.reason": "why not applied",
    "applied.previous_model_id": "live before",
    "previous_model_id": "live before",
    "gate.verdict": "gate",
    "gate.reasons": "gate's reasons",
    "run_id": "run",
    "model_id": "model",
    "model_version": "version",
    "deployment_id": "deployment",
    "window": "first, last batch",
}
_SILENCE = (
    "no word from a worker yet: its store may be away, its control key another, or no worker serves this scenario; "
    "Ctrl-C ends the waiting, not the command"
)


def sending(command: F, *, looks_up: bool = False) -> F:
    """Options of every command that is sent; one that `looks_up` what it is about reads the store too."""
    options: tuple[Callable[[Any], Any], ...] = (
        click.option("--timeout", type=click.FloatRange(1), default=600.0, show_default=True, help="seconds to wait"),
        click.option("--wait", is_flag=True, help="wait for the end and say what came of it"),
        json_option,
        settings_options(*BROKER, *(PLACES if looks_up else ("log_level",))),
    )
    made: Any = command
    for option in options:
        made = option(made)
    return cast("F", made)


@asynccontextmanager
async def control_client(settings: Settings) -> AsyncIterator[ControlClient]:
    """A way to send commands, signed where there is a key."""
    url, keys = broker_url(settings), control_keys(settings)

    def signature(message: OutgoingMessage) -> dict[str, str]:
        command = decode_command(message.body)
        if isinstance(command, Rejection):
            raise WorkerError(f"this command would be refused: {command.detail}")
        return sign(
            command,
            message.body,
            exchange=message.exchange,
            routing_key=message.routing_key,
            message_id=message.message_id,
            keys=keys,
        )

    session = Session("control", url, start_timeout=_FIRST_ANSWER)
    await session.start()
    client = ControlClient(session, client_id=uuid4().hex, sign=signature if keys else None)
    try:
        await client.start()
        yield client
    finally:
        await client.close()
        await session.close()


def send(
    client: ControlClient,
    command: Command,
    *,
    timeout: float,
    worker_id: str | None = None,
    first_words: bool = False,
) -> AsyncIterator[Answer]:
    """Send a command and yield what is answered: by one worker, or by all that hear a broadcast."""
    of_all = COMMANDS[command.command].road == "broadcast" and worker_id is None
    return client.send(
        routing_key=routing_key_for(command.command, scenario=command.scenario, worker_id=worker_id),
        command_id=command.command_id,
        body=encode_command(command),
        timeout=timeout,
        workers=None if of_all else 1,
        first_words=first_words,
    )


def make_command(name: str, args: Args, scenario: str | None) -> Command:
    """A command of now, under a fresh id; it expires, so that nobody can hold it back and let it loose later."""
    now_ms = time.time_ns() // 1_000_000
    return Command(
        command=name,
        command_id=str(uuid4()),
        args=args,
        scenario=scenario,
        issued_at_ms=now_ms,
        expires_at_ms=now_ms + MAX_LIFETIME,
    )


def carry(
    settings: Settings, name: str, args: Args, scenario: str | None, *, wait: bool, as_json: bool, timeout: float,
    worker_id: str | None = None,
) -> None:  # fmt: skip
    """Send, follow, print what each worker answered, and exit with 1 where one refused or failed."""
    words: dict[str, Answer] = {}
    command = make_command(name, args, scenario)
    try:
        run_async(_follow(settings, command, words, wait=wait, quiet=as_json, timeout=timeout, worker_id=worker_id))
    finally:
        # Also where one of several workers did not end in time: what the others said is not lost.
        for reply in words.values():
            if reply.final or not wait:
                _print_answer(name, reply, as_json=as_json)
    if any(reply.status in ("refused", "failed") for reply in words.values()):
        sys.exit(_FAILED)


def _print_answer(name: str, reply: Answer, *, as_json: bool) -> None:
    if as_json:
        print_json({"command": name, **{n: getattr(reply, n) for n in reply.__struct_fields__}})
    elif reply.status == "accepted":
        click.echo(f"{name} was accepted by {shown(reply.worker)}; --wait shows what comes of it")
    elif reply.error:
        click.echo(f"swarm-worker: {name} {_ENDED[reply.status]} {shown(reply.worker)}: {shown(reply.error)}", err=True)
    else:
        title = f"{name}: {reply.status} by {shown(reply.worker)}"
        table(title, ("what", "value"), ((_words(name), value) for name, value in flat(reply.result)), empty=title)


def _words(name: str) -> str:
    """Of a result's field, for people: `why not applied` rather than `applied.reason`."""
    for ending, words in _RESULT_WORDS.items():
        if name == ending or name.endswith(f".{ending}"):
            name = name.removesuffix(ending) + words
            break
    return name.replace(".", " ").replace("_", " ")


async def _follow(
    settings: Settings, command: Command, words: dict[str, Answer], *, wait: bool, quiet: bool, timeout: float,
    worker_id: str | None,
) -> None:  # fmt: skip
    """Put the newest word of each worker into `words`. With `wait` until all have ended, or `NoAnswer`."""
    async with AsyncExitStack() as stack:
        waiting = None if quiet or not sys.stderr.isatty() else stack.enter_context(Waiting(f"{command.command} ..."))
        client = await stack.enter_async_context(control_client(settings))
        # Only now: a broker that is away is told as that, and not as a worker's silence.
        silence = asyncio.get_running_loop().call_later(_FIRST_ANSWER, lambda: click.echo(_SILENCE, err=True))
        stack.callback(silence.cancel)
        patience = timeout if wait else _FIRST_ANSWER
        async for reply in send(client, command, timeout=patience, worker_id=worker_id, first_words=not wait):
            silence.cancel()
            words[reply.worker] = reply
            if waiting is not None:
                waiting.say(f"{command.command}: {reply.status} by {shown(reply.worker)}")
                if wait and command.command == "train-now" and command.scenario and not reply.final:
                    ask = partial(_ask_status, client, reply.worker)
                    stack.enter_context(training_followed(ask, command.scenario, waiting))


def _ask_status(client: ControlClient, worker_id: str | None = None) -> AsyncIterator[Answer]:
    return send(client, make_command("status", Status(), None), timeout=_FIRST_ANSWER, worker_id=worker_id)


def _meant(settings: Settings, scenario: str | None, model: str | None) -> str:
    """The scenario that is named, else that of the model's id, else the only one there is."""
    if scenario is None and model is not None and _MODEL_ID.fullmatch(model):
        scenario = run_async(_scenario_of(settings, model))
    return one_scenario(scenario, settings)


async def _scenario_of(settings: Settings, model_id: str) -> str | None:
    """Out of the store where it can be read here, else out of what workers tell of their newest models."""
    try:
        async with reading_store(settings) as store:
            model = await store.model(model_id)
    except (ConfigurationError, StoreError):
        model = None  # it is on another machine, or its worker tells what ails it
    if model is not None or len(settings.scenarios) == 1:
        return None if model is None else model.scenario
    async with control_client(settings) as client:
        async for answer in _ask_status(client):
            for name, told in answer.result.get("scenarios", {}).items():
                if model_id in told.get("aliases", {}).values():
                    return str(name)
    return None


@click.command("train-now")
@default_scenario_option
@click.option("--kind", type=click.Choice(["offline", "lora"]), help="what to train; default: as processor_mode says")
@click.option("--apply/--no-apply", "apply_", default=None, help="apply or not, whatever apply_mode says")
@click.option("--force", is_flag=True, help="also where nothing is new")
@click.option("--dry-run", is_flag=True, help="only say what would be trained")
@sending
def train_now(
    *, settings: Settings, scenario: str | None, kind: Any, apply_: bool | None, force: bool, dry_run: bool, **how: Any
) -> None:
    """Train a scenario now.

    Where nothing is new or there is too little, nothing is trained: `state` is skipped, `reason` says why, status 0.
    """
    args = TrainNow(kind=kind, apply=apply_, force=force, dry_run=dry_run)
    carry(settings, "train-now", args, one_scenario(scenario, settings), **how)


@click.command()
@default_scenario_option
@click.option("--model", help="id, version or alias; default: the newest candidate")
@click.option("--kind", type=click.Choice(["offline", "lora"]), help="the newest candidate of this kind")
@click.option("--force", is_flag=True, help="also where the gate did not bless it")
@partial(sending, looks_up=True)
def apply(*, settings: Settings, scenario: str | None, model: str | None, kind: Any, force: bool, **how: Any) -> None:
    """Make a model the live one. An id says alone which scenario is meant."""
    number = int(model) if model is not None and model.isdecimal() and len(model) < 10 else None  # noqa: PLR2004 - an id is longer
    args = Apply(model_id=None if number is not None else model, version=number, force=force, kind=kind)
    carry(settings, "apply", args, _meant(settings, scenario, model), **how)


@click.command()
@default_scenario_option
@click.option("--model", help="id or version of an earlier model; default: the one before")
@click.option("--kind", type=click.Choice(["offline", "lora"]), help="default: the kind that was changed last")
@partial(sending, looks_up=True)
def rollback(*, settings: Settings, scenario: str | None, model: str | None, kind: Any, **how: Any) -> None:
    """Go back to the model that was live before."""
    carry(settings, "rollback", Rollback(model_id=model, kind=kind), _meant(settings, scenario, model), **how)


@click.command()
@default_scenario_option
@sending
def rebuild(*, settings: Settings, scenario: str | None, **how: Any) -> None:
    """Make all episodes and statistics again from the log."""
    carry(settings, "rebuild", Rebuild(), one_scenario(scenario, settings), **how)


@click.command()
@any_scenario_option
@worker_option
@click.option("--what", type=click.Choice(["ingest", "training", "all"]), default="all", show_default=True)
@sending
def pause(*, settings: Settings, scenario: str | None, worker_id: str | None, what: Any, **how: Any) -> None:
    """Stop taking in records, starting trainings, or both.

    A paused intake ends with a restart; paused trainings stay paused.
    """
    carry(settings, "pause", Pause(what=what), scenario, worker_id=worker_id, **how)


@click.command()
@any_scenario_option
@worker_option
@click.option("--what", type=click.Choice(["ingest", "training", "all"]), default="all", show_default=True)
@sending
def resume(*, settings: Settings, scenario: str | None, worker_id: str | None, what: Any, **how: Any) -> None:
    """Go on after a pause."""
    carry(settings, "resume", Resume(what=what), scenario, worker_id=worker_id, **how)


@click.command()
@any_scenario_option
@worker_option
@sending
def shutdown(*, settings: Settings, scenario: str | None, worker_id: str | None, **how: Any) -> None:
    """Let the worker drain and stop."""
    carry(settings, "shutdown", Shutdown(), scenario, worker_id=worker_id, **how)
