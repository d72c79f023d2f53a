"""What others write into a router's preset stays theirs, and a file that cannot be one is said at the start."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.models.applicators.requirements import serving_faults
from worker.models.applicators.router_preset import Section, changed
from worker.models.applicators.versions import served_name
from worker.settings import load_settings

THEIRS = "version = 1  ; of the format\n\n[*]\nc = 2048\n"


def section(version: int) -> Section:
    """An adapter of a scenario."""
    return Section(served_name("S", version), Path("/models/base.gguf"), Path(f"/data/{version}.gguf"))


def test_a_comment_before_the_next_section_is_that_ones() -> None:
    theirs = "; my other model, do not touch\n\n[other]\nmodel = /o.gguf\n"
    preset = f"{THEIRS}{section(1).text()}{theirs}"
    assert changed(preset, "S", keep=(), put=section(2)) == f"{THEIRS}{theirs}{section(2).text()}"
    assert changed(preset, "S", keep=(), put=section(1)) == preset


_FOREIGN = st.lists(
    st.sampled_from(
        ["; a comment\n", "# [S@9]\r\n", "\n", " \t\n", "[other]\nmodel = /o.gguf\n", "[*]\nc = 1\n", "[S]\n"]
    )
).map("".join)


@given(_FOREIGN, st.lists(st.tuples(st.integers(1, 5), _FOREIGN), max_size=4))
def test_whatever_others_wrote_around_our_sections_stays_byte_by_byte(
    first: str, others: list[tuple[int, str]]
) -> None:
    preset = first + "".join(section(version).text() + text for version, text in others)
    theirs = first + "".join(text for _, text in others)
    assert changed(preset, "S", keep=()) == theirs
    swapped = changed(preset, "S", keep=(), put=section(6))
    assert swapped == theirs + section(6).text()


@pytest.mark.parametrize("form", ["link", "latin-1", "directory"])
def test_a_preset_that_cannot_be_used_is_said_before_anything_is_applied(tmp_path: Path, form: str) -> None:
    preset = tmp_path / "preset.ini"
    match form:
        case "link":
            preset.symlink_to(tmp_path / "elsewhere.ini")
        case "latin-1":
            preset.write_bytes("; für uns\n".encode("latin-1"))
        case _:
            preset.mkdir()
    settings = load_settings(scenarios="S", data_dir=tmp_path, lora_applicator="llama_router", llama_preset=preset)
    faults = [fault for fault in serving_faults(settings) if "SWARM_LLAMA_PRESET" in fault]
    assert len(faults) == 1
    assert "no link" in faults[0]
