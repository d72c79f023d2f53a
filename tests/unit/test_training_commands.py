"""How a LoRA training is started: in a chosen Python, by a script of one's own, inside of a launcher."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.unit.test_training_child import GOOD_RESULT
from worker.training.child import ChildEnd, ChildLauncher, Died, Finished, TrainingStep
from worker.training.commands import lora_command, lora_environment, own_program
from worker.training.confined import program

_LOGGED = "ended with status 1 (all that it said is in the worker's log, at trainer_ended)"


async def start(tmp_path: Path, *, script: Path | None = None, launcher: str | None = None) -> ChildEnd:
    """Train by these settings in an empty run directory."""
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    child = ChildLauncher(
        timeout=20, memory_mb=512, grace=0.3, command=lora_command(Path(sys.executable), script, launcher),
        environment=lora_environment, program=own_program(script, launcher),
    )  # fmt: skip
    return await child.run(run_dir, lambda _progress, _text: None)


def script_file(tmp_path: Path, text: str) -> Path:
    """A training script of the operator's."""
    path = tmp_path / "own.py"
    path.write_text(GOOD_RESULT + text)
    return path


def test_without_settings_the_training_is_ours_in_our_python() -> None:
    """And has no limit on files, since a base that comes from a hub is gigabytes."""
    command = lora_command(None, None, None)
    assert command[0] == sys.executable
    assert command[-3:] == ("worker.training.trainer", "--file-mb", "0")


async def test_a_script_of_ones_own_gets_the_run_directory_alone_and_is_limited(tmp_path: Path) -> None:
    """Limits, priority and group are taken before it starts, and outlive the exec."""
    script = script_file(
        tmp_path,
        """
import os, resource
finish(metrics={"arguments": sys.argv[1:], "memory": resource.getrlimit(resource.RLIMIT_AS)[0], "nice": os.nice(0)})
""",
    )
    end = await start(tmp_path, script=script)
    assert isinstance(end, Finished), end
    assert end.result.metrics == {"arguments": [str(tmp_path / "run")], "memory": 512 * 1_048_576, "nice": 19}


@pytest.mark.parametrize("launcher", ["env LAUNCHED=yes {command}", 'sh -c "LAUNCHED=yes exec {command}"'])
async def test_a_launcher_runs_the_command_in_its_place(tmp_path: Path, launcher: str) -> None:
    """As words of its own, or quoted within one."""
    script = script_file(tmp_path, 'import os; finish(metrics={"launched": os.environ["LAUNCHED"]})')
    end = await start(tmp_path, script=script, launcher=launcher)
    assert isinstance(end, Finished), end
    assert end.result.metrics == {"launched": "yes"}


def test_a_launcher_gets_our_own_training_too(tmp_path: Path) -> None:
    """The trainer without limits of its own: it has those of the launcher."""
    words = program("/usr/bin/python3", None, "accelerate launch --no_python {command}", tmp_path)
    assert words[:3] == ["accelerate", "launch", "--no_python"]
    assert words[3:] == [
        *("/usr/bin/python3", "-P", "-s", "-m", "worker.training.trainer", "--file-mb", "0"),
        str(tmp_path),
    ]


async def test_a_launcher_that_is_not_there_names_its_setting(tmp_path: Path) -> None:
    """Whoever mistyped it reads which setting to change."""
    end = await start(tmp_path, launcher="no-such-launcher {command}")
    assert isinstance(end, Died)
    assert end.reason == "exit:126"
    assert end.detail == "SWARM_LORA_LAUNCHER: no-such-launcher cannot be started: No such file or directory"


@pytest.mark.parametrize(
    ("launcher", "said"),
    [
        ("false {command}", "ended with status 1 and said nothing on standard error; run it by hand to see why"),
        (
            """sh -c "echo one >&2; echo two >&2; echo ====== >&2; exit 1" {command}""",
            f"{_LOGGED}: two",
        ),
        (
            """sh -c "echo SWARM_LORA_DEVICE: no GPU >&2; echo Root Cause: >&2; exit 1" {command}""",
            f"{_LOGGED}: SWARM_LORA_DEVICE: no GPU",
        ),
    ],
    ids=["silent", "last-words", "a-setting-within"],
)
async def test_a_launcher_that_fails_is_named_with_its_last_words(tmp_path: Path, launcher: str, said: str) -> None:
    """A launcher such as torchrun rules a line below the training's own words."""
    end = await start(tmp_path, launcher=launcher)
    assert isinstance(end, Died)
    assert end.reason == "exit:1"
    assert end.detail.splitlines()[-1] == f"SWARM_LORA_LAUNCHER {said}"


async def test_what_a_training_said_is_in_the_log_however_it_ended(tmp_path: Path) -> None:
    with capture_logs() as logs:
        await start(tmp_path, script=script_file(tmp_path, 'sys.stderr.write("all layers skipped"); finish()'))
    assert [entry["said"] for entry in logs if entry["event"] == "trainer_ended"] == ["all layers skipped"]


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        ("", "bad_output: FileNotFoundError", "result.json is missing in {run}; "),
        ("sys.stderr.write('a warning')", "bad_output: FileNotFoundError", "result.json is missing in {run}; "),
        (
            "finish(); (run / 'model.json').unlink()", "bad_output: FileNotFoundError",
            "model.json is missing in {run}; ",
        ),
        (
            "(run / 'result.json').write_text('{')", "bad_output: DecodeError",
            "result.json: Input data was truncated; ",
        ),
        ("finish(model=b'other')", "bad_output: model.json is not what result.json says", ""),
    ],
    ids=["nothing", "a-word", "no-model", "torn", "another"],
)  # fmt: skip
async def test_a_script_that_leaves_no_result_is_named_with_what_is_missing(
    tmp_path: Path, text: str, reason: str, said: str
) -> None:
    """Also where it said something else last."""
    end = await start(tmp_path, script=script_file(tmp_path, text))
    assert isinstance(end, Died)
    assert end.reason == reason
    cause = said.format(run=tmp_path / "run")
    assert end.detail.splitlines()[-1] == f"SWARM_LORA_TRAIN_SCRIPT: {cause}deploy/README.md says what it must leave"


def test_the_program_of_ones_own_is_named_by_its_settings() -> None:
    assert own_program(None, None) is None
    assert own_program(Path("own.py"), "nice {command}") == "SWARM_LORA_LAUNCHER around SWARM_LORA_TRAIN_SCRIPT"


async def test_a_proxys_password_reaches_the_downloads_and_is_not_kept_in_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it nothing comes through a company's proxy; the last words become the run's reason and an event."""
    monkeypatch.setenv("HTTPS_PROXY", "http://anna:canary-secret@proxy:3128")
    script = script_file(
        tmp_path,
        """
import os
assert "canary-secret" in os.environ["HTTPS_PROXY"]
sys.exit("ProxyError: cannot connect to " + os.environ["HTTPS_PROXY"])
""",
    )
    end = await start(tmp_path, script=script)
    assert isinstance(end, Died)
    assert end.reason == "exit:1"
    assert end.detail.endswith("ProxyError: cannot connect to http://***@proxy:3128")
    assert "canary-secret" not in end.detail


def test_the_hub_and_the_gpu_are_found_and_no_secret_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an allow-list; downloads go where they outlive the run."""
    monkeypatch.setenv("HF_TOKEN", "canary-secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.delenv("HF_HOME", raising=False)
    environment = lora_environment(tmp_path)
    assert "canary-secret" not in json.dumps(environment)
    assert (environment["HF_HUB_OFFLINE"], environment["CUDA_VISIBLE_DEVICES"]) == ("1", "3")
    assert environment["HF_HOME"] == "/cache/huggingface"
    assert environment["HOME"] == str(tmp_path)


async def test_results_lie_in_the_output_directory_and_steps_are_told(tmp_path: Path) -> None:
    """What else lies there is kept: a killed training goes on from it."""
    output = tmp_path / "adapters" / "run"
    (output / "checkpoint").mkdir(parents=True)
    (output / "result.json").write_text("of an earlier attempt")
    script = script_file(
        tmp_path,
        f"""
run = pathlib.Path({str(output)!r})
assert not (run / "result.json").exists()
print('{{"progress": 0.5, "text": "half", "step": {{"step": 3, "steps": 6, "loss": 0.5, "seconds_left": 2.5}}}}')
finish()
""",
    )
    steps: list[TrainingStep] = []
    child = ChildLauncher(timeout=20, memory_mb=0, command=lora_command(None, script, None))
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    end = await child.run(run_dir, lambda _progress, _text: None, output_dir=output, on_step=steps.append)
    assert isinstance(end, Finished), end
    assert steps == [TrainingStep(3, 6, 0.5, 2.5)]
    assert (output / "checkpoint").is_dir()
