"""Examples as tokens: the prompt by the base's chat template, and the answer up to the mark that ends it.

What is trained is what a server will see: the same template, the same tokens, the answer open after the prompt.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from worker.episodes.worker_task import ARROW
from worker.training.lora.inputs import LoraExample

#: Stands for an answer: no mark of any template has it in it.
_ANY_ANSWER = "0the-answer0"


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt with one answer."""

    ids: tuple[int, ...]
    answer: int  # how many of them are the answer's, with its end mark: the last ones
    #: For each token of the answer the decision that it is a part of, from 0: an action of a sequence, or all of it.
    decisions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as tokens; `rejected` for dpo only."""

    example: LoraExample
    chosen: Tokens
    rejected: Tokens | None = None

    @property
    def longest(self) -> int:
        """Tokens of its longer side."""
        return max(len(self.chosen.ids), 0 if self.rejected is None else len(self.rejected.ids))


class Encoder:
    """Turns examples into tokens for one base."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, adds_bos: bool) -> None:
        """The tokenizer has a chat template. `adds_bos`: servers put the mark of the beginning before any prompt.

        Templates write it too, and twice is one too many.
        """
        self._tokenizer = tokenizer
        self._adds_bos = adds_bos and tokenizer.bos_token is not None
        added = tokenizer.added_tokens_decoder.values()
        self._marks = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}

    def encode(self, example: LoraExample) -> Encoded:
        """One example."""
        rejected = None if example.rejected is None else self._tokens(example, example.rejected, ())
        return Encoded(example, self._tokens(example, example.chosen, example.actions), rejected)

    def within(self, examples: Sequence[LoraExample], limit: int) -> tuple[list[Encoded], dict[str, int]]:
        """Those that can be learnt from, of at most `limit` tokens, and how many cannot, by reason.

        A mark of the base in a record's text is no text, to no server either: whoever sends the record could end the
        question, and write the answer.
        """
        fitting: list[Encoded] = []
        unfit = Counter({"no_answer": 0, "special_token": 0, "too_long": 0})
        for example in examples:
            texts = [text for text in (example.system, example.prompt, example.chosen, example.rejected) if text]
            if not example.chosen.strip() or (example.rejected is not None and not example.rejected.strip()):
                unfit["no_answer"] += 1
            elif any(mark in text for mark in self._marks for text in texts):
                unfit["special_token"] += 1
            elif (encoded := self.encode(example)).longest > limit:
                unfit["too_long"] += 1
            else:
                fitting.append(encoded)
        return fitting, dict(unfit)

    def prompt_to_send(self, example: LoraExample) -> str:
        """The prompt as a server's completion takes it: without the opening mark that it adds by itself."""
        text = self._prompt(example)
        return text.removeprefix(str(self._tokenizer.bos_token)) if self._adds_bos else text

    @property
    def pad(self) -> int:
        """What fills a batch; never looked at."""
        pad = self._tokenizer.pad_token_id
        return int(pad if pad is not None else self._tokenizer.eos_token_id or 0)

    def ends(self, tokens: Tokens) -> set[int]:
        """The marks at which a server stops: that of the answer, and the end of text."""
        return {tokens.ids[-1], self._tokenizer.eos_token_id}

    def text(self, ids: Sequence[int]) -> str:
        """An answer without its marks; a character that is cut in the middle is left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).rstrip("\ufffd")

    def _messages(self, example: LoraExample, *, fold: bool) -> list[dict[str, str]]:
        if example.system and fold:
            return [{"role": "user", "content": f"{example.system}\n\n{example.prompt}"}]
        system = [{"role": "system", "content": example.system}] if example.system else []
        return [*system, {"role": "user", "content": example.prompt}]

    def _prompt(self, example: LoraExample) -> str:
        return self._rendered(example, None)

    def _rendered(self, example: LoraExample, answer: str | None) -> str:
        """The conversation as text, open for the answer or with it."""
        try:
            return self._apply(self._messages(example, fold=False), answer)
        except TemplateError:  # some templates, such as Gemma's, know no system prompt
            return self._apply(self._messages(example, fold=True), answer)

    def _apply(self, messages: list[dict[str, str]], answer: str | None) -> str:
        if answer is not None:
            messages = [*messages, {"role": "assistant", "content": answer}]
        return str(self._tokenizer.apply_chat_template(messages, add_generation_prompt=answer is None, tokenize=False))

    def _tokens(self, example: LoraExample, answer: str, actions: Sequence[str]) -> Tokens:
        prompt = self._prompt(example)
        text = prompt + answer
        bos = self._tokenizer.bos_token
        missing = self._adds_bos and not text.startswith(str(bos))
        opening = [self._tokenizer.bos_token_id] if missing else []
        whole = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # A server tokenizes the prompt alone; what a token joins across the seam, it would never see.
        alone = self._tokenizer(prompt, add_special_tokens=False).input_ids
        ids, starts = (
            whole.input_ids[len(alone) :],
            [start - len(prompt) for start, _ in whole.offset_mapping][len(alone) :],
        )
        if whole.input_ids[: len(alone)] != alone:
            apart = self._tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
            ids, starts = apart.input_ids, [start for start, _ in apart.offset_mapping]
        decisions = _decisions(starts, answer, actions)
        return Tokens(
            ids=(*opening, *alone, *ids, self._end(example)),
            answer=len(ids) + 1,
            decisions=(*decisions, decisions[-1] if decisions else 0),
        )

    def _end(self, example: LoraExample) -> int:
        """The mark that the template puts behind an answer; the end of text where it puts none."""
        # Not behind the answer itself: `end` is a part of <|im_end|> too, and templates trim what they are given.
        _, found, behind = self._rendered(example, _ANY_ANSWER).rpartition(_ANY_ANSWER)
        special = set(self._tokenizer.all_special_ids) | set(self._tokenizer.get_added_vocab().values())
        if found:
            for token in self._tokenizer(behind, add_special_tokens=False).input_ids:
                if token in special:
                    return int(token)
        return int(self._tokenizer.eos_token_id)


def _decisions(starts: Sequence[int], answer: str, actions: Sequence[str]) -> list[int]:
    """For each token, by where it starts, the action that it decides; an arrow belongs to the action behind it."""
    if not actions or ARROW.join(actions) != answer:
        return [0] * len(starts)
    ends = list(accumulate(len(action) + (len(ARROW) if n else 0) for n, action in enumerate(actions)))
    return [min(bisect_right(ends, start), len(actions) - 1) for start in starts]
