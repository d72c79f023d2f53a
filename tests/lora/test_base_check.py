"""What `check` finds in a base before the first training does, by the headers of its files."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.unit.test_cli_check_lora import faults

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


async def test_a_base_on_which_the_first_training_would_fail_is_found(tmp_path: Path) -> None:
    """By headers alone: hours of episodes later the trainer was the first to say so, in words of its libraries."""
    base = write_gguf(tmp_path / "base.gguf", {"attn_q": (64, 64), "attn_v": (32, 64)})
    other = write_gguf(tmp_path / "other.gguf", {"attn_q": (96, 96), "attn_v": (32, 96)})
    cut = write_gguf(tmp_path / "cut.gguf", {"attn_q": (64, 64), "attn_v": (32, 64)}, missing=1000)
    good = {"lora_base_model": str(base), "lora_target_modules": "q_proj,v_proj"}
    assert await faults(tmp_path, **good) == []
    (fault,) = await faults(tmp_path, **good | {"lora_target_modules": "q_prj,v_proj"})
    assert fault == "SWARM_LORA_TARGET_MODULES: base.gguf has no q_prj; choose from q_proj, v_proj"
    (fault,) = await faults(tmp_path, **good | {"lora_base_model": str(cut)})
    assert fault.startswith(f"SWARM_LORA_BASE_MODEL: {cut} cannot be read: cut.gguf was cut off")
    assert fault.endswith("copy or download it again")
    (fault,) = await faults(tmp_path, **good, lora_serving_base=other)
    assert fault.startswith("SWARM_LORA_SERVING_BASE: other.gguf is another model than base.gguf")
    assert await faults(tmp_path, **good, lora_serving_base=base) == []
