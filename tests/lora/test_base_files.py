"""A base is all of its files: damaged ones are told of, changed ones make it another, and none runs code or asks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.lora.tiny import TinyBase
from worker.errors import ConfigurationError
from worker.training.lora.base import Base, load_base
from worker.training.lora.train import identity_of

pytestmark = pytest.mark.lora

CPU = torch.device("cpu")
CONFIG, TOKENIZER, TEMPLATE = "config.json", "tokenizer_config.json", "chat_template.jinja"


@pytest.fixture
def place(base: TinyBase, tmp_path: Path) -> Path:
    """A base of one's own."""
    return Path(shutil.copytree(base.directory, tmp_path / "base"))


def said(file: Path, **changed: Any) -> None:
    """Change what it says."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, text) for name in (CONFIG, TOKENIZER) for text in ("[]", "null", "[" * 100_000, "")]
    + [(TEMPLATE, "{% if"), (TEMPLATE, "{{ 1 / 0 }}")],
    ids=[f"{name} {what}" for name in (CONFIG, TOKENIZER) for what in ("list", "null", "deep", "empty")]
    + ["template torn", "template wrong"],
)
def test_a_damaged_file_names_the_setting(place: Path, name: str, text: str) -> None:
    (place / name).write_text(text)

    with pytest.raises(ConfigurationError, match=f"SWARM_LORA_BASE_MODEL: {place} cannot be loaded: "):
        load_base(str(place), CPU)


@pytest.mark.parametrize(
    "changed",
    [
        {"hidden_size": "64"},
        {"hidden_size": -1},
        {"hidden_size": 32},
        {"num_attention_heads": 0},
        {"num_attention_heads": 7},
        {"vocab_size": 2**62},
        {"model_type": []},
        {"dtype": "float99"},
        {"rope_parameters": {"rope_theta": "x"}},
    ],
    ids=str,
)
def test_a_configuration_with_a_bad_number_names_the_setting(place: Path, changed: dict[str, Any]) -> None:
    said(place / CONFIG, **changed)

    with pytest.raises(ConfigurationError, match=f"SWARM_LORA_BASE_MODEL: {place} cannot be loaded: "):
        load_base(str(place), CPU)


def test_a_base_with_code_of_its_own_is_refused_and_nobody_is_asked(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", asked.append)
    said(place / CONFIG, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (place / "own.py").write_text("raise SystemExit('it ran')")

    with pytest.raises(ConfigurationError, match=r"SWARM_LORA_BASE_MODEL: .* contains custom code"):
        load_base(str(place), CPU)
    assert asked == []


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] not enough memory: you tried")])
def test_a_machine_that_is_too_small_is_not_laid_on_the_base(
    place: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(**_: Any) -> None:
        raise error

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", full)
    with pytest.raises(type(error)) as caught:
        load_base(str(place), CPU)
    assert caught.value is error


def identity(base: Base) -> str:
    """What a checkpoint of it goes by."""
    return identity_of("input", base, CPU)


@pytest.mark.parametrize("name", [CONFIG, "generation_config.json", TOKENIZER, "tokenizer.json", TEMPLATE])
def test_a_base_with_another_tokenizer_configuration_or_template_is_another(
    base: TinyBase, place: Path, name: str
) -> None:
    before = load_base(str(base.directory), CPU)
    assert identity(load_base(str(place), CPU)) == identity(before)
    file = place / name
    file.write_text(file.read_text() + "\n")
    after = load_base(str(place), CPU)

    assert after.document.sha256 != before.document.sha256
    assert identity(after) != identity(before)


def test_what_only_people_read_does_not_make_it_another(base: TinyBase, place: Path) -> None:
    (place / "README.md").write_text("A model.")

    assert load_base(str(place), CPU).document.sha256 == load_base(str(base.directory), CPU).document.sha256
