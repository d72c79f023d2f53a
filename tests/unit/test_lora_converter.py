"""The command that converts an adapter: its words, and how it may end."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from worker.errors import ConfigurationError
from worker.training.lora.converter import ConversionFailed, convert, converter_arguments


def places(directory: Path) -> dict[str, Path]:
    return {"base": directory / "a base", "adapter": directory / "peft", "output": directory / "adapter.gguf"}


def python(program: str) -> str:
    return f"{sys.executable} -c {shlex.quote(program)} {{base}} {{adapter}} {{output}}"


def test_places_are_single_words_whatever_they_are_called(tmp_path: Path) -> None:
    there = places(tmp_path)
    assert converter_arguments("convert --base {base} --outfile={output} {adapter}", there) == [
        "convert", "--base", str(there["base"]), f"--outfile={there['output']}", str(there["adapter"]),
    ]  # fmt: skip


def test_the_base_may_be_left_out(tmp_path: Path) -> None:
    assert converter_arguments("convert --base /hf {adapter} {output}", places(tmp_path))[:3] == [
        "convert",
        "--base",
        "/hf",
    ]


@pytest.mark.parametrize(
    "command", ["convert {base} {adapter}", "convert {base} {adapter} {output} {model}", "convert '"]
)
def test_a_place_too_few_or_too_many_is_refused(command: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="SWARM_LORA_CONVERTER"):
        converter_arguments(command, places(tmp_path))


def test_it_leaves_its_output(tmp_path: Path) -> None:
    convert(python("import sys; open(sys.argv[3], 'w').write('made')"), places(tmp_path))
    assert (tmp_path / "adapter.gguf").read_text() == "made"


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit('no such layer')", "status 1: no such layer"),
        ("print('done')", "left no .*adapter.gguf: done"),
        ("import time; time.sleep(60)", "not done after 0.5 s"),
    ],
)
def test_how_it_failed_is_said(program: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed, match=said):
        convert(python(program), places(tmp_path), seconds=0.5)


def test_the_line_that_a_run_keeps_of_a_failed_converter_names_the_setting_and_the_rest_is_passed_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The last line of a training's words is the run's reason; all of them go to the worker's log."""
    program = "import sys; print('INFO: reading'); print('INFO: layers'); sys.exit('unknown model type qwen9')"
    with pytest.raises(ConversionFailed) as failed:
        convert(python(program), places(tmp_path))
    assert str(failed.value) == "SWARM_LORA_CONVERTER: it ended with status 1: unknown model type qwen9"
    passed_on = capfd.readouterr().err
    assert sorted(passed_on.splitlines()) == ["INFO: layers", "INFO: reading", "unknown model type qwen9"]


def test_what_a_converter_said_is_passed_on_where_it_ended_well_and_no_more_than_fits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What it made may be of no use."""
    program = "import sys; open(sys.argv[3], 'w'); print('x' * 1_000_000 + ' all layers skipped')"
    convert(python(program), places(tmp_path))
    passed_on = capfd.readouterr().err
    assert passed_on.endswith("x all layers skipped\n")
    assert len(passed_on) <= 2_001


def test_a_converter_that_fails_without_a_word_is_said_to(tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed, match=r"status 3: it said nothing$"):
        convert(python("import sys; sys.exit(3)"), places(tmp_path))


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed, match="no-such-program cannot be started"):
        convert("no-such-program {base} {adapter} {output}", places(tmp_path))
