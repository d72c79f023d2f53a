"""A broker to work with on this machine: found where one is, started where none is, gone afterwards.

`python -m worker.broker.local -- COMMAND...` runs COMMAND with SWARM_AMQP_URL set.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.broker.private_server import control_command, find_server, free_port, server_environment
from worker.broker.probe import handshake, wait_until_up
from worker.broker.url import parse_amqp_url
from worker.errors import BrokerRefused, BrokerUnreachable

LOCALHOST = "amqp://guest:guest@localhost:5672/"
DEFAULT_IMAGE = "rabbitmq:4"
_USAGE = "usage: python -m worker.broker.local -- COMMAND...\n\nRun COMMAND beside a broker, SWARM_AMQP_URL set."
_START_TIMEOUT = 90.0
_PULL_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalBroker:
    """A broker that answers, and how it was come by."""

    url: str
    found: str
    #: Command line in front of `rabbitmqctl`'s own arguments, where this broker can be administered; else empty.
    control: tuple[str, ...] = ()
    control_environment: dict[str, str] | None = None


#: Runs an image and gives the broker in it.
InDocker = Callable[[str], contextlib.AbstractContextManager[LocalBroker]]


@contextlib.contextmanager
def local_broker(*, in_docker: InDocker | None = None) -> Iterator[LocalBroker]:
    """SWARM_AMQP_URL, else RabbitMQ on localhost, else one in Docker, else a private server; cleans up what it started.

    `in_docker` runs the image in another way than `docker run`. From asyncio, enter it in a thread: it takes seconds.

    Raises `BrokerUnreachable` where none is found and none can be started, saying what to install.
    """
    given = os.environ.get("SWARM_AMQP_URL")
    if given:
        yield _given(given)
    elif _answers(LOCALHOST):
        yield LocalBroker(url=LOCALHOST, found="RabbitMQ on localhost:5672")
    else:
        image = docker_image()
        with (in_docker or docker_broker)(image) if image else private_broker() as broker:
            yield broker


def docker_image() -> str | None:
    """The image to run (RABBITMQ_IMAGE) where a Docker engine answers and has it or can pull it."""
    if not shutil.which("docker") or not _succeeds(["docker", "info", "--format", "{{.ServerVersion}}"], 10):
        return None
    image = os.environ.get("RABBITMQ_IMAGE", DEFAULT_IMAGE)
    if _succeeds(["docker", "image", "inspect", image], 10):
        return image
    _say(f"pulling {image}")
    return image if _succeeds(["docker", "pull", "--quiet", image], _PULL_TIMEOUT) else None


@contextlib.contextmanager
def private_broker() -> Iterator[LocalBroker]:
    """A RabbitMQ server of our own on a free loopback port."""
    server = find_server() or _install_server()
    directory = Path(tempfile.mkdtemp(prefix="swarm-rabbitmq-"))
    port = free_port()
    command = [sys.executable, "-m", "worker.broker.private_server", str(directory), str(port)]
    with _guarded(command) as guardian:
        url = f"amqp://guest:guest@127.0.0.1:{port}/"
        version = _wait(url, guardian, directory / "console.log")
        yield LocalBroker(
            url=url,
            found=f"a private RabbitMQ {version} on port {port}",
            control=(control_command(server),),
            control_environment=server_environment(directory),
        )


@contextlib.contextmanager
def docker_broker(image: str) -> Iterator[LocalBroker]:
    """A RabbitMQ container on a free loopback port."""
    port = free_port()
    name = f"swarm-rabbitmq-{port}"
    # The shell reads the end of its input when we are gone, however that came, and removes the container.
    script = (
        'docker run --rm --name "$1" -p "127.0.0.1:$2:5672" "$3" >/dev/null 2>&1 & '
        'cat >/dev/null; docker rm -f "$1" >/dev/null 2>&1'
    )
    with _guarded(["/bin/sh", "-c", script, "sh", name, str(port), image]) as guardian:
        # The official image lets guest in from everywhere.
        url = f"amqp://guest:guest@127.0.0.1:{port}/"
        version = _wait(url, guardian, None)
        yield LocalBroker(
            url=url,
            found=f"RabbitMQ {version} in Docker ({image}) on port {port}",
            control=("docker", "exec", name, "rabbitmqctl"),
        )


@contextlib.contextmanager
def _guarded(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends, with all it started, when its standard input ends: with this block, or with our death."""
    guardian = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield guardian
    finally:
        guardian.communicate(timeout=30)


def _wait(url: str, guardian: subprocess.Popen[bytes], console: Path | None) -> str:
    try:
        return wait_until_up(parse_amqp_url(url), timeout=_START_TIMEOUT, still_alive=lambda: guardian.poll() is None)
    except TimeoutError as error:
        said = console.read_text(errors="replace")[-2000:] if console and console.exists() else ""
        raise BrokerUnreachable(f"the broker did not start: {error}\n{said}") from error


def _given(url: str) -> LocalBroker:
    allow = os.environ.get("SWARM_AMQP_ALLOW_PLAINTEXT", "").lower() in {"1", "true", "yes", "on"}
    files = {
        name: Path(given) if (given := os.environ.get(f"SWARM_AMQP_{name.upper()}")) else None
        for name in ("ca_file", "cert_file", "key_file")
    }
    target = parse_amqp_url(url, **files, allow_plaintext=allow)
    try:
        handshake(target, timeout=10)
    except PermissionError as error:
        raise BrokerRefused(f"SWARM_AMQP_URL: the broker refuses {target.masked}: {error}") from error
    except OSError as error:
        raise BrokerUnreachable(f"SWARM_AMQP_URL is set, but no broker answers at {target.masked}: {error}") from error
    return LocalBroker(url=url, found=f"SWARM_AMQP_URL ({target.masked})")


def _answers(url: str) -> bool:
    try:
        handshake(parse_amqp_url(url), timeout=1)
    except OSError:
        return False
    return True


def _install_server() -> Path:
    """Debian's package, where we may; `BrokerUnreachable` with what to do where we may not."""
    cure = "install RabbitMQ (Debian: apt-get install rabbitmq-server), start Docker, or set SWARM_AMQP_URL"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise BrokerUnreachable(f"no RabbitMQ is here; {cure}")
    _say("installing rabbitmq-server with apt-get")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "rabbitmq-server"]
    for command in (["apt-get", "update", "-qq"], install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode != 0:
            raise BrokerUnreachable(f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]}; {cure}")
    server = find_server()
    if server is None:
        raise BrokerUnreachable(f"rabbitmq-server was installed but is not where it is expected; {cure}")
    return server


def _succeeds(command: list[str], timeout: float) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=timeout).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _say(text: str) -> None:
    sys.stderr.write(f"broker: {text}\n")
    sys.stderr.flush()


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Run a command to its end; its exit status, or 128 and the signal that ended it.

    Ctrl-C reaches it by itself, being in our process group; SIGTERM is handed on. It then ends in its own way (a worker
    drains), and its broker stays for as long as that takes. `subprocess.run` would kill it within 0.25 s.
    """
    with subprocess.Popen(command, env=environment) as running:
        before = {
            signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
            signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, _: running.send_signal(number)),
        }
        try:
            status = running.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return 128 - status if status < 0 else status


def main(arguments: list[str]) -> int:
    """Run a command beside a broker; its exit status is ours."""
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    # While the broker is started, that it ends with us: by default SIGTERM ends Python without any cleaning up.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if not command or command[0] in ("-h", "--help"):
        (sys.stdout if command else sys.stderr).write(f"{_USAGE}\n")
        return 0 if command else 64
    if shutil.which(command[0]) is None:
        _say(f"there is no command {command[0]!r} to run beside a broker")
        return 127
    try:
        with local_broker() as broker:
            _say(f"using {broker.found}")
            if broker.control:  # ours, so nobody else knows where it is
                _say(f"for commands in another shell: export SWARM_AMQP_URL={broker.url}")
            return _run(command, {**os.environ, "SWARM_AMQP_URL": broker.url})
    except (BrokerRefused, BrokerUnreachable) as error:
        _say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
