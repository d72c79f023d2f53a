"""The router's preset file: ours are the sections of our scenarios, and nothing else in it is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.errors import ApplyFailed
from worker.models.applicators.router_preset import BASE, EMPTY, PresetFile, Section, changed, section_text, with_base
from worker.models.applicators.versions import belongs_to, served_name

THEIRS = """version = 1  ; of the format
# [S@1] is only spoken of here

[*]
c = 2048
[gpt]\r
model = /models/gpt.gguf
"""


def section(version: int, scenario: str = "S") -> Section:
    """An adapter of a scenario."""
    name = served_name(scenario, version)
    return Section(name, Path("/models/base.gguf"), Path(f"/data/{name}.gguf"))


def test_a_section_is_added_after_what_is_there() -> None:
    assert changed(THEIRS, "S", keep=(), put=section(17)) == (
        f"{THEIRS}[S@17]\nmodel = /models/base.gguf\nlora = /data/S@17.gguf\n\n"
    )


def test_a_file_without_a_line_break_at_its_end_is_ended_first() -> None:
    assert changed("[*]\nc = 1", "S", keep=(), put=section(1)).startswith("[*]\nc = 1\n[S@1]\n")


def test_putting_it_again_changes_nothing() -> None:
    once = changed(THEIRS, "S", keep=(), put=section(1))
    assert changed(once, "S", keep=(), put=section(1)) == once


def test_a_section_takes_the_place_of_its_older_self_and_of_copies_of_it() -> None:
    old = "[S@1]\nmodel = /old.gguf\n\n"
    other = "[gpt-2]\nmodel = /models/gpt-2.gguf\n"
    assert changed(f"{THEIRS}{old}{other}{old}", "S", keep=(), put=section(1)) == f"{THEIRS}{section(1).text()}{other}"


def test_sections_of_the_scenario_go_but_for_those_to_be_kept() -> None:
    preset = THEIRS
    for each in (section(1), section(2), section(3), section(2, "S2"), section(1, "S-S")):
        preset = changed(preset, "S", keep=("S@1", "S@2", "S@3"), put=each)
    assert changed(preset, "S", keep={"S@2", None}, put=section(4)) == (
        f"{THEIRS}{section(2).text()}{section(2, 'S2').text()}{section(1, 'S-S').text()}{section(4).text()}"
    )


def test_withdrawing_leaves_the_file_as_its_owner_wrote_it() -> None:
    assert changed(changed(THEIRS, "S", keep=(), put=section(1)), "S", keep=()) == THEIRS


def test_a_section_is_found_by_the_name_in_its_header() -> None:
    preset = f"{THEIRS}[ S@1 ] # ours\nmodel = x\n"
    assert section_text(preset, "S@1") == "[ S@1 ] # ours\nmodel = x\n"
    assert section_text(preset, "S@2") is None
    assert section_text(preset, "gpt") == "[gpt]\r\nmodel = /models/gpt.gguf\n"


@pytest.mark.parametrize("name", ["S2@1", "S@1x", "S@", "S", "xS@1", "s@1", "S@1\n"])
def test_other_names_belong_to_others(name: str) -> None:
    assert belongs_to("S", "S@1")
    assert not belongs_to("S", name)


@pytest.mark.parametrize("path", ["/a;b", "/a#b", "/a,b", '/a"b', "/a\\b", "/a\nb", "/a ", "/a\udcff"])
def test_a_path_that_the_file_cannot_hold_is_refused(path: str) -> None:
    """It would be cut at what begins a comment, and another file be loaded."""
    for put in (Section("S@1", Path(path), Path("/l")), Section("S@1", Path("/m"), Path(path))):
        with pytest.raises(ApplyFailed, match="cannot hold the path"):
            changed(EMPTY, "S", keep=(), put=put)


def test_the_file_is_made_once_and_not_overwritten(tmp_path: Path) -> None:
    file = PresetFile(tmp_path / "etc" / "preset.ini")
    assert file.read() == EMPTY
    base = Path("/models/base.gguf")
    file.create(base)
    assert file.path.read_text() == f"{EMPTY}[base]\nmodel = /models/base.gguf\n\n"
    file.write(THEIRS)
    file.create(base)
    assert file.read().startswith(THEIRS)
    assert section_text(file.read(), BASE) == "[base]\nmodel = /models/base.gguf\n\n"
    assert file.path.stat().st_mode & 0o777 == 0o644
    assert list(file.path.parent.iterdir()) == [file.path]


def test_the_base_can_be_asked_alone_and_follows_its_setting() -> None:
    """Before the first adapter there was nobody to ask, and so nothing to learn from."""
    one, two = Path("/models/one.gguf"), Path("/models/two.gguf")
    preset = changed(with_base(THEIRS, one), "S", keep=(), put=section(1))
    assert with_base(preset, one) == preset
    assert with_base(preset, two) == preset.replace("/models/one.gguf", "/models/two.gguf")
    assert changed(preset, "S", keep=()) == with_base(THEIRS, one)


def test_a_base_section_of_the_owners_stays_as_it_is() -> None:
    theirs = f"{THEIRS}[base]\nmodel = /models/mine.gguf\nctx-size = 64\n"
    assert with_base(theirs, Path("/models/one.gguf")) == theirs


def test_a_file_that_cannot_be_read_or_written_is_named_with_its_setting(tmp_path: Path) -> None:
    file = PresetFile(tmp_path / "preset.ini")
    file.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ApplyFailed, match=r"preset\.ini \(SWARM_LLAMA_PRESET\) cannot be read"):
        file.read()
    below = PresetFile(file.path / "preset.ini")
    (tmp_path / "elsewhere").write_text("a file")
    with pytest.raises(ApplyFailed, match=r"\(SWARM_LLAMA_PRESET\) cannot be written: .*fix its rights"):
        below.write(EMPTY)
