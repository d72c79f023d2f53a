"""A command beside a broker: it ends in its own way when it is asked to, as a worker that drains does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.rabbitmq

#: Takes a second to end, four times what `subprocess.run` allows after Ctrl-C.
_SLOW_TO_END = """
import signal, sys, time
def end(number, _):
    time.sleep(1)
    sys.exit(3)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_asked_to_end_is_waited_for(amqp_url: str, number: signal.Signals) -> None:
    """Ctrl-C is for the whole process group, SIGTERM for the one process that was told."""
    command = [sys.executable, "-m", "worker.broker.local", "--", sys.executable, "-c", _SLOW_TO_END]
    with subprocess.Popen(
        command, env={**os.environ, "SWARM_AMQP_URL": amqp_url}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(timeout=20) == 3


def test_wrong_use_is_told_before_any_broker_is_started() -> None:
    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "worker.broker.local", *arguments]
        done = subprocess.run(
            command, env={**os.environ, "SWARM_AMQP_URL": "amqp://nobody@localhost:1/"},
            check=False, timeout=30, capture_output=True, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    assert run("--help")[0] == 0
    assert run("--")[0] == 64
    assert run("--", "no-such-command") == (
        127, "broker: there is no command 'no-such-command' to run beside a broker\n"
    )  # fmt: skip


def test_a_command_that_a_signal_ended_says_so_as_shells_do(amqp_url: str) -> None:
    command = [sys.executable, "-m", "worker.broker.local", "--", "/bin/sh", "-c", "kill -9 $$"]
    done = subprocess.run(command, env={**os.environ, "SWARM_AMQP_URL": amqp_url}, check=False, timeout=30)
    assert done.returncode == 128 + signal.SIGKILL
