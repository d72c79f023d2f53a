"""deploy/rabbitmq/definitions.json in a real broker, with passwords, in a virtual host of one's own.

Users are the broker's and not a virtual host's, so they stay until the broker goes; each process of a test run gives
them the same passwords.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

if TYPE_CHECKING:
    from tests.conftest import Broker

RABBITMQ = Path(__file__).parents[2] / "deploy" / "rabbitmq"
DEFINITIONS = json.loads((RABBITMQ / "definitions.json").read_text())
USERS = [user["name"] for user in DEFINITIONS["users"]]
_SECONDS = 20.0


class Door:
    """A virtual host like `swarm` with the users of the definitions."""

    def __init__(self, broker: Broker, vhost: str) -> None:
        self._place = urlsplit(broker.found.url)
        self._vhost = vhost

    def url(self, user: str) -> str:
        """How this user connects."""
        return f"amqp://{user}:{user}-pw@{self._place.hostname}:{self._place.port}/{self._vhost}"


@contextlib.contextmanager
def definitions_imported(broker: Broker, directory: Path) -> Iterator[Door]:
    """As README and compose.yaml say: passwords given by the script, imported by the broker itself."""
    rendered = directory / "definitions.json"
    passwords = {f"{user.upper().replace('-', '_')}_PASSWORD": f"{user}-pw" for user in USERS}
    command = [sys.executable, str(RABBITMQ / "passwords.py"), str(RABBITMQ / "definitions.json"), str(rendered)]
    done = subprocess.run(command, env=passwords, capture_output=True, text=True, check=True, timeout=20)
    assert done.stderr == ""
    vhost = f"swarm-{uuid4().hex[:8]}"
    rendered.write_text(_in_vhost(json.loads(rendered.read_text()), vhost))
    try:
        _import(broker, rendered, vhost)
        yield Door(broker, vhost)
    finally:
        broker.control("delete_vhost", vhost)


def _in_vhost(definitions: dict[str, list[dict[str, Any]]], vhost: str) -> str:
    """The same for another virtual host than `swarm`; nothing else is changed."""
    moved = {
        kind: [{**one, "vhost": vhost} if "vhost" in one else one for one in items]
        for kind, items in definitions.items()
    }
    return json.dumps({**moved, "vhosts": [{"name": vhost}]})


def _import(broker: Broker, file: Path, vhost: str) -> None:
    command = list(broker.found.control)
    if command[:2] == ["docker", "exec"]:
        command.insert(2, "--interactive")  # the file is here and not in the container
    environment = broker.found.control_environment or dict(os.environ)
    subprocess.run(
        [*command, "import_definitions"], input=file.read_bytes(), env=environment, check=True, timeout=50,
        capture_output=True,
    )  # fmt: skip
    deadline = time.monotonic() + _SECONDS
    # The broker goes on importing after the command; bindings come last.
    look = ("-q", "list_bindings", "-p", vhost, "destination_name")
    while "swarm.learning.sub.planner" not in broker.control(*look):
        assert time.monotonic() < deadline, "the definitions were not imported"
