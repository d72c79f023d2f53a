"""What an adapter's training is made of: tokens, passes, losses, the base and what it refuses."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import nn

from tests.lora.tiny import END, TARGETS, TinyBase, question, rendered
from tests.lora.training_input import WANTED, config, example, examples, write_run
from worker.episodes.worker_task import ARROW
from worker.errors import ConfigurationError
from worker.training.lora.base import Base, device_of, load_base, require_servable
from worker.training.lora.dpo import dpo_loss, preference_loss
from worker.training.lora.evaluate import evaluate
from worker.training.lora.forward import answers
from worker.training.lora.probes import probes_of
from worker.training.lora.sft import sft_loss
from worker.training.lora.tokens import Encoder
from worker.training.lora.train import identity_of, train_adapter

pytestmark = [
    pytest.mark.lora,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded(base: TinyBase) -> Base:
    """The tiny base in memory; tests leave it as it is."""
    return load_base(str(base.directory), CPU)


@pytest.fixture(scope="module")
def encoder(loaded: Base) -> Encoder:
    """Its tokens."""
    return Encoder(loaded.tokenizer, adds_bos=loaded.adds_bos)


def adapted(base: TinyBase) -> PeftModel:
    """A base of its own with an adapter that does something."""
    torch.manual_seed(1)
    model = load_base(str(base.directory), CPU).model
    wrapped = get_peft_model(model, PeftLoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return wrapped.eval()


def test_an_example_is_the_template_the_answer_and_its_end(loaded: Base, encoder: Encoder) -> None:
    found = encoder.encode(example("node-3")).chosen

    text = loaded.tokenizer.decode(list(found.ids))
    assert text == rendered(question("node-3")) + ARROW.join(WANTED) + END
    assert loaded.tokenizer.decode(list(found.ids[-found.answer :])) == ARROW.join(WANTED) + END
    assert encoder.prompt_to_send(example("node-3")) == rendered(question("node-3"))


def test_each_token_of_a_sequence_belongs_to_the_action_that_it_decides(loaded: Base, encoder: Encoder) -> None:
    """An arrow belongs to the action behind it: whoever says it goes on. The end mark belongs to the last one."""
    found = encoder.encode(example("node-3")).chosen
    parts = ["", "", ""]
    for token, decision in zip(found.ids[-found.answer :], found.decisions, strict=True):
        parts[decision] += loaded.tokenizer.decode([token])

    assert parts == [WANTED[0], ARROW + WANTED[1], ARROW + WANTED[2] + END]
    whole = encoder.encode(replace(example("node-3"), actions=[])).chosen
    assert set(whole.decisions) == {0}


def test_a_template_without_system_prompts_gets_it_in_the_question(base: TinyBase) -> None:
    """As Gemma's: it raises."""
    tokenizer = load_base(str(base.directory), CPU).tokenizer
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + tokenizer.chat_template
    )
    row = example("node-3")
    text = Encoder(tokenizer, adds_bos=False).prompt_to_send(row)

    assert text == f"<|im_start|>user\n{row.system}\n\n{row.prompt}{END}\n<|im_start|>assistant\n"


def test_the_opening_mark_stands_once_where_the_server_adds_it_too(base: TinyBase) -> None:
    """Templates of Llama 2 and 3 write it, and their tokenizers add it."""
    tokenizer = load_base(str(base.directory), CPU).tokenizer
    tokenizer.bos_token = "<|im_start|>"
    plain, adding = Encoder(tokenizer, adds_bos=False), Encoder(tokenizer, adds_bos=True)

    assert plain.prompt_to_send(example("node-3")).startswith("<|im_start|>system")
    assert adding.prompt_to_send(example("node-3")).startswith("system")
    assert adding.encode(example("node-3")).chosen == plain.encode(example("node-3")).chosen


def test_the_opening_mark_is_learnt_where_only_the_server_writes_it(base: TinyBase) -> None:
    tokenizer = load_base(str(base.directory), CPU).tokenizer
    tokenizer.bos_token = END
    found = Encoder(tokenizer, adds_bos=True).encode(example("node-3")).chosen

    assert found.ids[:1] == (tokenizer.bos_token_id,)
    assert found.ids[1:] == Encoder(tokenizer, adds_bos=False).encode(example("node-3")).chosen.ids


@pytest.mark.parametrize("said", [True, False, None])
def test_a_gguf_file_says_whether_its_server_adds_the_opening_mark(
    base: TinyBase, monkeypatch: pytest.MonkeyPatch, said: bool | None
) -> None:
    field = None if said is None else SimpleNamespace(contents=lambda: said)
    reader = SimpleNamespace(get_field={"tokenizer.ggml.add_bos_token": field}.get)
    monkeypatch.setattr("worker.training.lora.base.GGUFReader", lambda _: reader)

    assert load_base(str(base.gguf), CPU).adds_bos is bool(said)


def test_padding_changes_nothing(loaded: Base, encoder: Encoder) -> None:
    """Answers of a batch of uneven lengths are as likely as alone."""
    rows = [example("db-1"), replace(example("service-1", actions=WANTED[1:]), prompt="Target: " + "service-1 " * 9)]
    tokens = [encoder.encode(row).chosen for row in rows]
    with torch.no_grad():
        together = answers(loaded.model, tokens, pad=encoder.pad).total()
        alone = torch.cat([answers(loaded.model, [each], pad=encoder.pad).total() for each in tokens])

    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_likelihood_is_that_of_transformers(loaded: Base, encoder: Encoder) -> None:
    each = encoder.encode(example("db-1"))
    ids = torch.tensor([each.chosen.ids])
    labels = ids.clone()
    labels[:, : -each.chosen.answer] = -100
    with torch.no_grad():
        expected = loaded.model(input_ids=ids, labels=labels).loss
        found = sft_loss(loaded.model, [each], pad=encoder.pad)[0]

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_counts_as_right_is_what_greedy_decoding_says(base: TinyBase, encoder: Encoder) -> None:
    """One pass over the true answer tells what generating it would."""
    model = adapted(base)
    for target in TARGETS[:6]:
        row = example(target)
        prompt = torch.tensor([encoder.encode(row).chosen.ids[: -encoder.encode(row).chosen.answer]])
        with torch.no_grad():
            generated = model.generate(input_ids=prompt, max_new_tokens=40, do_sample=False)[0, prompt.shape[1] :]
        said = encoder.text(generated.tolist())
        as_said = replace(row, chosen=said, actions=said.split(ARROW))
        found = evaluate(
            model, [encoder.encode(as_said), encoder.encode(row)], batch_size=2, pad=encoder.pad, on_batch=lambda: None
        )

        assert found[0].right == found[0].decisions == len(said.split(ARROW))
        assert (found[1].right == found[1].decisions) == (said == row.chosen)


def test_the_loss_of_preferences_is_the_papers(base: TinyBase, encoder: Encoder) -> None:
    policy, reference = torch.tensor([-1.0, -2.0, -3.0, -2.5]), torch.tensor([-1.5, -2.0, -2.0, -2.0])
    expected = [-math.log(1 / (1 + math.exp(-0.2 * margin))) for margin in (0.5 - -1.0, 0.0 - -0.5)]
    torch.testing.assert_close(preference_loss(policy, reference, beta=0.2), torch.tensor(expected))

    pairs = [encoder.encode(each) for each in examples(TARGETS[:2], dpo=True)]
    untouched = get_peft_model(load_base(str(base.directory), CPU).model, PeftLoraConfig(task_type="CAUSAL_LM"))
    fresh = dpo_loss(untouched, pairs, beta=0.1, pad=encoder.pad)
    torch.testing.assert_close(fresh, torch.full((2,), math.log(2)))  # an adapter that does nothing yet


def test_gradients_are_those_of_the_whole_step(loaded: Base, encoder: Encoder) -> None:
    """Four examples at once weigh as two and two."""
    rows = [encoder.encode(example(target, actions=WANTED[n % 2 :])) for n, target in enumerate(TARGETS[:4])]
    with torch.no_grad():
        whole = sft_loss(loaded.model, rows, pad=encoder.pad).sum()
        parts = sum(sft_loss(loaded.model, rows[at : at + 2], pad=encoder.pad).sum() for at in (0, 2))

    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)


def test_an_adapter_that_changes_no_answer_has_no_probe(base: TinyBase, encoder: Encoder) -> None:
    untouched = get_peft_model(load_base(str(base.directory), CPU).model, PeftLoraConfig(task_type="CAUSAL_LM")).eval()

    assert probes_of(untouched, [encoder.encode(example("db-1"))], encoder) == []


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens", "input_layernorm", "query", "self_attn.q_proj"])
def test_modules_that_no_server_takes_are_refused(loaded: Base, module: str) -> None:
    words = f"named {module}; choose from down_proj, gate_proj, k_proj"
    with pytest.raises(ConfigurationError, match=f"SWARM_LORA_TARGET_MODULES: .* {words}"):
        require_servable(loaded.model, ("q_proj", module))


def test_all_default_modules_can_be_served(loaded: Base) -> None:
    require_servable(loaded.model, config(Path("/nowhere")).target_modules)


def test_a_base_that_is_not_there_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"SWARM_LORA_BASE_MODEL: {tmp_path}/none is not there"):
        load_base(f"{tmp_path}/none", CPU)


def test_a_hub_id_without_a_network_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match="nobody/nothing is no directory and cannot be had from the hub"):
        load_base("nobody/nothing", CPU)


def test_a_base_of_the_hub_is_known_by_its_id(base: TinyBase, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(base.directory)

    monkeypatch.setattr("worker.training.lora.base.snapshot_download", download)
    found = load_base("somebody/tiny", CPU)

    assert asked == [("somebody/tiny", ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"])]  # no pickle
    assert found.document.name == "somebody/tiny"
    assert found.document.sha256 == load_base(str(base.directory), CPU).document.sha256


def test_pickled_weights_are_not_loaded(base: TinyBase, tmp_path: Path) -> None:
    shutil.copytree(base.directory, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match=r"pickled weights \(\*\.bin\) are not loaded"):
        load_base(str(tmp_path / "base"), CPU)


def test_a_base_without_a_chat_template_is_refused(base: TinyBase, tmp_path: Path) -> None:
    shutil.copytree(base.directory, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    with pytest.raises(ConfigurationError, match="has no chat template"):
        load_base(str(tmp_path / "base"), CPU)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base.gguf").write_bytes(b"GGUF, but not really")
    with pytest.raises(ConfigurationError, match=r"SWARM_LORA_BASE_MODEL: .*base\.gguf cannot be read.* again"):
        load_base(str(tmp_path / "base.gguf"), CPU)


def test_a_gpu_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == CPU
    with pytest.raises(ConfigurationError, match="SWARM_LORA_DEVICE: cuda, but torch finds no GPU"):
        device_of("cuda")


@pytest.mark.parametrize("library", ["torch", "transformers", "peft"])
def test_a_checkpoint_is_of_the_libraries_that_it_was_made_with(
    loaded: Base, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    before = identity_of("input", loaded, CPU)
    assert identity_of("input", loaded, CPU) == before
    monkeypatch.setattr(f"{library}.__version__", "99.0")
    assert identity_of("input", loaded, CPU) != before


def test_a_checkpoint_is_of_the_device_that_it_was_made_on(loaded: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the kind of GPU, not of its number: another one of a kind computes the same."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100" if device.index < 2 else "T4")
    names = [identity_of("input", loaded, device) for device in (CPU, *(torch.device("cuda", n) for n in range(3)))]
    assert names[1] == names[2]
    assert len(set(names)) == 3


def test_a_loss_that_is_no_number_names_the_learning_rate(base: TinyBase, tmp_path: Path, monkeypatch: Any) -> None:
    from worker.training.lora import loop  # noqa: PLC0415 - patched here alone

    monkeypatch.setattr(loop, "_step", lambda *_, **__: math.nan)
    write_run(tmp_path, config(base.directory), train=examples(), held_out=[])
    with pytest.raises(ConfigurationError, match=r"SWARM_LORA_LEARNING_RATE: 0\.005 is too high: .* at step 1"):
        train_adapter(tmp_path / "run", lambda *_, **__: None)
