"""Holds one broker for a whole test run: `python broker_holder.py DIRECTORY`.

Under xdist several processes share it and any of them may end first. So the broker belongs to none of them: each keeps
the pipe DIRECTORY/in-use open for writing, and when the last one has let go, however it ended, the pipe ends and so
does this.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from worker.broker.local import LocalBroker, local_broker


@contextlib.contextmanager
def in_testcontainers(image: str) -> Iterator[LocalBroker]:
    """The Docker road of the tests."""
    # We remove the container ourselves; the reaper would be one more image to have.
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.rabbitmq import RabbitMqContainer  # noqa: PLC0415 - slow, and only for this road

    with RabbitMqContainer(image) as container:
        host, port = container.get_container_host_ip(), container.get_exposed_port(5672)
        yield LocalBroker(
            url=f"amqp://guest:guest@{host}:{port}/",
            found=f"{image} in Docker",
            control=("docker", "exec", container.get_wrapped_container().id, "rabbitmqctl"),
        )


def main(directory: Path) -> None:
    """Start, tell where it is, and wait for the end of the pipe."""
    answer = directory / "broker.json"
    with contextlib.ExitStack() as stack:
        pipe = (directory / "in-use").open("rb")
        try:
            broker = stack.enter_context(local_broker(in_docker=in_testcontainers))
        except Exception as error:  # noqa: BLE001 - whatever it is, the tests must hear of it
            text = json.dumps({"error": f"{type(error).__name__}: {error}"})
        else:
            text = json.dumps(asdict(broker))
        pending = answer.with_suffix(".new")
        pending.write_text(text)
        pending.rename(answer)
        with pipe:
            pipe.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
