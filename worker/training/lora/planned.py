"""From settings to what LoRA runs go by."""

from __future__ import annotations

from collections.abc import Callable

from worker.configuration import base_model, serving_base
from worker.episodes.rules import Rules
from worker.models.gate import GateConfig
from worker.settings import Settings
from worker.training.child import ChildLauncher
from worker.training.commands import lora_command, lora_environment, own_program
from worker.training.lora.data import ModelsOf
from worker.training.lora.inputs import LoraConfig
from worker.training.lora.recipe import LoraPlan


def lora_config(settings: Settings) -> LoraConfig:
    """What shapes the adapters; without a base model where none is set, as an export of data needs none."""
    return LoraConfig(
        base_model=base_model(settings),
        objective=settings.lora_objective,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        target_modules=settings.lora_target_modules,
        epochs=settings.lora_epochs,
        batch_size=settings.lora_batch_size,
        gradient_accumulation=settings.lora_gradient_accumulation,
        learning_rate=settings.lora_learning_rate,
        max_seq_length=settings.lora_max_seq_length,
        seed=settings.lora_seed,
        dpo_beta=settings.lora_dpo_beta,
        min_examples=settings.lora_min_examples,
        max_episodes=settings.lora_max_episodes,
        device=settings.lora_device,
        holdout=settings.holdout,
        producer_share=settings.producer_share,
        gate=GateConfig(strategy=settings.gate_strategy, threshold=settings.gate_threshold),
    )


def lora_plan(settings: Settings, *, models_of: ModelsOf, rules_of: Callable[[str], Rules]) -> LoraPlan:
    """What all LoRA runs have in common."""
    return LoraPlan(
        config=lora_config(settings),
        models_of=models_of,
        rules_of=rules_of,
        runs_dir=settings.lora_data_dir or settings.data_dir / "lora" / "data",
        outputs_dir=settings.lora_output_dir or settings.data_dir / "lora" / "adapters",
        checkpoint_steps=settings.lora_checkpoint_steps,
        launched=settings.lora_launcher is not None,
        converter=settings.lora_converter,
        serving_base=serving_base(settings),
    )


def lora_launcher(settings: Settings) -> ChildLauncher:
    """What starts a LoRA training."""
    return ChildLauncher(
        timeout=settings.lora_timeout,
        memory_mb=settings.lora_memory_mb,
        command=lora_command(settings.lora_python_path, settings.lora_train_script, settings.lora_launcher),
        environment=lora_environment,
        timeout_setting="SWARM_LORA_TIMEOUT",
        program=own_program(settings.lora_train_script, settings.lora_launcher),
    )
