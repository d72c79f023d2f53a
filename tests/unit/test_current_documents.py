"""What lies in the place of a document that nodes read: where it is none, the next document replaces it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.contract.adapter_building import register
from worker.errors import ApplyFailed
from worker.models.applicators.endpoint import CurrentDocuments, DocumentDamaged


@pytest.mark.parametrize("form", ["nested", "link", "not UTF-8", "endless", "pipe"])
def test_whatever_lies_there_is_unreadable_and_is_replaced_by_the_next_document(tmp_path: Path, form: str) -> None:
    documents, one = CurrentDocuments(tmp_path, "lora"), register(tmp_path, 1)
    path = documents.path("S")
    path.parent.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("theirs")
    match form:
        case "nested":
            path.write_text('{"model":' * 100_000)
        case "link":
            path.symlink_to(elsewhere)
        case "not UTF-8":
            path.write_bytes(b"\xff\xfe")
        case "endless":
            with path.open("wb") as file:
                file.truncate(1 << 40)
        case _:
            os.mkfifo(path)
    with pytest.raises(DocumentDamaged, match=r"S\.lora\.json is no document of ours"):
        documents.read("S")
    assert documents.endpoint_of(one.model) is None
    documents.write(one.model, one.content)
    found = documents.read("S")
    assert found is not None
    assert found.model_id == one.model.model_id
    assert elsewhere.read_text() == "theirs"


def test_a_directory_in_its_place_is_named_with_the_cure(tmp_path: Path) -> None:
    documents, one = CurrentDocuments(tmp_path, "lora"), register(tmp_path, 1)
    (documents.path("S") / "something").mkdir(parents=True)
    with pytest.raises(DocumentDamaged):
        documents.read("S")
    with pytest.raises(ApplyFailed, match=r"S\.lora\.json is a directory.*move it away"):
        documents.write(one.model, one.content)
