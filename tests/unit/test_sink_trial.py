"""Trials: a body that kills its decoder is found out in a process that may die of it, and no innocent one is blamed."""

from __future__ import annotations

import gzip
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.unit.test_sink_run import Bench, FakeDelivery, FakeStore, body
from worker.sink.trial import NoTrial, Trial
from worker.store.port import IncomingReject
from worker.wire.reasons import Reason

#: The real child with a decoder that does what the body says.
_PROGRAM = """
import os, signal, sys, time
import worker.sink.trial_child as child
import worker.store.sqlite.trial as store
honest = child.decode_batch
store_honestly = store.GroupIngest.run
def decode(body, **how):
    if body.startswith(b"kill"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if body.startswith(b"hang"):
        time.sleep(60)
    if body.startswith(b"raise"):
        raise RuntimeError("bug")
    if body.startswith(b"once") and not os.path.exists(body[4:]):
        open(body[4:], "w").close()
        os._exit(3)
    return honest(body, **how)
def run(ingest):
    if any(b"store-kills" in incoming.body for incoming in ingest._group):
        os.kill(os.getpid(), signal.SIGBUS)
    return store_honestly(ingest)
child.decode_batch = decode
store.GroupIngest.run = run
child.main(sys.stdin.buffer, sys.stdout.buffer)
"""
PATCHED = (sys.executable, "-c", _PROGRAM)


def trials() -> list[psutil.Process]:
    """Our processes for trials; other tests may have left some of their own."""
    return [child for child in psutil.Process().children() if any("trial_child" in word for word in child.cmdline())]


async def tried(trial: Trial, text: bytes) -> str | None:
    """The verdict on a plain body."""
    return await trial.verdict("S", text, content_type=None, content_encoding=None)


async def test_what_decodes_or_is_refused_survives_in_one_process() -> None:
    trial = Trial()
    try:
        bodies = [body(1), b"no json", b"", gzip.compress(body(2)), b"[" * 100_000, body(3) * 20_000]
        for text in bodies:
            packed = "gzip" if text[:1] == b"\x1f" else None
            assert await trial.verdict("S", text, content_type=None, content_encoding=packed) is None
        assert len(trials()) == 1
    finally:
        await trial.close()
    assert trials() == []


async def test_a_body_that_kills_is_told_by_its_signal_and_the_next_one_is_tried_all_the_same() -> None:
    trial = Trial(command=PATCHED)
    try:
        assert await tried(trial, b"kill") == "signal:11"
        assert await tried(trial, b"kill" + b"x" * 1_000_000) == "signal:11"
        assert await tried(trial, body(1)) is None
        assert await tried(trial, b"raise") is None  # the judge catches that one
        assert await tried(trial, body(2, action="store-kills")) == f"signal:{signal.SIGBUS.value}"
    finally:
        await trial.close()


async def test_a_body_that_never_ends_is_given_up() -> None:
    trial = Trial(command=PATCHED, patience=1.0)
    assert await tried(trial, b"hang") == "timeout"
    assert trials() == []


async def test_a_process_that_dies_by_accident_costs_no_innocent_body(tmp_path: Path) -> None:
    """An out-of-memory killer, for example, which takes whom it likes."""
    trial = Trial(command=PATCHED)
    assert await tried(trial, b"once" + os.fsencode(tmp_path / "was-here")) is None
    await trial.close()
    assert (tmp_path / "was-here").exists()


@pytest.mark.parametrize("command", [("/does/not/exist",), (sys.executable, "-c", "raise SystemExit(1)")])
async def test_where_no_trial_can_be_held_nobody_is_condemned(command: tuple[str, ...]) -> None:
    with pytest.raises(NoTrial):
        await tried(Trial(command=command), body(1))
    bench = Bench(FakeStore(), trial=Trial(command=command))
    suspect = FakeDelivery(body(1), redelivered=True, delivery_count=3)
    await bench.run(suspect)
    assert (suspect.acks, bench.sink.stats.fresh) == (1, 2)


async def test_the_process_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_CONTROL_KEY", "k:canary")
    trial = Trial()
    await tried(trial, body(1))
    (child,) = trials()
    assert "canary" not in "".join(child.environ().values())
    await trial.close()


async def test_the_sink_quarantines_what_kills_and_stores_what_does_not() -> None:
    """Suspects of one life, among them the one that ended the worker before."""
    bench = Bench(FakeStore(), trial=Trial(command=PATCHED))
    deadly = FakeDelivery(b"kill me", redelivered=True, delivery_count=3, headers={"message_id": "m"})
    innocent = [FakeDelivery(body(n), redelivered=True, delivery_count=4) for n in range(3)]
    await bench.run(innocent[0], deadly, *innocent[1:], FakeDelivery(body(9)))
    kept = {item.body: item for item in bench.store.kept}
    assert len(kept) == 5
    reject = kept[b"kill me"]
    assert isinstance(reject, IncomingReject)
    assert (reject.reason, reject.headers) == (Reason.CRASHED_DECODER, {"message_id": "m", "routing_key": "S"})
    stats = bench.sink.stats
    assert (stats.suspects, stats.groups, stats.fresh, stats.in_flight) == (4, 5, 8, 0)
    assert all(message.acks == 1 for message in (deadly, *innocent))
    assert trials() == []
