"""What the processor may run: `offline`, `lora` or `full`, in the original's words (domain section 7)."""

from __future__ import annotations

from enum import Enum

from worker.errors import ConfigurationError


class ProcessorMode(Enum):
    """Prints as the short word."""

    OFFLINE = "offline"
    LORA = "lora"
    FULL = "full"

    def __str__(self) -> str:
        return self.value


_WORDS = {
    "offline": ProcessorMode.OFFLINE,
    "offline_only": ProcessorMode.OFFLINE,
    "lora": ProcessorMode.LORA,
    "lora_only": ProcessorMode.LORA,
    "full": ProcessorMode.FULL,
    "both": ProcessorMode.FULL,
}


def parse_mode(text: str) -> ProcessorMode:
    """A mode by any of its words, in any case; `ConfigurationError` otherwise."""
    mode = _WORDS.get(text.strip().lower())
    if mode is None:
        raise ConfigurationError(
            f"SWARM_PROCESSOR_MODE: {text!r} is no mode; use offline (offline_only), lora (lora_only) or full (both)"
        )
    return mode


def require_runnable(mode: ProcessorMode) -> None:
    """Refuse at start what could only fail once a trigger fires."""
    if mode is not ProcessorMode.OFFLINE:
        raise ConfigurationError(
            f"SWARM_PROCESSOR_MODE: {mode} needs a LoRA trainer, and this version has none: neither the training code "
            "(torch, peft) nor a base model can be configured; set SWARM_PROCESSOR_MODE=offline"
        )
