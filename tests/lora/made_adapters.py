"""Adapters for tests of serving, made in milliseconds instead of trained: random, and strong enough to be seen.

What each answers is computed with transformers, so a server that answers alike has it in force, and no other.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, GGUFWriter
from msgspec.structs import replace
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.lora.tiny import TARGETS, TinyBase, question, rendered
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
from worker.training.lora.base_identity import sha256_of_base

_RANK, _ALPHA = 4, 8.0
_STRENGTH = 0.2  # of the random weights: the answers are other words, not noise alone
_TOKENS = 16


class AdapterMaker:
    """Makes adapters on one base; a seed gives the same adapter each time."""

    def __init__(self, base: TinyBase) -> None:
        self._sha256 = sha256_of_base(base.directory)
        self._base = AutoModelForCausalLM.from_pretrained(base.directory, dtype=torch.float32)
        self._tokenizer = AutoTokenizer.from_pretrained(base.directory)
        self._prompts = [rendered(question(target)) for target in TARGETS[:2]]
        self._plain = [self._answer(prompt) for prompt in self._prompts]

    def registered(
        self, data_dir: Path, version: int, *, scenario: str = "S", seed: int | None = None, before: Made | None = None
    ) -> Made:
        """Put an adapter into `<data_dir>/models`, as the registry holds it; `before` was live then."""
        directory = data_dir / "models" / scenario / str(version)
        (directory / ADAPTER_DIR).mkdir(parents=True)
        file = directory / ADAPTER_DIR / GGUF_FILE
        answers = self._write(file, seed or version)
        document = AdapterModel(
            scenario=scenario,
            objective="sft",
            base=BaseModel(name="tiny", architecture="llama", sha256=self._sha256),
            rank=_RANK,
            alpha=_ALPHA,
            target_modules=["down_proj"],
            examples=20,
            data_sha256="1" * 64,
            files=[
                AdapterFile(
                    path=GGUF_FILE, sha256=hashlib.sha256(file.read_bytes()).hexdigest(), size=file.stat().st_size
                )
            ],
            probes=[
                Probe(prompt=prompt, expected=answer, base=plain, max_tokens=_TOKENS)
                for prompt, answer, plain in zip(self._prompts, answers, self._plain, strict=True)
                if answer != plain
            ],
        )
        content = encode(document)
        if before is not None:
            (directory / BEFORE_FILE).write_bytes(encode_before(_before(before, document.probes)))
        model = Model(
            model_id=f"{version:032x}", scenario=scenario, version=version, kind="lora", run_id=f"r{version}",
            created_at_ms=version, uri=directory.as_uri(), sha256=hashlib.sha256(content).hexdigest(), lineage={},
            metrics={}, gate_verdict="blessed", gate_reasons=[],
        )  # fmt: skip
        assert document.probes, f"an adapter of seed {seed or version} changes no answer: take another"
        return Made(model, content, document.probes)

    def _write(self, path: Path, seed: int) -> list[str]:
        """The GGUF adapter, and what the base answers with it."""
        chance = np.random.default_rng(seed)
        layers = self._base.model.layers
        before = [layer.mlp.down_proj.weight.detach().clone() for layer in layers]
        writer = GGUFWriter(path, "llama")
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", _ALPHA)
        try:
            with torch.no_grad():
                for number, layer in enumerate(layers):
                    weight = layer.mlp.down_proj.weight
                    a = (chance.normal(size=(_RANK, weight.shape[1])) * _STRENGTH).astype(np.float32)
                    b = (chance.normal(size=(weight.shape[0], _RANK)) * _STRENGTH).astype(np.float32)
                    writer.add_tensor(f"blk.{number}.ffn_down.weight.lora_a", a)
                    writer.add_tensor(f"blk.{number}.ffn_down.weight.lora_b", b)
                    weight += torch.from_numpy(b @ a) * (_ALPHA / _RANK)
            return [self._answer(prompt) for prompt in self._prompts]
        finally:
            with torch.no_grad():
                for layer, weight in zip(layers, before, strict=True):
                    layer.mlp.down_proj.weight.copy_(weight)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()

    def _answer(self, prompt: str) -> str:
        tokens = self._tokenizer(prompt, return_tensors="pt")
        said = self._base.generate(**tokens, max_new_tokens=_TOKENS, do_sample=False)[0][tokens["input_ids"].shape[1] :]
        return str(self._tokenizer.decode(said, skip_special_tokens=True))  # as the server does


def write_peft(gguf: Path, directory: Path) -> list[AdapterFile]:
    """The same adapter as PEFT has it, which no server of the tests reads."""
    directory.mkdir()
    sides = {"lora_a": "lora_A", "lora_b": "lora_B"}
    weights = {}
    for tensor in GGUFReader(gguf).tensors:
        _, layer, _, _, side = tensor.name.split(".")
        weights[f"base_model.model.model.layers.{layer}.mlp.down_proj.{sides[side]}.weight"] = tensor.data.copy()
    save_file(weights, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": _ALPHA, "target_modules": ["down_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return [
        AdapterFile(
            path=f"{PEFT_DIR}/{path.name}", sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            size=path.stat().st_size,
        )
        for path in sorted(directory.iterdir())
    ]  # fmt: skip


def _before(made: Made, probes: list[Probe]) -> Before:
    theirs = {one.prompt: one.expected for one in made.probes}
    telling = [replace(each, base=theirs[each.prompt]) for each in probes if each.prompt in theirs]
    return Before(sha256=made.model.sha256, probes=telling)


class Made:
    """A registered adapter and what shows that it is in force."""

    def __init__(self, model: Model, content: bytes, probes: list[Probe]) -> None:
        self.model = model
        self.content = content
        self.probes = probes
