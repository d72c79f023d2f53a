"""`python -m worker.ops.probe [PATH]`: asks the worker on this machine how it is, for container health checks.

PATH is /health (it lives) or /ready (it works, the default). Exit 0 for yes, 1 for no with the reason. Imports nothing
but the standard library, since it starts every few seconds for as long as the worker runs: 0.04 s of processor time,
where the whole command line takes 0.5 s.
"""

from __future__ import annotations

import http.client
import os
import sys

_DEFAULT_PORT = 9108  # as in worker.settings
_TIMEOUT = 4.0
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - recognised here, not bound to


def ask(path: str, *, host: str, port: int) -> tuple[bool, str]:
    """Whether the worker answers `path` with 200, and what it says."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status == http.HTTPStatus.OK, response.read(4096).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return False, f"no worker answers on {host}:{port}: {error}"
    finally:
        connection.close()


def main(arguments: list[str]) -> int:
    """The exit status."""
    host = os.environ.get("SWARM_HTTP_HOST", "127.0.0.1")
    port = int(os.environ.get("SWARM_HTTP_PORT", _DEFAULT_PORT))
    good, said = ask(
        arguments[0] if arguments else "/ready", host="localhost" if host in _EVERYWHERE else host, port=port
    )
    sys.stdout.write(f"{said}\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
