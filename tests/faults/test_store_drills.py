"""A damaged, newer or unwritable store (T15): refused with the cure; the cure of deploy/README.md works."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.oracle import Oracle
from tests.integration.foreign_node import body, depth, node_at
from tests.integration.worker_process import NewWorker, WorkerProcess, until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(120)]

_README = Path(__file__).parents[2] / "deploy" / "README.md"


async def refused(worker: WorkerProcess, code: int) -> str:
    """Start it where it cannot start; what it says on its way out."""
    await worker.start(ready=False)
    assert await worker.wait(within=20) == code, worker.log_tail()
    return worker.log_tail().splitlines()[-1]


def overwrite(file: Path, marker: bytes, new: bytes) -> None:
    """Change bytes in the file that the marker stands in, behind everybody's back."""
    content = bytearray(file.read_bytes())
    at = content.index(marker)
    content[at : at + len(new)] = new
    file.write_bytes(content)


def spoil_pages(file: Path) -> None:
    """Noise over all of the file but its first page, once what the log has is in it."""
    with closing(sqlite3.connect(file)) as store:
        assert store.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    with file.open("r+b") as opened:
        opened.seek(4096)
        opened.write(os.urandom(file.stat().st_size - 4096))


def restore_as_the_readme_says(worker: WorkerProcess, backup: Path) -> None:
    """The very commands of deploy/README.md, with the places filled in."""
    text = _README.read_text(encoding="utf-8")
    block = re.search(r"To restore a backup.*\n\n((?:    .*\n)+)", text)
    assert block is not None, "deploy/README.md does not say how to restore"
    for command in filter(None, (line.split("#")[0].strip() for line in block[1].splitlines())):
        match command.split():
            case ["swarm-worker", *_]:
                continue  # stopping before and starting after: the test does both
            case ["rm", "-f", *files]:
                for name in files:
                    worker.data_dir.joinpath(name).unlink(missing_ok=True)
            case ["cp", "FILE", target]:
                shutil.copyfile(backup, worker.data_dir / target)
            case other:
                pytest.fail(f"deploy/README.md restores with {other}, which this test does not know")


async def test_one_damaged_record_is_set_aside_and_named_while_the_rest_goes_on(
    new_worker: NewWorker, amqp_url: str, scenario: str, oracle: Oracle
) -> None:
    """A bit flips within a stored record of a task that is not learnt from yet; then nearly all of it is noise."""
    worker = new_worker(scenario)
    await worker.start()
    store = worker.data_dir / "swarm.db"
    open_task = {"type": "action", "task_id": "open", "tick": 1, "worker_id": 0, "action": "look", "event_id": 1}
    async with node_at(amqp_url) as node:
        await node.publish(scenario, body([{**open_task, "output": "the-marker"}], producer_id="drill", batch_seq=1))
        await oracle.publish_many(node, [scenario], 30)
        expected = 5 * oracle.issued[scenario] + 1
        await until(worker.scenario_status, lambda s: (s["records_received"], s["open_tasks"]) == (expected, 1))
        backup = worker.directory / "backup.db"
        await worker.cli("backup", str(backup))
        assert await worker.stop() == 0

        overwrite(store, b"the-marker", b"The-marker")
        await worker.start()
        assert await worker.problems() == []  # nobody has read it yet
        done = {**open_task, "event_id": 2, "action": "done"}
        await node.publish(scenario, body([done], producer_id="drill", batch_seq=2))
        problems = await until(worker.problems)
        assert problems is not None
        told = r"store: row \d+ of table record is damaged \(scenario .*, task 'open'.*restore a backup"
        assert re.match(told, problems[0]), problems
        assert (await worker.status())["counters"]["damaged_rows"] == 1
        # The rest goes on: records are taken, tasks projected, a model trained.
        await oracle.publish_many(node, [scenario], 10)
        expected += 1 + 50
        await until(worker.scenario_status, lambda s: (s["records_received"], s["open_tasks"]) == (expected, 1))
        assert (await worker.tell("train-now", "--scenario", scenario, "--force"))["status"] == "done"
        exported = await worker.cli("export", "records", "--scenario", scenario, code=70)
        assert len(exported.out.splitlines()) == expected - 1
        assert b"marker" not in exported.out
        assert "row" in exported.err
        assert "task 'open'" in exported.err

        # Now nearly the whole file, under the running worker: it ends, and does not come up again as it is.
        await asyncio.to_thread(spoil_pages, store)
        await oracle.publish_many(node, [scenario], 1)
        assert await worker.wait(within=20) == 70
        assert "restore a backup" in worker.log_tail().splitlines()[-1]
        await oracle.publish_many(node, [scenario], 4)
        assert "restore a backup" in await refused(worker, 70)
        assert await depth(node, f"swarm.records.{scenario}") >= 4

        await asyncio.to_thread(restore_as_the_readme_says, worker, backup)
        await worker.start()
        # What the backup holds, and what was not acknowledged since; the one batch may have been, in a sound corner.
        await until(worker.scenario_status, lambda s: s["records_received"] in (5 * 34 + 1, 5 * 35 + 1))
        assert (await worker.cli("check", "--json")).json is not None
        assert b"the-marker" in b"".join(await worker.exported())
        assert await worker.stop() == 0


async def test_a_store_that_is_newer_or_cannot_be_written_is_refused_with_the_cure(
    new_worker: NewWorker, scenario: str
) -> None:
    worker = new_worker(scenario)
    await worker.start()
    assert await worker.stop() == 0
    with closing(sqlite3.connect(worker.data_dir / "swarm.db")) as store:
        version = store.execute("PRAGMA user_version").fetchone()[0]
        store.execute("PRAGMA user_version = 99")
    assert "install the newer worker again" in await refused(worker, 78)
    with closing(sqlite3.connect(worker.data_dir / "swarm.db")) as store:
        store.execute(f"PRAGMA user_version = {version}")

    # A directory where none can be made; root may write everywhere but there.
    blocked = worker.directory / "file"
    blocked.write_bytes(b"")
    worker.environment["SWARM_STORE_URL"] = f"sqlite://{blocked}/swarm.db"
    assert "make the directory of SWARM_STORE_URL writable" in await refused(worker, 75)
