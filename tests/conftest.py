"""What all tests share: a real RabbitMQ, found or started once a run, and a virtual host for each test."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests import no_pickle
from worker.broker.local import LocalBroker

no_pickle.forbid()

_HOLDER = Path(__file__).with_name("broker_holder.py")
_PATIENCE = 420.0
_VHOSTS_AT_ONCE = 10


class Broker:
    """The broker of this run, and `rabbitmqctl` for it where it can be administered."""

    def __init__(self, found: LocalBroker) -> None:
        self.found = found
        self._vhosts: list[str] = []

    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl`. Half a second on a private server."""
        if not self.found.control:
            pytest.fail(
                "this test needs a broker it may administer; unset SWARM_AMQP_URL and stop the one on localhost"
            )
        environment = self.found.control_environment or dict(os.environ)
        command = [*self.found.control, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=50)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def fresh_url(self) -> str:
        """The URL of a virtual host that nobody has used; of the given one where we may not make any."""
        if not self.found.control:
            return self.found.url
        if not self._vhosts:
            self._vhosts = [f"test-{uuid4().hex[:12]}" for _ in range(_VHOSTS_AT_ONCE)]
            names = ",".join(f'<<"{name}">>' for name in self._vhosts)
            # One call makes ten: starting `rabbitmqctl` costs more than they do.
            self.control(
                "eval",
                f'[begin rabbit_vhost:add(V, <<"test">>), rabbit_auth_backend_internal:set_permissions('
                f'<<"guest">>, V, <<".*">>, <<".*">>, <<".*">>, <<"test">>) end || V <- [{names}]].',
            )
        return f"{self.found.url.rstrip('/')}/{self._vhosts.pop()}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the long tests, which have a time limit of their own, over the first half; the order else is chance's.

    Two processes that share the tests end together: a test of a minute that came last kept one of them idle as long.
    """
    limits = [item.get_closest_marker("timeout") for item in items]
    long = [item for item, limit in zip(items, limits, strict=True) if limit is not None]
    short = [item for item, limit in zip(items, limits, strict=True) if limit is None]
    for number, item in enumerate(long):
        short.insert(number + number * len(items) // (2 * len(long)), item)
    items[:] = short


def _shared_directory(factory: pytest.TempPathFactory) -> Path:
    base = factory.getbasetemp()
    shared = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "broker"
    shared.mkdir(exist_ok=True)
    return shared


def _join_or_start(directory: Path) -> tuple[int, LocalBroker]:
    """Hold the run's broker; start its holder where none lives. Returns the end of the pipe that holds it."""
    answer = directory / "broker.json"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = _join(directory)
        if held is None:
            held = _start(directory)
            deadline = time.monotonic() + _PATIENCE
            while not answer.exists():
                assert time.monotonic() < deadline, f"no broker: {(directory / 'holder.log').read_text()[-2000:]}"
                time.sleep(0.05)
        told = json.loads(answer.read_text())
    if "error" in told:
        pytest.fail(f"these tests need a RabbitMQ: {told['error']}")
    return held, LocalBroker(**{**told, "control": tuple(told["control"])})


def _join(directory: Path) -> int | None:
    try:
        return os.open(directory / "in-use", os.O_WRONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ENXIO:  # nobody reads: the holder has gone with the process that was the last to use it
            raise
        return None


def _start(directory: Path) -> int:
    pipe = directory / "in-use"
    for old in (pipe, directory / "broker.json"):
        old.unlink(missing_ok=True)
    os.mkfifo(pipe)
    # For both, so that opening does not wait for the holder; it is never read from here.
    held = os.open(pipe, os.O_RDWR)
    command = [sys.executable, str(_HOLDER), str(directory)]
    environment = {**os.environ, "PYTHONPATH": str(_HOLDER.parent.parent)}
    with (directory / "holder.log").open("wb") as log:
        # No Popen: it may outlive this process, and such an object complains of that in the end.
        os.posix_spawn(
            sys.executable,
            command,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                *((os.POSIX_SPAWN_DUP2, log.fileno(), target) for target in (1, 2)),
            ],
            setsid=True,
        )
    return held


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real RabbitMQ, found as `worker.broker.local` finds one. Fails where there is none, never skips."""
    held, found = _join_or_start(_shared_directory(tmp_path_factory))
    yield Broker(found)
    os.close(held)


@pytest.fixture
def amqp_url(broker: Broker) -> str:
    """A broker URL for one test alone, as far as the broker lets us."""
    return broker.fresh_url()


@pytest.fixture
def scenario() -> str:
    """A scenario name nobody else uses."""
    return f"s-{uuid4().hex[:10]}"
