"""`swarm-worker` that dies of marked bodies: what a bug in a parser written in C looks like.

A program for tests; `--trial` makes it the process in which the worker tries out suspects. That one has the same
decoder, but not what the worker dies of where it stores: some bugs show only there, with all else that is in memory.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Any

from worker.wire import codec

#: Bodies that hold these end the process that decodes, or stores, them.
DECODING, STORING = b"DEADLY-TO-DECODE", b"DEADLY-TO-STORE"


def decode_batch(body: bytes, **how: Any) -> Any:
    """As the codec does, unless the body is deadly."""
    if DECODING in body:
        os.kill(os.getpid(), signal.SIGKILL)
    return codec.decode_batch(body, **how)


def try_suspects() -> None:
    """Be the process for trials."""
    trial_child: Any = import_module("worker.sink.trial_child")
    trial_child.decode_batch = decode_batch
    trial_child.main(sys.stdin.buffer, sys.stdout.buffer)


def serve() -> None:
    """Be the worker."""
    judge: Any = import_module("worker.sink.judge")
    trial: Any = import_module("worker.sink.trial")
    ingest_class: Any = import_module("worker.store.sqlite.ingest").GroupIngest
    honest = ingest_class.run

    def run(ingest: Any) -> Any:
        if any(STORING in incoming.body for incoming in ingest._group):
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(ingest)

    judge.decode_batch = decode_batch
    trial.Trial.__init__.__kwdefaults__["command"] = (sys.executable, __file__, "--trial")
    ingest_class.run = run
    import_module("worker.cli").main()


if __name__ == "__main__":
    try_suspects() if "--trial" in sys.argv else serve()
