"""The tiny base: the same model in both forms."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.lora.llama_server import RunningServer
from tests.lora.tiny import END, TARGETS, TinyBase, question, rendered

pytestmark = pytest.mark.lora


def test_the_server_answers_as_the_directory_does(base: TinyBase, base_server: RunningServer) -> None:
    model = AutoModelForCausalLM.from_pretrained(base.directory)
    tokenizer = AutoTokenizer.from_pretrained(base.directory)

    for target in (*TARGETS[:3], "elsewhere"):
        prompt = rendered(question(target))
        tokens = tokenizer(prompt, return_tensors="pt")
        said = model.generate(**tokens, max_new_tokens=48, do_sample=False)[0][tokens["input_ids"].shape[1] :]

        assert base_server.complete(prompt) == tokenizer.decode(said).removesuffix(END)


def test_the_gguf_file_is_the_same_model_to_transformers(base: TinyBase) -> None:
    of_directory = AutoModelForCausalLM.from_pretrained(base.directory)
    of_file = AutoModelForCausalLM.from_pretrained(base.gguf.parent, gguf_file=base.gguf.name, dtype=torch.float32)
    prompt = rendered(question("service-1"))
    tokens = AutoTokenizer.from_pretrained(base.gguf.parent, gguf_file=base.gguf.name)(prompt, return_tensors="pt")

    torch.testing.assert_close(of_file(**tokens).logits, of_directory(**tokens).logits)
    assert tokens["input_ids"].tolist() == [AutoTokenizer.from_pretrained(base.directory)(prompt)["input_ids"]]


def test_the_prompt_is_what_the_chat_template_makes(base: TinyBase, base_server: RunningServer) -> None:
    messages = question("service-1")
    tokenizer = AutoTokenizer.from_pretrained(base.directory)

    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == rendered(messages)
    answer = base_server.post("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 48})
    assert answer["choices"][0]["message"]["content"] == base_server.complete(rendered(messages))
