"""`swarm-worker` whose store takes a fifth of a second for each commit of records. A program for tests."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

COMMITS_A_SECOND = 5


def main() -> None:
    """Be the worker."""
    ingest_class: Any = import_module("worker.store.sqlite.ingest").GroupIngest
    honest = ingest_class.run

    def run(ingest: Any) -> Any:
        time.sleep(1 / COMMITS_A_SECOND)
        return honest(ingest)

    ingest_class.run = run
    import_module("worker.cli").main()


if __name__ == "__main__":
    main()
