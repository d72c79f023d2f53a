"""The demo from start to end: worker and nodes up, play, everything down again, and what came of it."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from worker.broker.control_client import ControlClient
from worker.broker.faults import BROKER_ERRORS
from worker.broker.session import Session
from worker.broker.topology import remove_scenario
from worker.broker.url import parse_amqp_url
from worker.cli.commands import control_client
from worker.cli.common import reading_store
from worker.cli.demo.games import GAMES
from worker.cli.demo.outcome import Outcome, outcome_of
from worker.cli.demo.processes import Child, DemoFailed, node_process, worker_process
from worker.cli.demo.screen import Screen
from worker.cli.demo.state import Course, State
from worker.cli.demo.watching import ask_status, follow_events, follow_node, shut_down, until_ready, watch_worker
from worker.client.connect import connect_follower
from worker.errors import WorkerError
from worker.settings import Settings, load_settings

T = TypeVar("T")

_ROOT = Path(".swarm") / "demo"
#: Nodes that follow the model, and the one that goes without.
_FOLLOWERS, _ALONE = ("node-1", "node-2"), "node-3"
_NAMES = (*_FOLLOWERS, _ALONE)
#: Least episodes for a training, and after which share of the play the first comes; the others at the same distance.
_TRAIN_EPISODES, _TRAIN_SHARE = 100, 0.27
#: So many times longer play may take while a scenario has no model.
_EXTENSION = 1.4
#: Games under a model before it counts as tried.
_LEAST_GAMES = 10
#: Bounds of the steps around the play, in s.
_WORKER_UP, _NODES_UP, _NODES_DOWN, _ALL_STORED, _WORKER_DOWN, _QUEUES_GONE = 60.0, 60.0, 30.0, 30.0, 40.0, 10.0
_LOOK_EVERY = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long to play, with which dice, and whether to leave the data."""

    seconds: float
    seed: int
    keep: bool
    #: Of this run alone: it names scenarios, worker and directory, so that runs never meet.
    run_id: str


class Performance:
    """One run of the demo. `await perform()` once."""

    def __init__(self, given: Settings, plan: Plan, screen: Screen) -> None:
        """`given` says where the broker is; all else is the demo's own."""
        self.directory = (_ROOT / plan.run_id).absolute()
        self.state = State(courses={name: Course(game=name, scenario=f"{name}-{plan.run_id}") for name in GAMES})
        self._plan = plan
        self._screen = screen
        self._worker_id = f"demo-{plan.run_id}"
        self._broker = _broker_settings(given)
        self._values = self._broker | self._worker_settings()
        self._settings = load_settings(**self._values)

    async def perform(self) -> Outcome:
        """Play, and tell what was measured. Raises `DemoFailed`; the logs are kept then."""
        async with AsyncExitStack() as stack:
            try:
                await self._run(stack)
            except BaseExceptionGroup as errors:
                raise _first_cause(errors) from errors
        async with reading_store(self._settings) as store:
            outcome = await outcome_of(self.state, store, seconds=self._plan.seconds)
        if not self._plan.keep and not outcome.complaints:
            self.remove_directory()
        return outcome

    def remove_directory(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.directory, ignore_errors=True)

    async def _run(self, stack: AsyncExitStack) -> None:
        state, say = self.state, self._screen.say
        # First of all, so that without a broker nothing is begun.
        client = await stack.enter_async_context(control_client(self._settings))
        self.directory.mkdir(parents=True, mode=0o700)
        stack.push_async_callback(self._remove_queues)
        worker = await stack.enter_async_context(worker_process(self.directory, self._values))
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(watch_worker(worker, state))
            await _within(
                _WORKER_UP, until_ready(client, state, worker_id=self._worker_id),
                lambda: worker.failure(f"was not ready within {_WORKER_UP:g} s"),
            )  # fmt: skip
            say(f"worker {self._worker_id} is ready; it trains when {self._settings.trigger}, and applies by itself")
            follower = await stack.enter_async_context(
                connect_follower(
                    self._settings.amqp_url.get_secret_value(),
                    name=self._worker_id,
                    keys=[f"learning.*.{course.scenario}" for course in state.courses.values()],
                    ca_file=self._settings.amqp_ca_file,
                    cert_file=self._settings.amqp_cert_file,
                    key_file=self._settings.amqp_key_file,
                    allow_plaintext=self._settings.amqp_allow_plaintext,
                )
            )
            background = [
                group.create_task(follow_events(follower, state, say)),
                group.create_task(ask_status(client, state, worker_id=self._worker_id)),
                group.create_task(self._show()),
            ]
            nodes = {name: await self._start_node(stack, name, number) for number, name in enumerate(_NAMES)}
            followed = [
                group.create_task(follow_node(node, state, alone=name == _ALONE)) for name, node in nodes.items()
            ]
            await self._play(nodes)
            await self._end(nodes, followed)
            for task in background:
                task.cancel()
            await self._stop_worker(client, worker, watch)

    async def _start_node(self, stack: AsyncExitStack, name: str, number: int) -> Child:
        options = [
            *("--number", str(number), "--suffix", f"-{self._plan.run_id}", "--seed", str(self._plan.seed)),
            *("--state-dir", str(self.directory / "nodes")),
            *(("--alone",) if name == _ALONE else ()),
        ]
        values = {**self._broker, "data_dir": self._values["data_dir"], "log_level": "warning"}
        return await stack.enter_async_context(node_process(self.directory, values, name=name, options=options))

    async def _play(self, nodes: dict[str, Child]) -> None:
        """From the moment all nodes play until time is up; longer where a scenario has no model yet."""
        state, courses = self.state, self.state.courses.values()
        await _within(
            _NODES_UP, _until(lambda: all(course.tally.nodes == len(nodes) for course in courses)),
            lambda: DemoFailed(f"the nodes did not all play within {_NODES_UP:g} s; see {self.directory / 'logs'}"),
        )  # fmt: skip
        self._screen.say(f"{len(nodes)} nodes play {', '.join(state.courses)}; {_ALONE} never takes a model")
        state.began_ms, state.phase = time.time_ns() // 1_000_000, "playing"
        began, seconds = time.monotonic(), self._plan.seconds
        while True:
            played = time.monotonic() - began
            tried = all(course.tally.after.games >= _LEAST_GAMES for course in courses)
            if played >= seconds and (tried or played >= seconds * _EXTENSION):
                return
            state.seconds_left = max(0.0, seconds - played)
            await asyncio.sleep(_LOOK_EVERY)

    async def _end(self, nodes: dict[str, Child], followed: list[asyncio.Task[None]]) -> None:
        """End the play, and wait until the worker has stored and cut all of it."""
        state = self.state
        state.phase = "ending"
        self._screen.say("time is up: the nodes end their games and sessions")
        for node in nodes.values():
            node.stop()
        await _within(
            _NODES_DOWN, asyncio.wait(followed),
            lambda: DemoFailed(f"the nodes did not end within {_NODES_DOWN:g} s; see {self.directory / 'logs'}"),
        )  # fmt: skip

        def stored() -> bool:
            return all(
                course.status.get("records_received") == course.tally.published
                and course.status.get("episodes_created") == course.tally.games
                for course in state.courses.values()
            )

        try:
            async with asyncio.timeout(_ALL_STORED):
                await _until(stored)
        except TimeoutError:
            self._screen.say(f"not everything was stored within {_ALL_STORED:g} s")  # the outcome tells what is missing

    async def _stop_worker(self, client: ControlClient, worker: Child, watch: asyncio.Task[None]) -> None:
        self._screen.say("the worker drains and stops")
        await shut_down(client, worker_id=self._worker_id, within=_WORKER_DOWN)
        await _within(
            _WORKER_DOWN, asyncio.shield(watch), lambda: worker.failure(f"did not end within {_WORKER_DOWN:g} s")
        )

    async def _show(self) -> None:
        while True:
            self._screen.show(self.state)
            await asyncio.sleep(_LOOK_EVERY)

    async def _remove_queues(self) -> None:
        """The scenarios were this run's own, and on somebody else's broker their queues would pile up."""
        target = parse_amqp_url(
            self._settings.amqp_url.get_secret_value(),
            ca_file=self._settings.amqp_ca_file,
            cert_file=self._settings.amqp_cert_file,
            key_file=self._settings.amqp_key_file,
            allow_plaintext=self._settings.amqp_allow_plaintext,
        )
        session = Session("control", target, start_timeout=_QUEUES_GONE)
        try:
            async with asyncio.timeout(_QUEUES_GONE):
                await session.start()
                for course in self.state.courses.values():
                    await remove_scenario(session, course.scenario)
        except (*BROKER_ERRORS, WorkerError, TimeoutError) as error:
            self._screen.say(f"the demo's queues are still there: {error}")
        finally:
            await session.close()

    def _worker_settings(self) -> dict[str, object]:
        interval = max(1, round(self._plan.seconds * _TRAIN_SHARE))
        return {
            "data_dir": self.directory / "data",
            "store_url": f"sqlite://{self.directory / 'data' / 'swarm.db'}",
            "scenarios": ",".join(course.scenario for course in self.state.courses.values()),
            "worker_id": self._worker_id,
            "trigger": f"count({_TRAIN_EPISODES}) and every({interval}s)",
            "check_interval": "500ms",
            # One episode a game, so that stored episodes can be held against games played.
            "learn_models": "worker_task",
            "apply_mode": "auto",
            "applicator": "files",
            "http_port": 0,
            "log_format": "json",
        }


def _broker_settings(given: Settings) -> dict[str, object]:
    """Where the broker is and how to talk to it."""
    key = given.control_key
    return {
        "amqp_url": given.amqp_url.get_secret_value(),
        "amqp_ca_file": None if given.amqp_ca_file is None else given.amqp_ca_file.absolute(),
        "amqp_allow_plaintext": given.amqp_allow_plaintext,
        "control_key": None if key is None else key.get_secret_value(),
    }


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  what nodes and worker say comes in by looking
        await asyncio.sleep(_LOOK_EVERY)


async def _within(seconds: float, work: Awaitable[T], failure: Callable[[], DemoFailed]) -> T:
    """`work`, or `failure` where it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError as error:
        raise failure() from error


def _first_cause(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first; the others of a group are what that took along."""
    cause: BaseException = errors
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause
