"""A RabbitMQ of our own on a free loopback port: Debian's server, run directly, gone when its owner is gone.

Run as `python -m worker.broker.private_server DIRECTORY PORT`: starts the server under DIRECTORY, and ends it when
standard input reaches its end. The owner holds the other end of that pipe, so the server does not outlive it however it
dies.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

#: Debian's /usr/sbin/rabbitmq-server insists on user rabbitmq and on its own directories; the script it calls does not.
_DEBIAN = "/usr/lib/rabbitmq/lib"

_CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
max_message_size = 16777216
consumer_timeout = 1800000
disk_free_limit.absolute = 50MB
heartbeat = 10
loopback_users.guest = true
log.console = false
log.file.level = warning
"""

_ADVANCED = "[{kernel, [{inet_dist_use_interface, {127,0,0,1}}]}].\n"


def find_server() -> Path | None:
    """The server's start script, or None where RabbitMQ is not installed."""
    debian = sorted(Path(_DEBIAN).glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    if debian:
        return debian[-1]
    other = shutil.which("rabbitmq-server")
    return Path(other) if other else None


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def server_environment(directory: Path) -> dict[str, str]:
    """What the server and `rabbitmqctl` need to find each other; written once per directory."""
    saved = directory / "environment"
    if not saved.exists():
        epmd_port = free_port()
        values = {
            "RABBITMQ_NODENAME": f"swarm{epmd_port}@localhost",
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "none"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(directory / "generated"),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "HOME": str(directory),
        }
        saved.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    lines = saved.read_text().splitlines()
    return {**os.environ, **dict(line.split("=", 1) for line in lines)}


def control_command(server: Path) -> str:
    """The `rabbitmqctl` that belongs to `server`, callable by any user."""
    beside = server.with_name("rabbitmqctl")
    debian = Path("/usr/lib/rabbitmq/bin/rabbitmqctl")
    return str(next((path for path in (debian, beside) if path.exists()), "rabbitmqctl"))


def prepare(directory: Path, port: int) -> dict[str, str]:
    """Write the server's configuration; the environment to start it in. What is there already stays."""
    (directory / "rabbitmq.conf").write_text(_CONFIGURATION.format(port=port))
    (directory / "advanced.config").write_text(_ADVANCED)
    (directory / "enabled_plugins").write_text("[].\n")
    cookie = directory / ".erlang.cookie"
    if not cookie.exists():
        cookie.touch(mode=0o600)
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
    return server_environment(directory)


def start_epmd(environment: dict[str, str], console: IO[bytes]) -> subprocess.Popen[bytes]:
    """Erlang's directory of nodes. Started here, not by the server: it would detach itself and outlive everybody."""
    program = shutil.which("epmd") or "epmd"
    return subprocess.Popen([program], env=environment, stdin=subprocess.DEVNULL, stdout=console, stderr=console)


def start_node(server: Path, environment: dict[str, str], console: IO[bytes]) -> subprocess.Popen[bytes]:
    """The server itself, in a process group of its own. On the same directory it goes on with what it had."""
    return subprocess.Popen(
        [server], env=environment, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
    )


def kill_node(node: subprocess.Popen[bytes]) -> None:
    """End all of it by kill -9."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGKILL)
    node.wait()


def serve(server: Path, directory: Path, port: int) -> None:
    """Run the server until standard input ends or the server stops."""
    environment = prepare(directory, port)
    with (directory / "console.log").open("wb") as console:
        epmd = start_epmd(environment, console)
        node = start_node(server, environment, console)
        stopped = _when_it_stops(node)
        try:
            _wait_for_end(stopped)
        finally:
            kill_node(node)  # nothing in it is worth an orderly end, which takes seconds
            epmd.kill()
            epmd.wait()


def _when_it_stops(node: subprocess.Popen[bytes]) -> int:
    """A file descriptor that becomes readable when the server has stopped."""
    return os.pidfd_open(node.pid) if hasattr(os, "pidfd_open") else -1


def _wait_for_end(stopped: int) -> None:
    waiting = [sys.stdin.fileno()] + ([stopped] if stopped >= 0 else [])
    while True:
        ready, _, _ = select.select(waiting, [], [])
        if stopped in ready or not os.read(sys.stdin.fileno(), 4096):
            return


def main() -> None:
    """The guardian process."""
    # The owner says when it is over; a Ctrl-C on the terminal is the owner's to handle.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    server = find_server()
    if server is None:
        sys.exit("no rabbitmq-server is installed")
    directory = Path(sys.argv[1])
    try:
        serve(server, directory, int(sys.argv[2]))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
