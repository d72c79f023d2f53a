"""The process in which a suspect is handled first: decoded, and stored in memory. It knows no secret and no record.

On standard input: four bytes of length (big endian), then msgpack of (scenario, content_type, content_encoding, body),
again and again. On standard output: `READY` once, then `SURVIVED` after each body. It ends with its input, so it
never outlives the worker; a body that keeps it busy for ever runs into the limit of processor time.
"""

from __future__ import annotations

import resource
import sys
from contextlib import redirect_stdout, suppress
from typing import BinaryIO

import msgspec

from worker.store.sqlite.trial import TrialStore
from worker.wire.codec import decode_batch

READY, SURVIVED = b"+", b"."
#: Bytes of the length in front of each body.
LENGTH_BYTES = 4
#: Seconds of processor time a body may take; 8 MB of the worst JSON take less than one.
_SECONDS = 10
#: Bytes of address space; the worst body takes 200 MB.
_MEMORY = 1_500_000_000


def main(bodies: BinaryIO, answers: BinaryIO) -> None:
    """Handle what comes until the input ends. A fault that can be caught is the worker's own to catch."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the body
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    with redirect_stdout(sys.stderr):  # a line of a log is no answer
        store = TrialStore()
        _answer(answers, READY)
        while length := bodies.read(LENGTH_BYTES):
            scenario, content_type, content_encoding, body = msgspec.msgpack.decode(
                bodies.read(int.from_bytes(length, "big"))
            )
            _allow_one_more_body()
            with suppress(Exception):  # survived: the worker singles it out by what it raises
                found = decode_batch(
                    body, scenario=scenario, content_type=content_type, content_encoding=content_encoding
                )
                store.ingest(scenario, body, found)
            _answer(answers, SURVIVED)


def _allow_one_more_body() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + _SECONDS, hard))


def _answer(answers: BinaryIO, what: bytes) -> None:
    answers.write(what)
    answers.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
