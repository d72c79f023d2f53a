"""Following what happens: what nodes report, what the worker says of itself, which learning events come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from worker.broker.answers import Answer
from worker.broker.control_client import ControlClient
from worker.cli.commands import make_command, send
from worker.cli.demo.processes import Child, DemoFailed
from worker.cli.demo.reports import Report
from worker.cli.demo.state import State
from worker.client.following import EventFollower
from worker.errors import NotFound
from worker.wire.commands import Args, Shutdown, Status
from worker.wire.events import Applied, Event, Failed, RolledBack, Skipped, Trained

#: Seconds between two questions to the worker, and for an answer.
_ASK_EVERY, _ANSWER_WITHIN = 1.0, 15.0
_decode_report = msgspec.json.Decoder(Report).decode


async def follow_node(node: Child, state: State, *, alone: bool) -> None:
    """Note what a node reports, to its end; raises `DemoFailed` where that is not its last word."""
    try:
        async for line in node.output:
            report = _decode_report(line)
            state.courses[report.game].tally.add(node.name, report, alone=alone)
    except (msgspec.DecodeError, ValueError) as error:
        raise node.failure(f"said what is no report: {error}") from error
    code = await node.process.wait()
    if code != 0:
        raise node.failure(f"ended with exit code {code}")
    if state.phase != "ending":
        raise node.failure("ended by itself")


async def watch_worker(worker: Child, state: State) -> None:
    """Raises `DemoFailed` where the worker ends before it was told to, or badly."""
    code = await worker.process.wait()
    if code != 0:
        raise worker.failure(f"ended with exit code {code}")
    if state.phase != "ending":
        raise worker.failure("ended by itself")


async def follow_events(follower: EventFollower, state: State, say: Callable[[str], None]) -> None:
    """Note and tell every learning event."""
    async for event in follower:
        course = state.course_of(event.subject or "")
        if course is None:
            continue
        course.events[event.type] = course.events.get(event.type, 0) + 1
        if isinstance(event.data, Applied):
            course.live_version = event.data.model_version
        say(f"{event.type:<22} {course.game}: {describe(event)}")


def describe(event: Event) -> str:
    """What an event says, in a line."""
    data = event.data
    match data:
        case Trained():
            reasons = "" if data.gate.verdict == "blessed" else f" ({'; '.join(data.gate.reasons)})"
            counts = f"{data.counts.episodes:,} episodes, {data.counts.sessions:,} sessions"
            return f"model {data.model_version} from {counts}; the gate says {data.gate.verdict}{reasons}"
        case Applied():
            return f"model {data.model_version} is live, {'verified' if data.verified else 'not verified'}"
        case Failed() | Skipped() | RolledBack():
            return f"{data.reason} {data.details.get('detail', '')}".strip()
        case _:
            return "newer than this program"


async def ask_status(client: ControlClient, state: State, *, worker_id: str) -> None:
    """Ask the worker again and again, for as long as it is asked to."""
    while True:
        await note_status(client, state, worker_id=worker_id)
        await asyncio.sleep(_ASK_EVERY)


async def note_status(client: ControlClient, state: State, *, worker_id: str) -> bool:
    """Ask the worker once; whether it is ready. Raises `NotFound` where it does not listen, `NoAnswer`."""
    reply = await command(client, "status", Status(), worker_id=worker_id, within=_ANSWER_WITHIN)
    for scenario, status in reply.result.get("scenarios", {}).items():
        course = state.course_of(scenario)
        if course is not None:
            course.status = status
    return bool(reply.result.get("ready"))


async def until_ready(client: ControlClient, state: State, *, worker_id: str) -> None:
    """Wait until the worker listens and says that it is ready; the caller bounds it."""
    while True:
        try:
            if await note_status(client, state, worker_id=worker_id):
                return
        except NotFound:
            pass  # its queue is not there yet
        await asyncio.sleep(0.2)


async def shut_down(client: ControlClient, *, worker_id: str, within: float) -> None:
    """Have the worker drain and stop."""
    reply = await command(client, "shutdown", Shutdown(), worker_id=worker_id, within=within)
    if reply.status != "done":
        raise DemoFailed(f"the worker answered shutdown with {reply.status}: {reply.error}")


async def command(client: ControlClient, name: str, args: Args, *, worker_id: str, within: float) -> Answer:
    """Send a command to our worker alone, and wait for its final answer."""
    async for reply in send(client, make_command(name, args, None), timeout=within, worker_id=worker_id):
        if reply.final:
            return reply
    raise DemoFailed(f"the worker gave no answer to {name}")
