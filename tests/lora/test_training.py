"""An adapter is trained: what it learns, the same every time, and after a kill as if there had been none."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.lora.tiny import TARGETS, TinyBase
from tests.lora.training_input import PROMPT_TRAINER, WANTED, config, example, examples, write_run
from tests.unit.training_world import eventually
from worker.durable import read_file
from worker.episodes.worker_decision_sequence import AVAILABLE_ACTIONS
from worker.episodes.worker_task import ARROW
from worker.models.adapter import AdapterModel, decode
from worker.models.adapter_files import check_adapter
from worker.models.before import read_before
from worker.models.gate import GateConfig
from worker.training.child import ChildLauncher, Died, Finished, TrainingStep
from worker.training.commands import lora_environment
from worker.training.lora.champion import load_champion
from worker.training.lora.inputs import LoraChampion, LoraConfig, LoraExample
from worker.training.lora.train import train_adapter
from worker.training.results import TrainingResult, decode_result

pytestmark = [
    pytest.mark.lora,
    # transformers asks its own models for it (modeling_utils.py, 5.23)
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

TRAIN, HELD_OUT = TARGETS[:18], TARGETS[18:]


def nothing_said(progress: float, text: str, step: Any = None) -> None:
    """To a report that nobody reads."""


def trained(
    place: Path,
    settings: LoraConfig,
    *,
    train: Sequence[LoraExample] | None = None,
    held_out: Sequence[LoraExample] | None = None,
    report: Any = nothing_said,
    **more: Any,
) -> TrainingResult:
    """Train in this process."""
    dpo = settings.objective == "dpo"
    train = examples(TRAIN, dpo=dpo) if train is None else train
    held_out = examples(HELD_OUT, dpo=dpo) if held_out is None else held_out
    write_run(place, settings, train=train, held_out=held_out, **more)
    train_adapter(place / "run", report)
    return result_of(place)


def result_of(place: Path) -> TrainingResult:
    """What it left."""
    return decode_result((place / "out" / "result.json").read_bytes())


def document_of(place: Path) -> AdapterModel:
    """The model that it left."""
    return decode((place / "out" / "model.json").read_bytes())


@pytest.fixture(scope="module")
def adapter(base: TinyBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended well."""
    place = tmp_path_factory.mktemp("trained") / "one"
    trained(place, config(base.directory))
    return place


def test_an_adapter_learns_what_the_base_does_not_know(adapter: Path) -> None:
    result = result_of(adapter)

    assert result.outcome == "model"
    assert result.gate is not None
    assert result.gate.verdict == "blessed", result.gate.reasons
    held_out = result.metrics["held_out"]
    assert held_out["candidate"]["exact"] == 1.0
    assert held_out["base"]["exact"] == 0.0
    assert held_out["candidate"]["nll"] < held_out["base"]["nll"]
    assert held_out["base"]["paired"]["better"] == len(HELD_OUT)
    assert result.metrics["final_loss"] < 0.5


def test_the_document_names_every_file_and_nothing_else_is_there(adapter: Path) -> None:
    document = document_of(adapter)
    check_adapter(document, adapter / "out" / "adapter")

    assert [file.path for file in document.files] == [
        "adapter.gguf",
        "peft/adapter_config.json",
        "peft/adapter_model.safetensors",
    ]
    below = adapter / "out" / "adapter"
    assert sorted(path.relative_to(below).as_posix() for path in below.rglob("*") if path.is_file()) == [
        file.path for file in document.files
    ]
    assert (document.base.name, document.base.architecture) == ("tiny", "llama")
    assert (document.rank, document.alpha, document.examples) == (8, 16.0, len(TRAIN))


def test_peft_loads_what_was_written(adapter: Path, base: TinyBase) -> None:
    from peft import PeftModel  # noqa: PLC0415 - heavy, and needed here alone
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base.directory), adapter / "out" / "adapter" / "peft"
    )
    config = json.loads((adapter / "out" / "adapter" / "peft" / "adapter_config.json").read_text())

    assert model.peft_config["default"].r == 8
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"] == "tiny"


def test_the_probes_answer_in_another_way_than_the_base(adapter: Path) -> None:
    probes = document_of(adapter).probes

    assert len(probes) == 3
    for probe in probes:
        assert probe.expected == ARROW.join(WANTED)
        assert probe.base != probe.expected
        assert probe.prompt.endswith("<|im_start|>assistant\n")


def test_the_same_data_settings_and_seed_give_the_same_adapter(adapter: Path, base: TinyBase, tmp_path: Path) -> None:
    again = trained(tmp_path / "again", config(base.directory), run_id="r2")
    other = trained(tmp_path / "other", config(base.directory, seed=43), run_id="r3")

    assert again.model_sha256 == result_of(adapter).model_sha256
    assert other.model_sha256 != again.model_sha256


def test_a_gguf_file_is_a_base_too_and_gives_the_same_weights(adapter: Path, base: TinyBase, tmp_path: Path) -> None:
    trained(tmp_path / "run", config(base.gguf))

    assert document_of(tmp_path / "run").base.name == "tiny.gguf"
    weights = [
        next(file.sha256 for file in document_of(place).files if file.path.endswith(".safetensors"))
        for place in (adapter, tmp_path / "run")
    ]
    assert weights[0] == weights[1]


class Killed(BaseException):
    """Ends a training in this process as a kill does: nothing is cleaned up."""


@pytest.mark.parametrize("at", [4, 17, 30])
def test_a_killed_training_goes_on_to_the_very_same_adapter(
    adapter: Path, base: TinyBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Within the first steps, between checkpoints, and after the last step."""
    from worker.training.lora import loop  # noqa: PLC0415 - heavy, and needed here alone

    place, steps = tmp_path / "run", 0
    step = loop._step

    def mortal(*arguments: Any, **more: Any) -> float:
        nonlocal steps
        if steps == at:
            raise Killed
        steps += 1
        return step(*arguments, **more)

    def mortal_at_the_end(progress: float, _text: str, _step: Any = None) -> None:
        if progress > 0.9:
            raise Killed

    monkeypatch.setattr(loop, "_step", mortal)
    with pytest.raises(Killed):
        trained(place, config(base.directory), report=mortal_at_the_end, checkpoint_steps=5)
    monkeypatch.undo()
    assert not (place / "out" / "result.json").exists()
    train_adapter(place / "run", nothing_said)

    assert result_of(place).metrics["resumed_at_step"] == at // 5 * 5
    assert result_of(place).model_sha256 == result_of(adapter).model_sha256


def test_a_checkpoint_of_another_training_is_not_gone_on_from(base: TinyBase, tmp_path: Path) -> None:
    place, settings = tmp_path / "run", config(base.directory, epochs=1)
    trained(place, settings)
    checkpoint = place / "out" / "checkpoint" / "latest.safetensors"
    other = tmp_path / "other"
    (other / "out" / "checkpoint").mkdir(parents=True)
    (other / "out" / "checkpoint" / "latest.safetensors").write_bytes(checkpoint.read_bytes())
    result = trained(other, replace(settings, seed=7))

    assert result.metrics["resumed_at_step"] == 0


def test_a_checkpoint_outlives_other_surroundings(base: TinyBase, tmp_path: Path) -> None:
    """Whoever has it checkpointed more often, or puts its results elsewhere, means to go on."""
    place, other = tmp_path / "run", tmp_path / "other"
    before = trained(place, config(base.directory, epochs=1), checkpoint_steps=2)
    (other / "out").mkdir(parents=True)
    (place / "out" / "checkpoint").rename(other / "out" / "checkpoint")
    result = trained(other, config(base.directory, epochs=1), checkpoint_steps=3)

    assert result.metrics["resumed_at_step"] > 0
    assert result.model_sha256 == before.model_sha256


def test_a_torn_checkpoint_is_none(base: TinyBase, tmp_path: Path) -> None:
    place = tmp_path / "run"
    (place / "out" / "checkpoint").mkdir(parents=True)
    (place / "out" / "checkpoint" / "latest.safetensors").write_bytes(b"torn")
    metrics = trained(place, config(base.directory, epochs=1)).metrics

    assert metrics["resumed_at_step"] == 0
    assert "deserializing header" in metrics["checkpoint_damage"]


async def test_a_child_that_is_ended_leaves_no_model_and_the_next_goes_on(
    adapter: Path, base: TinyBase, tmp_path: Path
) -> None:
    """The real process, from start to end: SIGTERM in the middle of it, then a second attempt."""
    write_run(tmp_path, config(base.directory), train=examples(TRAIN), held_out=examples(HELD_OUT), checkpoint_steps=1)
    launcher = ChildLauncher(timeout=50, memory_mb=0, command=PROMPT_TRAINER, environment=lora_environment)
    checkpoint = tmp_path / "out" / "checkpoint" / "latest.safetensors"
    steps: list[TrainingStep] = []

    def run() -> asyncio.Task[Any]:
        return asyncio.create_task(
            launcher.run(tmp_path / "run", lambda *_: None, output_dir=tmp_path / "out", on_step=steps.append)
        )

    first = run()
    await eventually(lambda: checkpoint.exists() or first.done(), within=40)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not (tmp_path / "out" / "model.json").exists()
    end = await run()

    assert isinstance(end, Finished), end
    assert end.result.metrics["resumed_at_step"] >= 1
    assert end.result.model_sha256 == result_of(adapter).model_sha256
    assert (steps[-1].step, steps[-1].steps, steps[-1].seconds_left) == (30, 30, 0.0)


def test_another_gate_judges_the_steps_that_are_made(adapter: Path, base: TinyBase, tmp_path: Path) -> None:
    shutil.copytree(adapter / "out" / "checkpoint", tmp_path / "out" / "checkpoint")
    result = trained(tmp_path, config(base.directory, gate=GateConfig(min_samples=len(HELD_OUT) + 1)))

    assert result.metrics["resumed_at_step"] == result.metrics["steps"]
    assert result.model_sha256 == result_of(adapter).model_sha256
    assert result.gate is not None
    assert result.gate.verdict == "not_evaluable"


def test_processes_of_a_launcher_train_one_adapter(adapter: Path, base: TinyBase, tmp_path: Path) -> None:
    """Two of them share the passes of a step: the same adapter but for the order in which floats are added.

    Without the limits of a real training: two processes that run on what others leave may wait for each other for long.
    """
    settings = config(base.directory, batch_size=2, gradient_accumulation=2)
    write_run(tmp_path, settings, train=examples(TRAIN), held_out=examples(HELD_OUT))
    program = (
        "import sys; from pathlib import Path; from worker.training.lora.train import train_adapter; "
        "from worker.training.trainer import report; train_adapter(Path(sys.argv[1]), report)"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*torchrun, sys.executable, "-c", program, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=55,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"text": "done"') == 1
    found, alone = result_of(tmp_path).metrics["final_loss"], result_of(adapter).metrics["final_loss"]
    assert found == pytest.approx(alone, rel=1e-2)
    assert document_of(tmp_path).probes[0].expected == ARROW.join(WANTED)


async def test_a_machine_that_is_too_small_ends_the_training_as_out_of_memory(base: TinyBase, tmp_path: Path) -> None:
    write_run(tmp_path, config(base.directory), train=examples(TRAIN), held_out=[])
    launcher = ChildLauncher(timeout=50, memory_mb=480, command=PROMPT_TRAINER, environment=lora_environment)
    end = await launcher.run(tmp_path / "run", lambda *_: None, output_dir=tmp_path / "out")

    assert isinstance(end, Died)
    assert end.reason == "oom"


def test_preferences_are_learnt(base: TinyBase, tmp_path: Path) -> None:
    """Of two orders of the same actions the rejected one is what the base would rather say."""
    first, second, end = AVAILABLE_ACTIONS[2], AVAILABLE_ACTIONS[0], AVAILABLE_ACTIONS[-1]
    pairs = [
        example(target, actions=(first, second, end), rejected=(AVAILABLE_ACTIONS[4], second, end))
        for target in TARGETS
    ]
    result = trained(
        tmp_path / "run",
        config(base.directory, objective="dpo", learning_rate=1e-3, dpo_beta=0.5, epochs=4),
        train=pairs[:18],
        held_out=pairs[18:],
    )

    held_out = result.metrics["held_out"]
    assert held_out["base"]["preferred"] < 0.5
    assert held_out["candidate"]["preferred"] == 1.0
    assert result.gate is not None
    assert result.gate.verdict == "blessed", result.gate.reasons


def as_champion(place: Path) -> LoraChampion:
    """The model of a run as if it were registered there."""
    return LoraChampion(sha256=result_of(place).model_sha256, directory=str(place / "out"))


def test_the_live_adapter_answers_the_same_questions(adapter: Path, base: TinyBase, tmp_path: Path) -> None:
    """One that learnt too little is held against it, and rejected."""
    result = trained(
        tmp_path / "run", config(base.directory, learning_rate=1e-6, epochs=1), champion=as_champion(adapter)
    )

    champion, candidate = result.metrics["held_out"]["champion"], result.metrics["held_out"]["candidate"]
    assert champion["exact"] == 1.0
    assert champion["nll"] == pytest.approx(result_of(adapter).metrics["held_out"]["candidate"]["nll"], abs=1e-5)
    assert candidate["exact"] == 0.0
    assert result.gate is not None
    assert result.gate.verdict == "rejected"


def test_what_tells_it_from_the_live_adapter_is_kept_beside_a_document_that_says_nothing_of_it(
    adapter: Path, base: TinyBase, tmp_path: Path
) -> None:
    """The second order begins as the first: what tells them apart is not what tells them from the base."""
    wanted = (WANTED[0], AVAILABLE_ACTIONS[3], WANTED[-1])
    rows = [example(target, actions=wanted) for target in TARGETS]
    data = {"train": rows[:18], "held_out": rows[18:]}
    alone = trained(tmp_path / "alone", config(base.directory), **data)
    beside = trained(tmp_path / "beside", config(base.directory), champion=as_champion(adapter), **data)

    assert beside.model_sha256 == alone.model_sha256
    assert read_before(tmp_path / "alone/out") is None
    before = read_before(tmp_path / "beside/out")
    assert before is not None
    assert before.sha256 == result_of(adapter).model_sha256
    told = [(probe.expected, probe.base) for probe in before.probes]
    assert told == [(ARROW.join(wanted), ARROW.join(WANTED))] * 3


def test_the_same_training_gives_the_same_adapter_while_its_own_result_is_live(
    adapter: Path, base: TinyBase, tmp_path: Path
) -> None:
    again = trained(tmp_path, config(base.directory), champion=as_champion(adapter))

    assert again.model_sha256 == result_of(adapter).model_sha256
    assert read_before(tmp_path / "out") is None


def test_a_champion_of_another_base_is_not_compared(adapter: Path, base: TinyBase, tmp_path: Path) -> None:
    result = trained(tmp_path / "run", config(base.gguf, epochs=1), champion=as_champion(adapter))

    assert "champion" not in result.metrics["held_out"]
    assert result.gate is not None
    assert result.gate.reasons[-1] == "not compared with the live adapter: it was trained on another base (tiny)"


def test_a_champion_whose_document_is_another_by_now_is_not_compared(adapter: Path) -> None:
    """Put back by an older backup, say: its files may be whole, and are not those of the live version."""
    champion = replace(as_champion(adapter), sha256="0" * 64)
    unused: Any = None
    assert load_champion(unused, champion, document_of(adapter).base) == (
        "its model.json is not the one that was registered"
    )


def test_a_champion_whose_files_were_changed_is_not_compared(adapter: Path, base: TinyBase, tmp_path: Path) -> None:
    place = tmp_path / "champion" / "out"
    for file in ("model.json", *(f"adapter/{one.path}" for one in document_of(adapter).files)):
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(read_file(adapter / "out" / file, limit=1_000_000))
    (place / "adapter" / "peft" / "adapter_config.json").write_text("{}")
    champion = LoraChampion(sha256=result_of(adapter).model_sha256, directory=str(place))
    result = trained(tmp_path / "run", config(base.directory, epochs=1), champion=champion)

    assert result.gate is not None
    assert result.gate.reasons[-1].startswith("not compared with the live adapter: its files cannot be read")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rank": 3, "alpha": 7.0, "dropout": 0.2}, {"r": 3, "lora_alpha": 7.0, "lora_dropout": 0.2}),
        ({"target_modules": ("v_proj", "up_proj")}, {"target_modules": ["up_proj", "v_proj"]}),
        ({"epochs": 2, "batch_size": 4, "gradient_accumulation": 3}, {"steps": 4}),
        ({"epochs": 3, "batch_size": 18, "gradient_accumulation": 1}, {"steps": 3}),
    ],
)
def test_the_settings_shape_the_adapter(
    base: TinyBase, tmp_path: Path, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    result = trained(tmp_path / "run", config(base.directory, **{"epochs": 1, **settings}))
    written = json.loads((tmp_path / "run" / "out" / "adapter" / "peft" / "adapter_config.json").read_text())

    assert {name: {**written, **result.metrics}[name] for name in expected} == expected


def test_the_settings_of_the_steps_change_what_is_learnt(adapter: Path, base: TinyBase, tmp_path: Path) -> None:
    """Dropout and learning rate; and beta for preferences."""
    hashes = {result_of(adapter).model_sha256}
    settings: list[dict[str, Any]] = [
        {"dropout": 0.3},
        {"learning_rate": 1e-3},
        {"objective": "dpo", "dpo_beta": 0.1, "epochs": 1},
        {"objective": "dpo", "dpo_beta": 0.9, "epochs": 1},
    ]
    for number, more in enumerate(settings):
        hashes.add(trained(tmp_path / str(number), config(base.directory, **more)).model_sha256)

    assert len(hashes) == 5


def test_examples_that_cannot_be_learnt_from_are_left_out_and_counted(base: TinyBase, tmp_path: Path) -> None:
    long = replace(example("service-1"), prompt="Target: service-1 " * 40)
    unfit = [long, replace(example("service-2"), chosen=""), replace(example("service-3"), prompt="a<|im_end|>b")]
    result = trained(
        tmp_path / "run",
        config(base.directory, epochs=1, max_seq_length=128),
        train=[*examples(TRAIN), *unfit],
        held_out=[*examples(HELD_OUT), *unfit],
    )

    assert (result.metrics["examples"], result.metrics["held_out_examples"]) == (len(TRAIN), len(HELD_OUT))
    for reason in ("too_long", "no_answer", "special_token"):
        assert (result.metrics[reason], result.metrics[f"held_out_{reason}"]) == (1, 1)


def test_too_few_examples_are_nothing_to_learn(base: TinyBase, tmp_path: Path) -> None:
    unfit = [replace(example("service-2"), chosen=""), replace(example("service-3"), prompt="a<|im_end|>b")]
    result = trained(tmp_path / "run", config(base.directory, min_examples=20), train=[*examples(TRAIN), *unfit])

    assert (result.outcome, result.gate) == ("nothing", None)
    assert result.reason == (
        "18 examples; at least 20 are needed (SWARM_LORA_MIN_EXAMPLES); 1 more have no answer; "
        f"1 more hold a special token of the base as text; {len(HELD_OUT)} more are held out for the gate "
        "(SWARM_HOLDOUT, a share of tasks)"
    )
    assert not (tmp_path / "run" / "out" / "model.json").exists()


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_where_all_examples_are_held_out_that_is_what_is_said(base: TinyBase, tmp_path: Path, objective: Any) -> None:
    """Those of one group or session lie on one side, so with few of these all may."""
    result = trained(tmp_path / "run", config(base.directory, objective=objective, min_examples=20), train=[])

    assert result.reason is not None
    assert result.reason.startswith("0 examples; at least 20 are needed")
    assert f"{len(HELD_OUT)} more are held out for the gate (SWARM_HOLDOUT" in result.reason


def test_without_pairs_it_is_no_number_of_examples_that_is_blamed(base: TinyBase, tmp_path: Path) -> None:
    result = trained(tmp_path / "run", config(base.directory, objective="dpo", min_examples=20), train=[], held_out=[])

    assert result.outcome == "nothing"
    assert (result.reason or "").startswith("no examples: no group has both better and worse attempts")
    assert "SWARM_LORA_OBJECTIVE" in (result.reason or "")


def test_without_anything_held_out_nobody_can_tell(base: TinyBase, tmp_path: Path) -> None:
    result = trained(tmp_path / "run", config(base.directory, epochs=1), held_out=[])

    assert result.gate is not None
    assert result.gate.verdict == "not_evaluable"
