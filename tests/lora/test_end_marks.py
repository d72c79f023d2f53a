"""The mark that ends an answer in training is the one that the base's template puts behind it, whatever it says."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.lora.tiny import CHAT_TEMPLATE, END, PAD, TinyBase
from tests.lora.training_input import example
from worker.training.lora.tokens import Encoder

pytestmark = pytest.mark.lora

#: A base whose turns end by another mark than its texts, as those of many families do.
_TRIMMING = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
_THINKING = CHAT_TEMPLATE.replace("message['role'] + '\\n'", "message['role'] + '\\n<think></think>'")


@pytest.fixture(scope="module")
def tokenizer(base: TinyBase) -> PreTrainedTokenizerBase:
    """Of the tiny base, with an end of text of its own."""
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base.directory)
    found.eos_token = PAD
    return found


@pytest.mark.parametrize("answer", ["end", "im", "i", "|", ">", "restart", "assistant", "think", " restart\n"])
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, _TRIMMING, _THINKING], ids=["plain", "trimming", "thinking"])
def test_an_answer_is_taught_to_end_as_the_template_ends_it(
    tokenizer: PreTrainedTokenizerBase, template: str, answer: str
) -> None:
    tokenizer.chat_template = template
    found = Encoder(tokenizer, adds_bos=False).encode(replace(example("node-3"), chosen=answer, actions=[]))
    assert tokenizer.decode([found.chosen.ids[-1]]) == END
    assert tokenizer.decode(list(found.chosen.ids[-found.chosen.answer : -1])) == answer


def test_an_answer_ends_the_text_where_the_template_puts_no_mark(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + '\\n' }}{% endfor %}"
    found = Encoder(tokenizer, adds_bos=False).encode(replace(example("node-3"), chosen="end", actions=[]))
    assert tokenizer.decode([found.chosen.ids[-1]]) == PAD
