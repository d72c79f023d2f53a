"""An adapter as GGUF: a real llama-server answers with it as PEFT does, and it fits its base and no other."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.lora.llama_server import RunningServer, running_server
from tests.lora.tiny import TARGETS, TinyBase, question, rendered
from tests.lora.training_input import WANTED, config, examples, write_run
from worker.episodes.worker_task import ARROW
from worker.learning.offline_model import MODEL_FILE
from worker.models.adapter import ADAPTER_DIR, GGUF_FILE, PEFT_DIR, decode
from worker.training.lora.adapter_check import AdapterCheck, check_gguf
from worker.training.lora.gguf_adapter import write_gguf
from worker.training.lora.gguf_base import gguf_base
from worker.training.lora.train import train_adapter

pytestmark = pytest.mark.lora


def trained(base: Path, place: Path) -> Path:
    """What a training leaves: model.json and adapter/. 2 s."""
    rows = examples()
    write_run(place, config(base), train=rows[:18], held_out=rows[18:])
    train_adapter(place / "run", lambda *_: None)
    return place / "out"


@pytest.fixture(scope="session")
def run(base: TinyBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training on the directory of the base."""
    return trained(base.directory, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def gguf(run: Path) -> Path:
    """The file that is served."""
    return run / ADAPTER_DIR / GGUF_FILE


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """The adapter's PEFT files alone, to be changed and converted."""
    shutil.copytree(run / ADAPTER_DIR / PEFT_DIR, tmp_path / ADAPTER_DIR / PEFT_DIR)
    return tmp_path / ADAPTER_DIR


def test_the_server_answers_with_the_adapter_as_the_training_says_and_without_it_as_the_base(
    base: TinyBase, base_server: RunningServer, run: Path, gguf: Path, tmp_path: Path
) -> None:
    probes = decode((run / MODEL_FILE).read_bytes()).probes
    assert probes
    with running_server(["--model", str(base.gguf), "--lora", str(gguf)], directory=tmp_path) as server:
        for probe in probes:
            assert server.complete(probe.prompt, tokens=probe.max_tokens) == probe.expected == ARROW.join(WANTED)
            assert base_server.complete(probe.prompt, tokens=probe.max_tokens) == probe.base != probe.expected


def test_the_server_gives_each_token_the_chance_that_peft_gives_it(
    base: TinyBase, run: Path, gguf: Path, tmp_path: Path
) -> None:
    """Answers alone can be right with the rows of k in a wrong order (they were); chances are not."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base.directory)
    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base.directory), run / ADAPTER_DIR / PEFT_DIR
    )
    prompt = rendered(question(TARGETS[5]))[: -len("assistant\n")]  # a place where nothing is certain
    with torch.no_grad():
        logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    chances = torch.log_softmax(logits.double(), dim=-1)

    with running_server(["--model", str(base.gguf), "--lora", str(gguf)], directory=tmp_path) as server:
        body = {"prompt": prompt, "n_predict": 1, "n_probs": 20, "temperature": 0}
        told = server.post("/completion", body)["completion_probabilities"][0]["top_logprobs"]

    assert len(told) == 20
    for each in told:
        assert each["logprob"] == pytest.approx(float(chances[each["id"]]), abs=2e-3)


def test_a_training_on_the_gguf_file_gives_the_same_adapter(base: TinyBase, gguf: Path, tmp_path: Path) -> None:
    out = trained(base.gguf, tmp_path / "other")
    assert (out / ADAPTER_DIR / GGUF_FILE).read_bytes() == gguf.read_bytes()


@pytest.mark.parametrize("form", ["directory", "gguf"])
def test_the_shapes_are_known_from_either_form_of_the_base(form: str, base: TinyBase, gguf: Path, copied: Path) -> None:
    write_gguf(copied, base=getattr(base, form), serving=None, converter=None)
    assert (copied / GGUF_FILE).read_bytes() == gguf.read_bytes()


@pytest.mark.parametrize("form", ["directory", "gguf"])
def test_what_a_training_leaves_fits_its_base(form: str, base: TinyBase, run: Path) -> None:
    check = AdapterCheck(base=getattr(base, form), serving=base.gguf)
    check((run / MODEL_FILE).read_bytes(), run / ADAPTER_DIR)


def test_the_adapter_of_another_training_in_the_place_of_its_gguf_file_is_refused(
    base: TinyBase, run: Path, copied: Path
) -> None:
    """As a converter leaves it that hands back what it made before."""
    path = copied / PEFT_DIR / "adapter_model.safetensors"
    kept = path.read_bytes()
    save_file({name: -weight if "lora_B" in name else weight for name, weight in load_file(path).items()}, path)
    write_gguf(copied, base=base.directory, serving=None, converter=None)
    path.write_bytes(kept)

    with pytest.raises(ValueError, match=r"adapter\.gguf has another blk\.0\.\S+ than .*SWARM_LORA_CONVERTER"):
        AdapterCheck(base=base.directory, serving=base.gguf)((run / MODEL_FILE).read_bytes(), copied)


def test_what_a_training_leaves_fits_no_other_base(base: TinyBase, run: Path, tmp_path: Path) -> None:
    config = json.loads((base.directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 256}))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    model.save_pretrained(tmp_path)

    with pytest.raises(ValueError, match=r"mlp\.down_proj of 64 x 128, \S+ has 64 x 256; was it trained"):
        AdapterCheck(base=tmp_path, serving=None)((run / MODEL_FILE).read_bytes(), run / ADAPTER_DIR)


@pytest.mark.parametrize("cut", [100, 1_000, 10_000, -40])
def test_a_gguf_adapter_that_was_cut_off_is_refused(gguf: Path, tmp_path: Path, cut: int) -> None:
    (tmp_path / GGUF_FILE).write_bytes(gguf.read_bytes()[:cut])

    with pytest.raises(ValueError, match=r"cut off|ends within|damaged"):
        check_gguf(tmp_path / GGUF_FILE, None, alpha=16.0, rank=8)


def test_weights_of_half_the_width_are_converted_too(copied: Path, base: TinyBase) -> None:
    """A launcher of one's own may write bfloat16."""
    path = copied / PEFT_DIR / "adapter_model.safetensors"
    save_file({name: weight.bfloat16() for name, weight in load_file(path).items()}, path)

    write_gguf(copied, base=base.directory, serving=base.gguf, converter=None)


# -- other architectures


@pytest.fixture
def foreign_base(tmp_path: Path) -> Path:
    """A GGUF file of an architecture that we do not convert for."""
    path = tmp_path / "foreign.gguf"
    writer = GGUFWriter(path, "qwen2")
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((6, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_CONVERTER = """\
import json, sys
from pathlib import Path
import numpy as np
from gguf import GGUFWriter
base, adapter, output, rows = *map(Path, sys.argv[1:4]), int(sys.argv[4])
config = json.loads((adapter / "adapter_config.json").read_text())
assert base.is_file()
writer = GGUFWriter(output, "qwen2")
writer.add_type("adapter")
writer.add_string("adapter.type", "lora")
writer.add_float32("adapter.lora.alpha", config["lora_alpha"])
writer.add_tensor("blk.0.attn_q.weight.lora_a", np.ones((config["r"], 4), dtype=np.float16))
writer.add_tensor("blk.0.attn_q.weight.lora_b", np.ones((rows, config["r"]), dtype=np.float16))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


def converter(directory: Path, *, rows: int) -> str:
    program = directory / "convert it.py"
    program.write_text(_CONVERTER)
    return f"{sys.executable} '{program}' {{base}} {{adapter}} {{output}} {rows}"


def test_a_base_that_is_no_llama_has_no_gguf_adapter_without_a_converter(copied: Path, foreign_base: Path) -> None:
    write_gguf(copied, base=foreign_base, serving=None, converter=None)
    assert not (copied / GGUF_FILE).exists()


def test_a_base_that_is_no_llama_has_one_by_the_converter(copied: Path, foreign_base: Path) -> None:
    write_gguf(copied, base=foreign_base, serving=None, converter=converter(copied.parent, rows=6))
    assert [tensor.name for tensor in GGUFReader(copied / GGUF_FILE).tensors] == [
        "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b",
    ]  # fmt: skip


@pytest.mark.parametrize("rows", [5, 6])
def test_what_a_converter_made_is_held_against_the_base(copied: Path, foreign_base: Path, rows: int) -> None:
    """It writes half the width, as llama.cpp's does."""
    write_gguf(copied, base=foreign_base, serving=None, converter=converter(copied.parent, rows=rows))
    of = gguf_base(foreign_base, None)
    if rows == 6:
        check_gguf(copied / GGUF_FILE, of, alpha=16.0, rank=8)
        return
    with pytest.raises(ValueError, match=r"attn_q\.weight of 5 x 4, foreign\.gguf has 6 x 4"):
        check_gguf(copied / GGUF_FILE, of, alpha=16.0, rank=8)
