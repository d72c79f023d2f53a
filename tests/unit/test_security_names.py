"""Security checklist S9: 24 hostile names at every door where a name becomes a path, a queue or a routing key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from worker.cli import cli
from worker.client.adapters import AdapterPointer
from worker.client.models import ModelFile
from worker.client.publisher import RecordPublisher
from worker.clock import SystemClock
from worker.errors import ApplyFailed, ConfigurationError, NotFound, StoreUnavailable
from worker.models.applicators.endpoint import CurrentDocuments
from worker.models.applicators.files import FilesApplicator
from worker.models.files import ModelFiles
from worker.models.registry import Registry
from worker.settings import load_settings
from worker.store.memory import MemoryStore
from worker.store.port import Model
from worker.store.sqlite.lock import StoreLock
from worker.wire.codec import decode_batch
from worker.wire.commands import decode_command, routing_key_for
from worker.wire.names import is_slug
from worker.wire.reasons import Rejection

HOSTILE = (
    "", ".", "..", "../up", "a/b", "/etc/passwd", "a\\b", "a\x00", "a\n", "a\r\n", " a", "a b", "-rf", "_", "a-",
    "a.b", "a*", "#", "\uff41\uff42", "a\u202eb", "a\u200bb", "é", "x" * 65, "a;DROP TABLE record",
)  # fmt: skip
#: Fits the slug, and is harmless behind our prefixes.
HARMLESS = "amq"


def test_there_are_twenty_four_of_them_and_a_trap() -> None:
    assert len(set(HOSTILE)) == 24
    assert not any(map(is_slug, HOSTILE))
    assert is_slug(HARMLESS)


@pytest.mark.parametrize("name", HOSTILE)
def test_s9_settings_take_no_hostile_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """Scenarios, the worker's name, and the names in the options of scenarios."""
    monkeypatch.chdir(tmp_path)
    for flags in (
        {"worker_id": name},
        {"scenario_options": json.dumps({name: {"trigger": "manual"}})},
        # As a list: written with commas, empty parts and space around a name are dropped.
        {"scenarios": ("good", name)},
    ):
        with pytest.raises(ConfigurationError, match=r"is no (scenario )?name") as told:
            load_settings(**flags)
        assert "\x00" not in str(told.value)
        assert "\u202e" not in str(told.value)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "command",
    [
        ("train-now", "--scenario"), ("pause", "--scenario"), ("shutdown", "--worker"), ("status", "--worker"),
        ("export", "records", "--scenario"), ("sessions", "--scenario"), ("quarantine", "list", "--scenario"),
        ("models", "--scenario"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_s9_the_command_line_takes_no_hostile_name(tmp_path: Path, command: tuple[str, ...], name: str) -> None:
    """Status 2, before anything is opened or sent; and the name is told with its control characters written out."""
    place = {"SWARM_DATA_DIR": str(tmp_path / "none")}
    given = CliRunner().invoke(cli, [*command[:-1], f"{command[-1]}={name}"], env=place)
    assert given.exit_code == 2, given.output
    assert "is no" in given.output
    assert all(each.isprintable() or each == "\n" for each in given.output)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_s9_no_message_names_a_scenario_or_producer_like_that(name: str) -> None:
    """In the body of records and of commands; what the broker names is bound to names of our own making."""
    records = [{"type": "action", "task_id": "t", "tick": 1, "worker_id": 0, "action": "a"}]
    batch = {"schema_version": 1, "producer_id": name, "producer_epoch": 0, "batch_seq": 1, "records": records}
    assert isinstance(decode_batch(json.dumps(batch).encode(), scenario="S"), Rejection)
    command = {"schema_version": 1, "command": "pause", "command_id": "c", "scenario": name, "args": {}}
    assert isinstance(decode_command(json.dumps(command).encode()), Rejection)


@pytest.mark.parametrize("name", HOSTILE)
async def test_s9_no_path_is_made_of_a_hostile_name(tmp_path: Path, name: str) -> None:
    """Neither by the worker nor by its client; a model under such a name is only not found."""
    with pytest.raises(ValueError, match="is no scenario name"):
        ModelFiles(tmp_path).directory(name, 1)
    with pytest.raises(ValueError, match="is no scenario name"):
        FilesApplicator(tmp_path).path(name)
    with pytest.raises(ConfigurationError, match="is no scenario name"):
        AdapterPointer(tmp_path, name)
    with pytest.raises(ConfigurationError, match="is no scenario name"):
        ModelFile(tmp_path, name)
    for names in ({"scenario": name, "producer_id": "p"}, {"scenario": "S", "producer_id": name}):
        with pytest.raises(ConfigurationError):
            RecordPublisher(None, state_dir=tmp_path, **names)  # type: ignore[arg-type]  # it gets no further
    store = MemoryStore(SystemClock())
    await store.open()
    with pytest.raises(NotFound):
        await Registry(store, ModelFiles(tmp_path)).find("S", name)
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240 - a test


@pytest.mark.parametrize("name", HOSTILE)
def test_s9_task_session_and_action_names_are_text_and_nothing_else(name: str) -> None:
    """They never become a path, so whatever a store can keep is taken as it is, and the rest is refused whole."""
    record = {"type": "action", "task_id": name, "tick": 1, "worker_id": 0, "action": name, "session_id": name}
    found = decode_batch(json.dumps({"schema_version": 1, "records": [record]}).encode(), scenario="S")
    if not isinstance(found, Rejection):
        (action,) = found.records
        assert (action.task_id, action.session_id) == (name, name)  # type: ignore[union-attr]  # it is an action
    else:
        assert name in ("", "a\x00")


def test_s9_a_name_like_the_brokers_own_is_harmless_behind_our_prefix() -> None:
    assert routing_key_for("train-now", scenario=HARMLESS) == "job.amq"


# ---------------------------------------------------------------- links


def model(**fields: Any) -> Model:
    given = {
        "model_id": "m", "scenario": "S", "version": 1, "kind": "offline", "run_id": "r", "created_at_ms": 0,
        "uri": "", "sha256": "0" * 64, "lineage": {}, "metrics": {}, "gate_verdict": "blessed", "gate_reasons": [],
    }  # fmt: skip
    return Model(**{**given, **fields})


@pytest.mark.parametrize("linked", ["models", "models/S", "models/S/1"])
def test_s9_a_link_in_the_place_of_a_model_directory_is_not_followed(tmp_path: Path, linked: str) -> None:
    """Neither to read, nor to remove: what lies behind it is somebody else's."""
    elsewhere = tmp_path / "elsewhere"
    behind = elsewhere / Path("models/S/1").relative_to(linked)
    behind.mkdir(parents=True)
    (behind / "model.json").write_text("{}")
    data = tmp_path / "data"
    (data / linked).parent.mkdir(parents=True)
    (data / linked).symlink_to(elsewhere)
    files = ModelFiles(data)
    with pytest.raises(ApplyFailed, match="symbolic link"):
        files.read(model())
    files.remove("S", files.present("S"))
    assert (behind / "model.json").exists()


def test_s9_the_lock_and_files_in_the_place_of_links_are_not_written_through(tmp_path: Path) -> None:
    """The lock of the store, the live model, a model file."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "swarm.db.lock").symlink_to(victim)
    with pytest.raises(StoreUnavailable, match="no symbolic link"):
        StoreLock(tmp_path / "swarm.db").acquire()
    current = tmp_path / "current"
    current.mkdir()
    (current / "S.json").symlink_to(victim)
    documents = CurrentDocuments(tmp_path, "offline")
    documents.write(model(), b"{}")
    written = (current / "S.json").read_bytes()
    assert not (current / "S.json").is_symlink()
    current.rename(tmp_path / "moved")
    current.symlink_to(tmp_path / "moved")
    with pytest.raises(ApplyFailed):
        documents.write(model(), b'"new"')
    assert (tmp_path / "moved/S.json").read_bytes() == written
    assert victim.read_text() == "precious"
