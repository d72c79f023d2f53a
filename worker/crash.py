"""Crash points: named places where the process kills itself when told to, to show that nothing is lost there.

`SWARM_CRASH_AT=post_commit:3` is kill -9 at the third time that place is reached: no clean-up, no last words. The idea
is FoundationDB's BUGGIFY. A point that is off costs one comparison, 50 ns (measured; a message of 100 records costs
700,000).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: In the order in which a message meets them, and what it leads to.
POINTS = (
    "receive",  # a delivery came in
    "decode",  # it was decoded and judged
    "begin",  # the group's transaction has begun
    "mid_insert",  # half of its rows are written
    "pre_commit",  # all are
    "post_commit",  # they are on disk, nothing is acknowledged
    "mid_ack",  # half of the group is acknowledged
    "post_ack",  # all of it is
    "trigger_claimed",  # a run is ours and `running`
    "trainer_started",  # its child process runs
    "model_renamed",  # the model's files are in their place and have no row
    "run_committed",  # the run has ended and its event is to be sent
    "event_published",  # the event is on its way, not confirmed
    "event_confirmed",  # it is confirmed and not marked as sent
    "control_persisted",  # a command is stored and not acknowledged
)

#: Those of an adapter, beside the points of every learning; in the order in which one meets them.
ADAPTER_POINTS = (
    "trainer_stage",  # the child that trains begins with something else: reading, loading, a step, judging, writing
    "adapter_copied",  # one of the adapter's files is in the directory that will be its own
    "apply_started",  # the deployment is a row, nothing was touched
    "adapter_listed",  # the server's list has it beside the old one
    "adapter_loaded",  # the server has it, nobody asks for it
    "adapter_probed",  # it answers as it should, nobody asks for it
    "pointer_moved",  # nodes are told to ask for it
    "adapter_unloaded",  # the server no longer has an old one
    "apply_brought",  # it is served, and not the champion yet
    "apply_committed",  # it is the champion
)

#: Most digits of a count.
_DIGITS = 9

_armed: str | None = None
_left = 0


def parse(text: str) -> tuple[str, int]:
    """`post_commit:3` as name and count; the count may be left out and is 1 then. Raises ValueError with the cure."""
    name, colon, count = text.partition(":")
    if name not in POINTS + ADAPTER_POINTS:
        raise ValueError(f"{name!r} is no crash point; choose from {', '.join(POINTS + ADAPTER_POINTS)}")
    if colon and not (count.isascii() and count.isdecimal() and len(count) <= _DIGITS and int(count)):
        raise ValueError(f"{text!r}: after the colon stands at which time of reaching it, such as {name}:3")
    return name, int(count or 1)


def checked(text: str) -> str:
    """The same text; ValueError where `parse` raises it."""
    parse(text)
    return text


def arm(text: str | None) -> None:
    """Die at this point, or at none; `parse` says what may stand here."""
    global _armed, _left  # noqa: PLW0603 - one process has one end, and a name lookup is what the hot path can afford
    if text is None:
        _armed = None
        return
    _armed, _left = parse(text)
    log.warning("crash_point_armed", point=_armed, hits=_left, cure="unset SWARM_CRASH_AT; it is for tests alone")


def armed(name: str) -> bool:
    """Whether the process is to die at this point: for places that must be made reachable first."""
    return name == _armed


def point(name: str) -> None:
    """A place to die at. Each name is reached from one thread at a time."""
    if name == _armed:
        _reached()


def _reached() -> None:
    global _left  # noqa: PLW0603 - see arm
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)


async def halfway(name: str, work: Coroutine[Any, Any, T]) -> T:
    """Do `work`; when armed, reach the point once it has been sent and before it is answered."""
    if name != _armed:
        return await work
    task = asyncio.ensure_future(work)
    for _ in range(3):  # the frame is put in a queue, taken out by the writer, and on the socket then
        await asyncio.sleep(0)
    point(name)
    return await task
