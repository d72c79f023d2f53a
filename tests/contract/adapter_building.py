"""Registered adapters for tests: real documents and directories, whose files only say how a server answers with them.

Servers that are played by tests read `ANSWER` of the file that they were told to load, and answer prompts with it, so
what they serve is seen by behaviour alone, as with a real one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from worker.models.adapter import (
    ADAPTER_DIR,
    GGUF_FILE,
    PEFT_DIR,
    AdapterFile,
    AdapterModel,
    BaseModel,
    Probe,
    encode,
)
from worker.models.before import BEFORE_FILE, Before, encode_before
from worker.store.port import Model

#: What a server says without an adapter.
BASE_ANSWER = "look around"
PROMPT = "<|im_start|>user\nwhat next?<|im_end|>\n<|im_start|>assistant\n"
_WEIGHTS = "adapter_model.safetensors"


class Registered:
    """An adapter as the registry holds it: the row, its model.json, and what a server answers with it."""

    def __init__(self, model: Model, content: bytes, answer: str) -> None:
        self.model = model
        self.content = content
        self.answer = answer


def register(
    data_dir: Path,
    version: int,
    *,
    scenario: str = "S",
    answer: str | None = None,
    expected: str | None = None,
    probes: bool = True,
    before: Registered | None = None,
) -> Registered:
    """Put version `version` into `<data_dir>/models`; `expected` is what its probe wants, where its files lie.

    `before` was live when it was trained.
    """
    answer = answer or f"go {version}"
    directory = data_dir / "models" / scenario / str(version)
    weights = json.dumps({"answer": answer, "version": version}).encode()
    paths = [GGUF_FILE, f"{PEFT_DIR}/adapter_config.json", f"{PEFT_DIR}/{_WEIGHTS}"]
    for path in paths:
        file = directory / ADAPTER_DIR / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(weights)
    sha256 = hashlib.sha256(weights).hexdigest()
    document = AdapterModel(
        scenario=scenario,
        objective="sft",
        base=BaseModel(name="tiny", architecture="llama", sha256="0" * 64),
        rank=8,
        alpha=16,
        target_modules=["q_proj", "v_proj"],
        examples=40,
        data_sha256="1" * 64,
        files=[AdapterFile(path=path, sha256=sha256, size=len(weights)) for path in paths],
        probes=[
            Probe(
                prompt=PROMPT,
                expected=expected or answer,
                base=BASE_ANSWER,
                max_tokens=8,
            )
        ]
        if probes
        else [],
    )
    content = encode(document)
    (directory / "model.json").write_bytes(content)
    if before is not None:
        telling = Probe(prompt=PROMPT, expected=answer, base=before.answer, max_tokens=8)
        (directory / BEFORE_FILE).write_bytes(encode_before(Before(sha256=before.model.sha256, probes=[telling])))
    model = Model(
        model_id=f"{version:032x}", scenario=scenario, version=version, kind="lora", run_id=f"r{version}",
        created_at_ms=version, uri=directory.as_uri(), sha256=hashlib.sha256(content).hexdigest(), lineage={},
        metrics={}, gate_verdict="blessed", gate_reasons=[],
    )  # fmt: skip
    return Registered(model, content, answer)


def answer_of(path: Path) -> str:
    """What a server that loaded this file, or this PEFT directory, answers."""
    file = path / _WEIGHTS if path.is_dir() else path
    return str(json.loads(file.read_bytes())["answer"])
