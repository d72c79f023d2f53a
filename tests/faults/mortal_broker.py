"""A private RabbitMQ that can be killed, stopped and started again on what it had, under a guardian that ends with us.

Run as `python mortal_broker.py DIRECTORY PORT`: the guardian. It takes `start`, `kill` and `stop` on standard input, a
line each, answers with a line once it is done, and ends with everything when its input ends, however we die.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from worker.broker.private_server import (
    control_command,
    find_server,
    free_port,
    kill_node,
    prepare,
    server_environment,
    start_epmd,
    start_node,
)
from worker.broker.probe import handshake
from worker.broker.url import parse_amqp_url

_PATIENCE = 60.0


class MortalBroker:
    """The test's side of it."""

    def __init__(self, server: Path, directory: Path, port: int, guardian: asyncio.subprocess.Process) -> None:
        self.url = f"amqp://guest:guest@127.0.0.1:{port}/"
        #: Seconds from each start to the first connection that was let in.
        self.start_seconds: list[float] = []
        self._server = server
        self._directory = directory
        self._guardian = guardian

    async def start(self) -> float:
        """Start the server, on what it had; the time at which it let a first connection in."""
        began = time.monotonic()
        await self._tell("start")
        target = parse_amqp_url(self.url)
        while time.monotonic() - began < _PATIENCE:
            try:
                await asyncio.to_thread(handshake, target)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                self.start_seconds.append(round(time.monotonic() - began, 1))
                return time.monotonic()
        raise AssertionError(f"the broker did not start: {self._console()}")

    async def kill(self) -> None:
        """kill -9."""
        assert await self._tell("kill") == str(-signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, and wait for its orderly end."""
        assert await self._tell("stop") == "0", self._console()

    async def control(self, *arguments: str) -> None:
        """`rabbitmqctl`."""
        command = await asyncio.create_subprocess_exec(
            control_command(self._server),
            *arguments,
            env=server_environment(self._directory),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        _, said = await asyncio.wait_for(command.communicate(), _PATIENCE)
        assert command.returncode == 0, f"{arguments}: {said.decode()}"

    async def _tell(self, what: str) -> str:
        """An order to the guardian; its answer, an exit status."""
        assert self._guardian.stdin is not None
        assert self._guardian.stdout is not None
        self._guardian.stdin.write(f"{what}\n".encode())
        return (await asyncio.wait_for(self._guardian.stdout.readline(), _PATIENCE)).decode().strip()

    def _console(self) -> str:
        return (self._directory / "console.log").read_text(errors="replace")[-2000:]


@contextlib.asynccontextmanager
async def mortal_broker() -> AsyncIterator[MortalBroker]:
    """A broker of the test's own, started. Where RabbitMQ is in Docker only, it fails and says what to install."""
    server = find_server()
    assert server is not None, "this test kills its own RabbitMQ; install one (Debian: apt-get install rabbitmq-server)"
    directory, port = Path(tempfile.mkdtemp(prefix="swarm-mortal-")), free_port()
    guardian = await asyncio.create_subprocess_exec(
        sys.executable, __file__, str(directory), str(port), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        broker = MortalBroker(server, directory, port, guardian)
        await broker.start()
        yield broker
    finally:
        await guardian.communicate(b"")  # the end of its input; None would leave it open


def main(directory: Path, port: int) -> None:
    """The guardian."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Not SIG_IGN: the server would inherit that, and SIGTERM is how it is stopped.
        signal.signal(name, lambda *_: None)
    server = find_server()
    assert server is not None
    environment = prepare(directory, port)
    with (directory / "console.log").open("ab") as console:
        epmd = start_epmd(environment, console)
        node: subprocess.Popen[bytes] | None = None
        try:
            for line in sys.stdin:
                status = 0
                if line.strip() == "start":
                    node = start_node(server, environment, console)
                elif node is not None and line.strip() == "kill":
                    kill_node(node)
                    status = node.returncode
                elif node is not None:
                    node.terminate()
                    status = node.wait(timeout=_PATIENCE)
                sys.stdout.write(f"{status}\n")
                sys.stdout.flush()
        finally:
            if node is not None:
                kill_node(node)
            epmd.kill()
            epmd.wait()
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
