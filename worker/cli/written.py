"""Settings as a person writes them, `checkout,search`, `25s`, `true`: for `--help` and `describe`."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import orjson
from pydantic import BeforeValidator, SecretStr

from worker.durations import duration_text
from worker.setting_types import parse_duration
from worker.settings import Settings

#: Choices that have more words than these.
_CHOICES = {"processor_mode": "offline|lora|full"}
_PLAIN = {int: "NUMBER", float: "NUMBER", bool: "true|false"}
#: Defaults that are made where the worker runs.
_MADE_THERE = {"data_dir": "~/.local/share/swarm-worker", "worker_id": "the host's name"}

#: Above the first setting of each group, in the order in which they are listed.
_HEADINGS = {
    "scenarios": "What is served, where things are",
    "producers": "Who may do what",
    "prefetch": "Intake",
    "learn_models": "Episodes",
    "check_interval": "Triggers and trainings",
    "apply_mode": "Applying models",
    "control_key": "Commands, health, logs",
    "crash_at": "Tests",
    "lora_base_model": "LoRA: what is trained",
    "lora_device": "LoRA: how it is trained",
    "lora_applicator": "LoRA: how adapters reach their server",
    "llama_url": "LoRA: llama-server",
    "vllm_url": "LoRA: vLLM",
}


def written(name: str, value: Any) -> str:
    """A setting's value in the form that its variable and its flag take."""
    if value is None or value == {}:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(value)
    if isinstance(value, float) and _is_duration(name):
        milliseconds = value * 1000
        return duration_text(int(milliseconds)) if milliseconds.is_integer() else f"{value:g}s"
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode().strip('"')


def default(name: str) -> str:
    """A setting's default, empty where it has none."""
    if name in _MADE_THERE:
        return _MADE_THERE[name]
    value = Settings.model_fields[name].default
    return value.get_secret_value() if isinstance(value, SecretStr) else written(name, value)


def heading(name: str) -> str:
    """What stands above the group that a setting is listed in."""
    names = list(Settings.model_fields)
    return next(_HEADINGS[each] for each in reversed(names[: names.index(name) + 1]) if each in _HEADINGS)


def form(name: str) -> str:
    """What stands for the value in a help text: the choices, or what kind it is."""
    if name in _CHOICES:
        return _CHOICES[name]
    annotation = Settings.model_fields[name].annotation
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    if _is_duration(name):
        return "DURATION"
    if get_origin(annotation) is tuple:
        return "A,B,..."
    return next((word for kind, word in _PLAIN.items() if kind in (annotation, *get_args(annotation))), "TEXT")


def _is_duration(name: str) -> bool:
    checks = Settings.model_fields[name].metadata
    return any(isinstance(check, BeforeValidator) and check.func is parse_duration for check in checks)
