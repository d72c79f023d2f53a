"""The current adapter as a node finds it: whom to ask, under which name, and when that changes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.contract.adapter_building import register
from worker.client.adapters import AdapterPointer
from worker.learning.offline_model import ModelUnreadable
from worker.models.applicators.endpoint import CurrentDocuments
from worker.models.applicators.files import FilesApplicator
from worker.wire.served import Endpoint

SERVER = Endpoint(url="http://127.0.0.1:8000", model="S@1")


def apply(data_dir: Path, version: int, endpoint: Endpoint | None = SERVER) -> None:
    one = register(data_dir, version)
    CurrentDocuments(data_dir, "lora").write(one.model, one.content, endpoint)


def test_a_node_learns_whom_to_ask_and_what_the_adapter_is(tmp_path: Path) -> None:
    pointer = AdapterPointer(tmp_path, "S")
    assert pointer.current() is None
    apply(tmp_path, 1)
    current = pointer.current()
    assert current is not None
    assert (current.endpoint, current.version, current.base_model, current.objective) == (SERVER, 1, "tiny", "sft")
    assert current.directory == tmp_path / "models/S/1/adapter"


def test_it_is_read_again_only_when_it_was_replaced(tmp_path: Path) -> None:
    apply(tmp_path, 1)
    pointer = AdapterPointer(tmp_path, "S")
    first = pointer.current()
    assert pointer.current() is first
    apply(tmp_path, 2)
    second = pointer.current()
    assert second is not None
    assert second.version == 2
    pointer.path.unlink()
    assert pointer.current() is None


async def test_files_alone_have_no_endpoint(tmp_path: Path) -> None:
    """And the directory is one that can be taken: the applicator has looked at each file."""
    one = register(tmp_path, 1)
    applicator = FilesApplicator(tmp_path, "lora")
    await applicator.apply(one.model, one.content)
    current = AdapterPointer(tmp_path, "S").current()
    assert current is not None
    assert current.endpoint is None
    assert current.directory is not None
    assert await applicator.served("S") == one.model.sha256
    (current.directory / "adapter.gguf").write_bytes(b"other")
    assert "damaged" in str(await applicator.served("S"))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": 1}'])
def test_a_damaged_document_is_named(tmp_path: Path, text: bytes) -> None:
    pointer = AdapterPointer(tmp_path, "S")
    pointer.path.parent.mkdir()
    pointer.path.write_bytes(text)
    with pytest.raises(ModelUnreadable, match=r"S\.lora\.json"):
        pointer.current()


def test_an_adapter_that_is_not_what_was_served_is_refused(tmp_path: Path) -> None:
    apply(tmp_path, 1)
    pointer = AdapterPointer(tmp_path, "S")
    document = json.loads(pointer.path.read_bytes())
    document["model"]["rank"] = 99
    pointer.path.write_text(json.dumps(document))
    with pytest.raises(ModelUnreadable, match="SHA-256"):
        pointer.current()


async def test_changes_are_followed(tmp_path: Path) -> None:
    """The first look tells what is there, each later one only what is new; a withdrawal is told too."""
    pointer = AdapterPointer(tmp_path, "S")
    follow = pointer.follow(every=0.001)
    assert await anext(follow) is None
    for version in (1, 2):
        apply(tmp_path, version)
        found = await asyncio.wait_for(anext(follow), 5)
        assert found is not None
        assert found.version == version
    pointer.path.unlink()
    assert await asyncio.wait_for(anext(follow), 5) is None
    await follow.aclose()
