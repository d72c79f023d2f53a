"""A training process for adapters without torch: what it learns is how its data hash. `python -m ... RUN_DIR`.

The environment of a test's process is not passed on, so a test says by files in the run's parent directory what else is
to happen: `wait` (until it is removed), `nothing`, `exit`, `die` (killed once, with the word gone) or `die_always`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker.learning.validation import Verdict
from worker.models.adapter import (
    ADAPTER_DIR,
    PEFT_DIR,
    AdapterFile,
    AdapterModel,
    BaseModel,
    encode,
)
from worker.training.lora.inputs import read_lora_input
from worker.training.results import RESULT_FILE, TrainingResult, encode_result

#: An adapter's files.
NAMES = (f"{PEFT_DIR}/adapter_config.json", f"{PEFT_DIR}/adapter_model.safetensors")
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4.0, "target_modules": ["q_proj"], "bias": "none"}
#: Rows and columns of its two matrices.
SHAPES = {
    f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight": shape
    for side, shape in (("A", (2, 4)), ("B", (6, 2)))
}


def safetensors(shapes: Mapping[str, Sequence[int]], *, text: str = "") -> bytes:
    """A file of 32-bit zeros; the text is in its header, so that its bytes differ."""
    header: dict[str, object] = {"__metadata__": {"text": text}}
    end = 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + 4 * math.prod(shape)]}
        end += 4 * math.prod(shape)
    packed = json.dumps(header).encode()
    return len(packed).to_bytes(8, "little") + packed + bytes(end)


def make_adapter(output_dir: Path, *, scenario: str, data_sha256: str, text: str) -> bytes:
    """Leave an adapter below `output_dir`; its model.json."""
    files = []
    for name, content in zip(NAMES, (json.dumps(CONFIG).encode(), safetensors(SHAPES, text=text)), strict=True):
        path = output_dir / ADAPTER_DIR / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        files.append(AdapterFile(path=name, sha256=hashlib.sha256(content).hexdigest(), size=len(content)))
    document = AdapterModel(
        scenario=scenario, objective="sft", base=BaseModel(name="tiny", architecture="llama", sha256="0" * 64), rank=2,
        alpha=4.0, target_modules=["q_proj"], examples=3, data_sha256=data_sha256, files=files,
    )  # fmt: skip
    content = encode(document)
    (output_dir / "model.json").write_bytes(content)
    return content


def main() -> int:
    """Learn."""
    run_dir = Path(sys.argv[1])
    while (run_dir.parent / "wait").exists():
        time.sleep(0.01)
    if (run_dir.parent / "exit").exists():
        sys.stderr.write("no luck\n")
        return 7
    given, input_sha256 = read_lora_input(run_dir)
    output_dir = Path(given.surroundings.output_dir)
    die = run_dir.parent / "die"
    if die.exists() or (run_dir.parent / "die_always").exists():
        die.unlink(missing_ok=True)
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "checkpoint").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    step = {"step": 1, "steps": 2, "loss": 0.5, "seconds_left": 1.0}
    sys.stdout.write(json.dumps({"progress": 0.5, "text": "step 1 of 2", "step": step}) + "\n")
    sys.stdout.flush()
    if (run_dir.parent / "nothing").exists():
        result = TrainingResult(run_id=given.run_id, outcome="nothing", reason="3 examples, and 20 are needed")
    else:
        content = make_adapter(
            output_dir, scenario=given.scenario, data_sha256=given.manifest_sha256, text=given.train_sha256
        )
        if (run_dir.parent / "forget").exists():
            (output_dir / ADAPTER_DIR / NAMES[1]).unlink()
        result = TrainingResult(
            run_id=given.run_id,
            outcome="model",
            model_sha256=hashlib.sha256(content).hexdigest(),
            metrics={"loss": 0.5},
            gate=Verdict(verdict="blessed", reasons=["scripted"]),
            input_sha256=input_sha256,
        )
    (output_dir / RESULT_FILE).write_bytes(encode_result(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
