"""What a start finds in a base before the first training does, by the headers of its files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from worker.configuration import learn_models_of
from worker.settings import load_settings
from worker.training.lora.requirements import lora_faults

pytestmark = pytest.mark.lora


def write_gguf(path: Path, modules: dict[str, tuple[int, int]], *, missing: int = 0) -> Path:
    """A base of one layer, its numbers all zero; `missing` bytes of it are cut off."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, shape in modules.items():
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size - missing)
    return path


def faults(**flags: Any) -> list[str]:
    settings = load_settings(scenarios="S", processor_mode="lora", **flags)
    return list(lora_faults(settings, {"S": learn_models_of(settings, "S")}))


def test_a_base_on_which_the_first_training_would_fail_is_found(tmp_path: Path) -> None:
    """By headers alone: hours of episodes later the trainer was the first to say so, in words of its libraries."""
    base = write_gguf(tmp_path / "base.gguf", {"attn_q": (64, 64), "attn_v": (32, 64)})
    other = write_gguf(tmp_path / "other.gguf", {"attn_q": (96, 96), "attn_v": (32, 96)})
    cut = write_gguf(tmp_path / "cut.gguf", {"attn_q": (64, 64), "attn_v": (32, 64)}, missing=1000)
    good = {"lora_base_model": str(base), "lora_target_modules": "q_proj,v_proj"}
    assert faults(**good) == []
    for name in ("q_prj", "self_attn.q_proj"):  # the document of an adapter names its modules without what is before
        (fault,) = faults(**good | {"lora_target_modules": f"{name},v_proj"})
        assert fault == (
            f"SWARM_LORA_TARGET_MODULES: base.gguf has no linear layer of attention or MLP named {name}; "
            "choose from q_proj, v_proj"
        )
    (fault,) = faults(**good | {"lora_base_model": str(cut)})
    assert fault.startswith(f"SWARM_LORA_BASE_MODEL: {cut} cannot be read: cut.gguf was cut off")
    assert fault.endswith("copy or download it again")
    (fault,) = faults(**good, lora_serving_base=other)
    assert fault.startswith("SWARM_LORA_SERVING_BASE: other.gguf is another model than base.gguf")
    assert faults(**good, lora_serving_base=base) == []
    assert faults(**good | {"lora_base_model": "nobody/nothing-of-this-name"}) == [], "it may be downloaded yet"
