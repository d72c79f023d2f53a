"""A language model made on the spot: a tokenizer and a Llama of 0.15 million weights, as a directory and as GGUF.

It was taught (8 s, once) to answer the prompts of our learn models with the actions on offer in any order, so that an
adapter can teach it one order in seconds; an untrained base does not learn from an adapter (measured: the loss stays).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from gguf import GGUFWriter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.lora.cache import cache_directory
from worker.episodes.worker_decision_sequence import AVAILABLE_ACTIONS, SYSTEM_PROMPT
from worker.episodes.worker_task import ARROW

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
#: What it can be asked about.
TARGETS = tuple(f"{kind}-{number}" for kind in ("service", "node", "db") for number in range(1, 9))
_VOCABULARY = 512  # at most: the text may have no more to merge
_STEPS = 200
_SEED = 4


@dataclass(frozen=True, slots=True)
class TinyBase:
    """The model in both forms; they give the same answers."""

    directory: Path  # config.json, model.safetensors, tokenizer.json, ...
    gguf: Path  # float32


def tiny_base() -> TinyBase:
    """The model, out of the cache or made now: 10 s on one core. The same bytes for the same code and libraries."""
    libraries = " ".join(f"{name}-{version(name)}" for name in ("torch", "transformers", "tokenizers", "gguf"))
    mark = hashlib.sha256(Path(__file__).read_bytes() + libraries.encode()).hexdigest()[:16]
    place = cache_directory() / f"tiny-{mark}"
    with (cache_directory() / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes want it at once
        if not place.exists():
            unfinished = place.with_name(f".{place.name}.{uuid4().hex[:8]}")
            try:
                _make(unfinished)
                unfinished.rename(place)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return TinyBase(directory=place / "tiny", gguf=place / "tiny.gguf")


def question(target: str, *, actions: Sequence[str] = AVAILABLE_ACTIONS) -> list[dict[str, str]]:
    """The messages of `worker_decision_sequence` about `target`."""
    asked = f"Target: {target}\nAvailable actions: {', '.join(actions)}\nWhat is the best sequence of actions?"
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": asked}]


def rendered(messages: list[dict[str, str]]) -> str:
    """The prompt as the chat template writes it, open for the answer."""
    opened = "".join(f"{START}{message['role']}\n{message['content']}{END}\n" for message in messages)
    return f"{opened}{START}assistant\n"


def _make(directory: Path) -> None:
    tokenizer = _tokenizer()
    model = _pretrained(tokenizer)
    model.save_pretrained(directory / "tiny")
    tokenizer.save_pretrained(directory / "tiny")
    _write_gguf(directory / "tiny.gguf", model, tokenizer)


def _answers(chance: random.Random) -> Iterator[tuple[str, str]]:
    """Questions with legal answers: some of the actions on offer, in any order, and an end."""
    *steps, end = AVAILABLE_ACTIONS
    while True:
        offered = list(AVAILABLE_ACTIONS) if chance.random() < 0.7 else [*chance.sample(steps, len(steps)), end]
        chosen = [*chance.sample(steps, chance.randint(1, len(steps))), end]
        yield rendered(question(chance.choice(TARGETS), actions=offered)), ARROW.join(chosen)


def _tokenizer() -> PreTrainedTokenizerFast:
    """BPE over bytes as GPT-2 cuts them, which llama.cpp knows by the name `gpt-2`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    examples = _answers(random.Random(_SEED))
    tokenizer.train_from_iterator(("".join(next(examples)) for _ in range(2_000)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE, model_max_length=2_048
    )


def _pretrained(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(_SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,  # fewer than heads, so that a wrong permutation of k shows
        max_position_embeddings=2_048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.convert_tokens_to_ids(PAD),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=_STEPS)
    examples = _answers(random.Random(_SEED))
    for _ in range(_STEPS):
        texts = ["".join(next(examples)) + END for _ in range(16)]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval()


def _write_gguf(path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """As llama.cpp's converter does it: its names, and the rows of q and k in its order of the rotary halves."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(0)  # all float32
    _add_vocabulary(writer, tokenizer)
    for name, tensor in _tensors(model).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(document["model"]["vocab"], key=document["model"]["vocab"].__getitem__)
    control = {PAD, START, END}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in control else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in document["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.pad_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(value=False)
    writer.add_chat_template(CHAT_TEMPLATE)


_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray[Any, Any]]:
    config = model.config
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    tensors = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    for layer in range(config.num_hidden_layers):
        for ours, theirs in _NAMES.items():
            weight = weights[f"model.layers.{layer}.{ours}.weight"]
            if ours in heads:
                halves = weight.reshape(heads[ours], 2, -1, weight.shape[1])
                weight = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
            tensors[f"blk.{layer}.{theirs}.weight"] = weight
    return tensors


if __name__ == "__main__":
    sys.stdout.write(f"{tiny_base().directory}\n")
