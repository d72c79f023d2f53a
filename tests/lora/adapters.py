"""Adapters of the tiny base, trained once and kept: each answers every question with one order of the actions."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.lora import tiny
from tests.lora.cache import cache_directory
from tests.lora.tiny import END, TARGETS, TinyBase, question, rendered
from worker.episodes.worker_task import ARROW
from worker.models.adapter import ADAPTER_DIR, GGUF_FILE, PEFT_DIR, AdapterFile, AdapterModel, BaseModel, Probe
from worker.training.lora import gguf_adapter, gguf_base
from worker.training.lora.gguf_adapter import write_gguf

#: What the two adapters of the fixtures answer.
FIRST = ("CheckStatus", "ReadLogs", "Restart", "done")
SECOND = ("AnalyzeMetrics", "Diagnose", "done")
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_RANK, _ALPHA, _STEPS = 8, 16, 40
_TOKENS = 48


@dataclass(frozen=True, slots=True)
class TinyAdapter:
    """A trained adapter's files, as a run leaves them and a registered version has them."""

    directory: Path  # has model.json and adapter/
    document: AdapterModel
    answer: str  # to every question

    @property
    def files(self) -> Path:
        """Of `adapter/`."""
        return self.directory / ADAPTER_DIR

    @property
    def gguf(self) -> Path:
        """What llama.cpp loads."""
        return self.files / GGUF_FILE

    @property
    def peft(self) -> Path:
        """What PEFT and vLLM load."""
        return self.files / PEFT_DIR


def tiny_adapter(base: TinyBase, order: Sequence[str], *, scenario: str = "checkout") -> TinyAdapter:
    """An adapter that answers `order`, out of the cache or trained now: 6 s on one core."""
    sources = [Path(__file__), Path(tiny.__file__), Path(gguf_adapter.__file__), Path(gguf_base.__file__)]
    mark = hashlib.sha256("".join([*order, scenario, version("torch"), version("peft")]).encode())
    for source in sources:
        mark.update(source.read_bytes())
    place = cache_directory() / f"adapter-{mark.hexdigest()[:16]}"
    with (cache_directory() / "adapters.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            unfinished = place.with_name(f".{place.name}.{uuid4().hex[:8]}")
            try:
                _make(unfinished, base, ARROW.join(order), scenario)
                unfinished.rename(place)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    document = msgspec.json.decode((place / "model.json").read_bytes(), type=AdapterModel)
    return TinyAdapter(directory=place, document=document, answer=ARROW.join(order))


def _make(directory: Path, base: TinyBase, answer: str, scenario: str) -> None:
    torch.manual_seed(1)
    tokenizer: Any = AutoTokenizer.from_pretrained(base.directory)
    of_base = AutoModelForCausalLM.from_pretrained(base.directory)
    without = [_said(of_base, tokenizer, target) for target in TARGETS[:3]]
    shape = LoraConfig(r=_RANK, lora_alpha=_ALPHA, target_modules=sorted(MODULES), task_type="CAUSAL_LM")
    model: Any = get_peft_model(of_base, shape)
    _train(model, tokenizer, answer)
    files = directory / ADAPTER_DIR
    model.save_pretrained(files / PEFT_DIR)
    (files / PEFT_DIR / "README.md").unlink()
    assert write_gguf(files, base=base.directory, serving=base.gguf, converter=None)
    probes = [
        Probe(
            prompt=rendered(question(target)), expected=_said(model, tokenizer, target), base=said, max_tokens=_TOKENS
        )
        for target, said in zip(TARGETS, without, strict=False)
    ]
    assert [probe.expected for probe in probes] == [answer] * 3
    assert answer not in without
    document = AdapterModel(
        scenario=scenario,
        objective="sft",
        base=BaseModel(name="tiny", architecture="llama", sha256=_sha256(base.directory / "model.safetensors")),
        rank=_RANK,
        alpha=_ALPHA,
        target_modules=sorted(MODULES),
        examples=len(TARGETS),
        data_sha256=hashlib.sha256(answer.encode()).hexdigest(),
        files=[
            AdapterFile(path=path.relative_to(files).as_posix(), sha256=_sha256(path), size=path.stat().st_size)
            for path in sorted(files.rglob("*"))
            if path.is_file()
        ],
        probes=probes,
    )
    (directory / "model.json").write_bytes(msgspec.json.encode(document, order="sorted"))


def _train(model: Any, tokenizer: Any, answer: str) -> None:
    prompts = [tokenizer(rendered(question(target)))["input_ids"] for target in TARGETS]
    wanted = tokenizer(answer + END)["input_ids"]
    longest = max(map(len, prompts)) + len(wanted)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([prompt + wanted + [pad] * (longest - len(prompt) - len(wanted)) for prompt in prompts])
    labels = torch.tensor(
        [[-100] * len(prompt) + wanted + [-100] * (longest - len(prompt) - len(wanted)) for prompt in prompts]
    )
    optimiser = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    model.train()
    for step in range(_STEPS):
        rows = slice(step % 3 * 8, step % 3 * 8 + 8)
        loss = model(input_ids=ids[rows], attention_mask=(ids[rows] != pad).long(), labels=labels[rows]).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    model.eval()


def _said(model: Any, tokenizer: Any, target: str) -> str:
    tokens = tokenizer(rendered(question(target)), return_tensors="pt")
    out = model.generate(**tokens, max_new_tokens=_TOKENS, do_sample=False)
    return str(tokenizer.decode(out[0][tokens["input_ids"].shape[1] :])).removesuffix(END)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
