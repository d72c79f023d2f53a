"""Crash points: what may be asked for, and that they kill when asked and only then."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from worker import crash

_PROGRAM = """
from worker import crash
crash.arm({asked!r})
for name in ("receive", "post_commit") * 3:
    print(name, flush=True)
    crash.point(name)
"""


def run(asked: str | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(asked=asked)], capture_output=True, text=True, check=False, timeout=30
    )


def test_the_process_dies_of_kill_9_at_the_hit_that_was_asked_for_and_not_before() -> None:
    ended = run("post_commit:2")
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout.splitlines()[1:] == ["receive", "post_commit"] * 2


def test_without_a_count_the_first_hit_is_the_last() -> None:
    ended = run("receive")
    assert ended.returncode == -signal.SIGKILL
    armed, *reached = ended.stdout.splitlines()
    assert "crash_point_armed" in armed
    assert reached == ["receive"]


def test_a_point_that_is_off_does_nothing() -> None:
    ended = run(None)
    assert (ended.returncode, ended.stdout.split()) == (0, ["receive", "post_commit"] * 3)


@pytest.mark.parametrize(
    "text", ["", "nowhere", "receive:", "receive:0", "receive:-1", "receive:x", "receive:1:2", ":3"]
)
def test_what_is_no_crash_point_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"choose from receive, decode|such as receive:3"):
        crash.parse(text)


async def test_halfway_returns_what_the_work_returns() -> None:
    async def work() -> int:
        return 7

    assert await crash.halfway("event_published", work()) == 7
