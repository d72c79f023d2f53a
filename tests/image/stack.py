"""compose.yaml brought up for real, under a name, ports and volumes of its own, and taken down with all it left."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from worker.broker.private_server import free_port

ROOT = Path(__file__).parents[2]
_OFFICIAL = {"PYTHON_IMAGE": "python:3.11-slim", "RABBITMQ_IMAGE": "rabbitmq:4-management"}


class NoEngine(Exception):
    """What these tests need is not here; the message says what and how to get it."""


def run(*command: str, within: float = 60.0, code: int | None = 0, **environment: str) -> str:
    """A program's standard output; fails unless it ends with `code` (None: any) in time."""
    # What this shell may have set for another worker is none of the stack's business.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SWARM_")}
    try:
        done = subprocess.run(
            command, env=kept | environment, cwd=ROOT, capture_output=True, text=True, timeout=within, check=False
        )
    except FileNotFoundError:
        raise NoEngine(f"there is no program {command[0]!r} here") from None
    assert code in (None, done.returncode), f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


class Stack:
    """Broker and worker, and whatever else of compose.yaml is asked for."""

    def __init__(self, *scenarios: str, **settings: str) -> None:
        """`settings` are the worker's variables. Raises `NoEngine` where no engine answers or an image is lacking."""
        _require_engine()
        self._compose = _compose_command()
        self.project = f"swarm-image-test-{os.getpid()}"
        self.image = f"{self.project}:latest"
        self.demo_image = f"{self.project}-demo:latest"
        self.broker_port, self.http_port = free_port(), free_port()
        self.images = {name: os.environ.get(name, official) for name, official in _OFFICIAL.items()}
        for name, image in self.images.items():
            _require_image(name, image)
        self.environment = self.images | {
            "COMPOSE_PROJECT_NAME": self.project,
            "SWARM_IMAGE": self.image,
            "SWARM_DEMO_IMAGE": self.demo_image,
            "SWARM_SCENARIOS": ",".join(scenarios),
            **settings,
            "BROKER_PORT": str(self.broker_port),
            "MANAGEMENT_PORT": str(free_port()),
            "HTTP_PORT": str(self.http_port),
            "ADMIN_PASSWORD": "n0tguest",
            "WORKER_PASSWORD": "w0rker",
            "OPERATOR_PASSWORD": "0perator",
            "NODE_DEMO_PASSWORD": "n0de",
        }

    @property
    def amqp_url(self) -> str:
        """The broker, from outside, with the rights to everything."""
        return f"amqp://admin:n0tguest@127.0.0.1:{self.broker_port}/swarm"

    def compose(self, *arguments: str, within: float = 120.0, code: int | None = 0) -> str:
        """`docker-compose ...`, in whichever spelling is here."""
        return run(*self._compose, *arguments, within=within, code=code, **self.environment)

    def container(self, service: str) -> str:
        """The id of a service's container."""
        return self.compose("ps", "--all", "--quiet", service).strip()

    def inspect(self, service: str) -> Any:
        """All that the engine knows of a service's container."""
        return json.loads(run("docker", "inspect", self.container(service)))[0]

    def inside(self, *command: str, within: float = 60.0, code: int | None = 0) -> str:
        """A command in the worker's container."""
        return run("docker", "exec", self.container("worker"), *command, within=within, code=code)

    def wait_healthy(self, service: str, *, within: float) -> None:
        """Until the service's own health check says so."""
        deadline = time.monotonic() + within
        while (state := self.inspect(service)["State"])["Health"]["Status"] != "healthy":
            assert state["Running"], f"{service} ended with {state['ExitCode']}: {self.logs(service)}"
            assert time.monotonic() < deadline, f"{service} is not healthy: {state['Health']} {self.logs(service)}"
            time.sleep(0.2)

    def logs(self, service: str) -> str:
        """The end of what the service wrote."""
        return self.compose("logs", "--no-color", "--tail=40", service)

    def remove(self) -> None:
        """Containers, networks, volumes and images."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5", code=None)
        run("docker", "image", "rm", "--force", self.image, self.demo_image, code=None)


def _require_engine() -> None:
    if not run("docker", "info", "--format", "{{.ServerVersion}}", code=None).strip():
        raise NoEngine("no Docker engine answers; start it, or say where it is with DOCKER_HOST")


def _compose_command() -> tuple[str, ...]:
    for command in (("docker", "compose"), ("docker-compose",)):
        try:
            run(*command, "version")
        except (AssertionError, NoEngine):
            continue
        return command
    raise NoEngine("neither `docker compose` nor `docker-compose` is here (Debian: apt-get install docker-compose)")


def _require_image(variable: str, image: str) -> None:
    if run("docker", "image", "inspect", "--format", "{{.Id}}", image, code=None).strip():
        return
    run("docker", "pull", "--quiet", image, within=600, code=None)
    if not run("docker", "image", "inspect", "--format", "{{.Id}}", image, code=None).strip():
        raise NoEngine(f"the image {image} is not here and cannot be pulled; name one that is here with {variable}")
