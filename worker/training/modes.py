"""What the processor may run: `offline`, `lora` or `full`, in the original's words (domain section 7)."""

from __future__ import annotations

from enum import Enum

from worker.errors import ConfigurationError
from worker.store.port import ModelKind


class ProcessorMode(Enum):
    """Prints as the short word."""

    OFFLINE = "offline"
    LORA = "lora"
    FULL = "full"

    def __str__(self) -> str:
        return self.value

    @property
    def kinds(self) -> tuple[ModelKind, ...]:
        """What is trained, in this order."""
        return _KINDS[self]


_KINDS: dict[ProcessorMode, tuple[ModelKind, ...]] = {
    ProcessorMode.OFFLINE: ("offline",),
    ProcessorMode.LORA: ("lora",),
    ProcessorMode.FULL: ("offline", "lora"),
}
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
        raise ConfigurationError(f"SWARM_PROCESSOR_MODE: {text!r} is unknown; choose from offline, lora, full")
    return mode
