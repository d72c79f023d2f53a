"""What a LoRA training does between reading its input and writing its result. Runs in the child: it alone has torch."""

from __future__ import annotations

import hashlib
import platform
import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import peft
import torch
import transformers
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model

from worker import __version__
from worker.durable import make_private_directory, replace_file
from worker.learning.offline_model import MODEL_FILE
from worker.models.adapter import ADAPTER_DIR, PEFT_DIR, AdapterModel, Probe, encode
from worker.models.before import BEFORE_FILE, encode_before
from worker.training.lora.base import Base, device_of, load_base, require_servable
from worker.training.lora.champion import CANDIDATE
from worker.training.lora.checkpoints import Checkpoints
from worker.training.lora.dpo import dpo_loss
from worker.training.lora.files import files_below, write_peft
from worker.training.lora.gguf_adapter import write_gguf
from worker.training.lora.inputs import (
    HELD_OUT_FILE,
    TRAIN_FILE,
    LoraConfig,
    read_examples,
    read_lora_input,
)
from worker.training.lora.judging import judge
from worker.training.lora.loop import Loss, train
from worker.training.lora.progress import LOADED, PROBED, Report, StepProgress
from worker.training.lora.schedule import Schedule
from worker.training.lora.sft import sft_loss
from worker.training.lora.tokens import Encoder
from worker.training.lora.world import joined, leads
from worker.training.results import RESULT_FILE, TrainingResult, encode_result


def train_adapter(run_dir: Path, report: Report) -> None:
    """Train by `input.json` in `run_dir`; leave `adapter/`, `model.json` and, last, `result.json` where it says.

    `ConfigurationError` where a setting makes it impossible.
    """
    _Training(run_dir, report).run()


class _Training:
    """One run."""

    def __init__(self, run_dir: Path, report: Report) -> None:
        self._started = time.monotonic()
        self._run_dir = run_dir
        self._report = report if leads() else _in_silence
        self._report(0.0, "reading")
        self._given, self._input_sha256 = read_lora_input(run_dir)
        self._output = Path(self._given.surroundings.output_dir)

    def run(self) -> None:
        config = self._given.config
        _make_deterministic()
        device = device_of(config.device)
        self._report(0.01, f"loading {Path(config.base_model).name}")
        base = load_base(config.base_model, device)
        require_servable(base.model, config.target_modules)
        encoder = Encoder(base.tokenizer, adds_bos=base.adds_bos)
        limit = min(config.max_seq_length, base.longest or config.max_seq_length)
        examples, unfit = encoder.within(read_examples(self._run_dir / TRAIN_FILE), limit)
        if len(examples) < config.min_examples:
            self._nothing(len(examples), unfit, limit)
            return
        held_out, unfit_held_out = encoder.within(read_examples(self._run_dir / HELD_OUT_FILE), limit)
        checkpoints = Checkpoints(self._output, identity=identity_of(self._given.shape, base, device))
        model = _with_adapter(base, config)
        with joined(device) as world:
            trained = train(
                model,
                examples,
                _loss_of(model, config, encoder.pad),
                schedule=self._schedule(len(examples)),
                learning_rate=config.learning_rate,
                checkpoints=checkpoints,
                checkpoint_steps=self._given.surroundings.checkpoint_steps,
                on_step=self._on_step(len(examples)),
                world=world,
            )
        if not leads():
            return
        weighed, probes, before = judge(
            model, self._given, base.document, encoder, held_out=held_out, examples=examples, report=self._report
        )
        self._report(PROBED, "writing")
        content = encode(self._document(model, base, len(examples), probes))
        if before is not None:
            replace_file(self._output / BEFORE_FILE, encode_before(before))
        replace_file(self._output / MODEL_FILE, content)
        metrics = {
            "examples": len(examples),
            "held_out_examples": len(held_out),
            **unfit,
            **{f"held_out_{reason}": number for reason, number in unfit_held_out.items()},
            "tokens": sum(len(each.chosen.ids) for each in examples),
            "steps": trained.steps,
            "resumed_at_step": trained.resumed_at,
            "checkpoint_damage": checkpoints.damage,
            "final_loss": trained.final_loss,
            "device": str(device),
            "probes": len(probes),
            "held_out": weighed.metrics,
        }
        self._end(
            outcome="model", model_sha256=hashlib.sha256(content).hexdigest(), metrics=metrics, gate=weighed.verdict
        )

    def _schedule(self, examples: int) -> Schedule:
        config = self._given.config
        return Schedule(
            examples=examples, epochs=config.epochs, batch_size=config.batch_size,
            accumulation=config.gradient_accumulation, seed=config.seed,
        )  # fmt: skip

    def _on_step(self, examples: int) -> StepProgress:
        steps = self._schedule(examples).steps
        self._report(LOADED, f"training on {examples} examples, {steps} steps")
        return StepProgress(self._report, steps=steps, clock=time.monotonic)

    def _document(self, model: PeftModel, base: Base, examples: int, probes: list[Probe]) -> AdapterModel:
        """Write the adapter's files, whole or not at all, and say what they are."""
        config = self._given.config
        unfinished, directory = self._output / f".{ADAPTER_DIR}", self._output / ADAPTER_DIR
        for left in (unfinished, directory):
            shutil.rmtree(left, ignore_errors=True)
        make_private_directory(unfinished)
        write_peft(model, unfinished / PEFT_DIR, base=base.document.name)
        around = self._given.surroundings
        write_gguf(
            unfinished,
            base=base.path,
            serving=Path(around.serving_base) if around.serving_base else None,
            converter=around.converter,
        )
        unfinished.rename(directory)
        return AdapterModel(
            scenario=self._given.scenario,
            objective=config.objective,
            base=base.document,
            rank=config.rank,
            alpha=config.alpha,
            target_modules=sorted(config.target_modules),
            examples=examples,
            data_sha256=self._given.manifest_sha256,
            files=files_below(directory),
            probes=probes,
        )

    def _nothing(self, left: int, unfit: Mapping[str, int], limit: int) -> None:
        reason = f"{left} examples; at least {self._given.config.min_examples} are needed (SWARM_LORA_MIN_EXAMPLES)"
        held_out = self._given.held_out_examples
        if self._given.config.objective == "dpo" and not left and not held_out and not any(unfit.values()):
            reason = (
                "no examples: no group has both better and worse attempts; SWARM_LORA_OBJECTIVE=dpo pairs those of "
                "one group_id, which nodes set in their records"
            )
        why = {
            "too_long": f"are longer than {limit} tokens (SWARM_LORA_MAX_SEQ_LENGTH)",
            "no_answer": "have no answer",
            "special_token": "hold a special token of the base as text",
        }
        reason += "".join(f"; {unfit[one]} more {words}" for one, words in why.items() if unfit[one])
        if held_out:
            reason += f"; {held_out} more are held out for the gate (SWARM_HOLDOUT, a share of tasks)"
        self._end(outcome="nothing", reason=reason, metrics={"examples": left, **unfit})

    def _end(self, **found: Any) -> None:
        versions = {"worker": __version__, "python": platform.python_version(), **_library_versions()}
        took_ms = round((time.monotonic() - self._started) * 1000)
        result = TrainingResult(
            run_id=self._given.run_id, versions=versions, input_sha256=self._input_sha256, took_ms=took_ms, **found
        )
        replace_file(self._output / RESULT_FILE, encode_result(result))
        self._report(1.0, "done")


def identity_of(shape: str, base: Base, device: torch.device) -> str:
    """Of what a checkpoint is of: other examples, settings, base, libraries or device would give another adapter."""
    libraries = " ".join(f"{name} {version}" for name, version in _library_versions().items())
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{shape} {base.document.sha256} {libraries} on {kind}"


def _library_versions() -> dict[str, str]:
    return {"torch": str(torch.__version__), "transformers": transformers.__version__, "peft": peft.__version__}


def _in_silence(progress: float, text: str, step: tuple[int, int, float, float] | None = None) -> None:
    """Several processes train, and one speaks for all."""


def _make_deterministic() -> None:
    """The same input gives the same adapter, on one kind of machine."""
    # On a GPU some passes have no deterministic form: torch says so and goes on.
    torch.use_deterministic_algorithms(mode=True, warn_only=True)


def _with_adapter(base: Base, config: LoraConfig) -> PeftModel:
    """The base with an adapter that does nothing yet; its weights follow from the seed."""
    torch.manual_seed(config.seed)
    shape = PeftLoraConfig(
        r=config.rank,
        lora_alpha=cast("int", config.alpha),  # a float serves as well: it is divided by r
        lora_dropout=config.dropout,
        target_modules=sorted(config.target_modules),
        task_type="CAUSAL_LM",
    )
    return cast("PeftModel", get_peft_model(base.model, shape, adapter_name=CANDIDATE))


def _loss_of(model: PeftModel, config: LoraConfig, pad: int) -> Loss:
    if config.objective == "dpo":
        return partial(dpo_loss, model, beta=config.dpo_beta, pad=pad)
    return partial(sft_loss, model, pad=pad)
