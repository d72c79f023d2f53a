"""What applicators of adapters share about a version: the name that it is served under, and its document."""

from __future__ import annotations

import re
from pathlib import Path

from worker.errors import ApplyFailed
from worker.models.adapter import AdapterModel, AdapterUnreadable, decode
from worker.store.port import Model


def served_name(scenario: str, version: int) -> str:
    """What nodes ask a server for, and the header of the version's section in a router's preset."""
    return f"{scenario}@{version}"


def belongs_to(scenario: str, name: str) -> bool:
    """Whether a name is that of a version of this scenario."""
    return re.fullmatch(re.escape(scenario) + r"@\d+", name) is not None


def require_gguf(file: Path) -> None:
    """`ApplyFailed` where an adapter has no file for llama.cpp."""
    if not file.is_file():
        raise ApplyFailed(
            f"{file} is missing, and llama-server takes no other form; for a base that is no llama, configure "
            "SWARM_LORA_CONVERTER and train again"
        )


def decoded(model: Model, content: bytes) -> AdapterModel:
    """The document of a registered adapter. Raises `ApplyFailed` where it is none."""
    try:
        return decode(content)
    except AdapterUnreadable as error:
        raise ApplyFailed(f"version {model.version} of {model.scenario}: {error}; train again") from error
