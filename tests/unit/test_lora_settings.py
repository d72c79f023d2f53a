"""Every setting of LoRA reaches the part that it is about: a changed one changes what is made of the settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from pydantic import SecretStr

from worker.episodes.rules import Rules
from worker.errors import ConfigurationError
from worker.lora_settings import LoraSettings
from worker.models.applicators.chosen import lora_applicator
from worker.settings import Settings, load_settings
from worker.training.lora.inputs import LoraConfig
from worker.training.lora.planned import lora_config, lora_launcher, lora_plan
from worker.training.lora.recipe import LoraPlan

#: Another value than the default.
CHANGED: dict[str, Any] = {
    "lora_base_model": "another/base", "lora_objective": "dpo", "lora_rank": 4, "lora_alpha": 5.0, "lora_dropout": 0.3,
    "lora_target_modules": "q_proj", "lora_epochs": 7, "lora_batch_size": 9, "lora_gradient_accumulation": 2,
    "lora_learning_rate": 0.5, "lora_max_seq_length": 99, "lora_seed": 7, "lora_dpo_beta": 0.7,
    "lora_min_examples": 3, "lora_max_episodes": 11, "lora_device": "cpu", "lora_timeout": 12.0, "lora_memory_mb": 4096,
    "lora_checkpoint_steps": 13, "lora_python_path": "/usr/bin/python9", "lora_train_script": "/opt/train.py",
    "lora_launcher": "launch {command}", "lora_converter": "convert {base} {adapter} {output}",
    "lora_data_dir": "/there/data", "lora_output_dir": "/there/out", "lora_applicator": "noop",
    "lora_serving_base": "/there/base.gguf", "lora_drain_timeout": 3.0, "llama_url": "http://127.0.0.1:1",
    "llama_api_key": "one key", "llama_preset": "other.ini", "llama_server_path": "/opt/llama-server",
    "llama_host": "::1", "llama_port": 9001, "llama_standby_port": 9002, "llama_gpu_layers": 17,
    "llama_ctx_size": 128, "llama_parallel": 2, "llama_pid_file": "/run/llama.pid", "llama_log_file": "/log/llama.log",
    "vllm_url": "http://127.0.0.1:2", "vllm_api_key": "another key", "vllm_models_dir": "/mnt/models",
}  # fmt: skip
#: Their own tests show that these count: of the checks at start, and of the health window.
ELSEWHERE = {"lora_health_window", "lora_allow_plaintext"}
APPLICATORS = ("files", "llama_router", "blue_green", "vllm")


def made(tmp_path: Path, **flags: Any) -> str:
    """Everything that the settings become, as text."""
    given = {"lora_base_model": "some/base", "lora_serving_base": "base.gguf", "llama_preset": "preset.ini", **flags}
    given["llama_preset"] = tmp_path / given["llama_preset"]

    def settings(**more: Any) -> Settings:
        return load_settings(scenarios="S", data_dir=tmp_path, **{**more, **given})

    parts = [plan_of(settings()), lora_launcher(settings())]
    applicators = [lora_applicator(settings(lora_applicator=chosen)) for chosen in APPLICATORS]
    return "\n".join(map(_shown, [*parts, *applicators]))


def plan_of(settings: Settings) -> LoraPlan:
    """The plan, with learn models and rules that are the same whatever is set."""
    return lora_plan(settings, models_of=lambda *_: [], rules_of=lambda _: Rules())


def _shown(value: Any) -> str:
    """An object by what it holds, whatever the depth."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Struct):
        return str(msgspec.to_builtins(value))
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_shown(each)}' for key, each in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_shown, value))}]"
    if dataclasses.is_dataclass(value):
        return _shown({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if type(value).__module__.startswith("worker.") and hasattr(value, "__dict__"):
        return f"{type(value).__name__} {_shown(vars(value))}"
    return type(value).__name__ if callable(value) or type(value).__module__ == "asyncio.locks" else str(value)


def test_every_setting_is_looked_at_here() -> None:
    own = set(LoraSettings.model_fields)
    assert own == set(CHANGED) | ELSEWHERE


@pytest.mark.parametrize("name", CHANGED)
def test_a_setting_changes_what_is_made_of_it(tmp_path: Path, name: str) -> None:
    assert made(tmp_path, **{name: CHANGED[name]}) != made(tmp_path)


@pytest.mark.parametrize("name", sorted(set(LoraConfig.__struct_fields__) - {"gate", "worker_version"}))
def test_what_shapes_an_adapter_is_part_of_a_runs_identity(name: str) -> None:
    """So that a run under other settings is another run; of what only says how, it is the same."""
    setting = f"lora_{name}" if f"lora_{name}" in CHANGED else name
    values = CHANGED | {"holdout": 0.4, "producer_share": 0.5}
    assert lora_config(load_settings(**{setting: values[setting]})).hash != lora_config(load_settings()).hash


def test_the_defaults_are_the_domains() -> None:
    """Domain 4.14."""
    config = lora_config(load_settings())
    assert (config.rank, config.alpha, config.dropout) == (16, 32.0, 0.05)
    assert (config.epochs, config.batch_size, config.gradient_accumulation) == (3, 4, 4)
    assert (config.learning_rate, config.max_seq_length, config.min_examples) == (2e-4, 2048, 20)
    assert load_settings().lora_timeout == 6 * 3600
    plan = plan_of(load_settings(data_dir="/d"))
    assert (plan.runs_dir, plan.outputs_dir) == (Path("/d/lora/data"), Path("/d/lora/adapters"))


#: The domain's bounds, and what a number can be that is none.
REFUSED: dict[str, list[Any]] = {
    "lora_objective": ["ppo"], "lora_rank": [0, 257], "lora_alpha": [0, "inf", "nan"], "lora_dropout": [-0.1, 1],
    "lora_epochs": [0], "lora_batch_size": [0], "lora_gradient_accumulation": [0],
    "lora_learning_rate": [0, 1.5, "nan"], "lora_max_seq_length": [15], "lora_seed": [-1, 2**32],
    "lora_dpo_beta": [0, "inf", "nan"], "lora_min_examples": [0], "lora_device": ["tpu"], "lora_timeout": [0],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_a_value_out_of_its_range_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"SWARM_{name.upper()}"):
        load_settings(**{name: value})


def test_a_gguf_base_is_what_llama_cpp_serves(tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    base.write_bytes(b"GGUF")
    plan = plan_of(load_settings(lora_base_model=str(base)))
    assert plan.serving_base == base
    assert plan.config.base_model == str(base)
