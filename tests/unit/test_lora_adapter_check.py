"""What a training left is held against itself and against its base before it is registered, whoever trained it."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.adapter_building import (
    GGUF_FIELDS,
    GGUF_SHAPES,
    adapter_with,
    base_directory,
    gguf,
    with_gguf,
)
from tests.unit.scripted_adapter import SHAPES, safetensors
from tests.unit.test_lora_recipe import RUN, Champion, recipe_over
from tests.unit.told_building import project, task, tell
from tests.unit.training_world import opened, worker_over
from worker.errors import ConfigurationError
from worker.models.adapter import GGUF_FILE
from worker.models.gguf_header import architecture_of, read_gguf
from worker.models.safetensors_header import read_safetensors
from worker.training.lora.adapter_check import WEIGHTS_FILE, AdapterCheck, check_gguf
from worker.training.lora.base_shapes import base_on_this_machine

_A, _B = SHAPES
_LLAMA = {
    "model_type": "llama", "hidden_size": 4, "intermediate_size": 8, "num_attention_heads": 3, "head_dim": 2,
    "num_hidden_layers": 1,
}  # fmt: skip
_BASE = {"model.layers.0.self_attn.q_proj.weight": (6, 4), "model.embed_tokens.weight": (9, 4)}
_BASE_GGUF = {"blk.0.attn_q.weight": (4, 6), "token_embd.weight": (4, 9)}
_BASE_FIELDS: dict[str, str | float | int] = {
    "general.architecture": "llama", "llama.block_count": 1, "llama.attention.head_count": 3,
}  # fmt: skip
NOWHERE = AdapterCheck(base=None, serving=None)


@pytest.fixture(params=["directory", "gguf", "both", "nowhere"])
def against(request: pytest.FixtureRequest, tmp_path: Path) -> AdapterCheck:
    """The base in each form, or on another machine."""
    directory = base_directory(tmp_path / "base", _BASE, config=_LLAMA)
    file = tmp_path / "base.gguf"
    file.write_bytes(gguf(_BASE_GGUF, _BASE_FIELDS, tokens=["a", "b"]))
    return {
        "directory": AdapterCheck(base=directory, serving=None), "gguf": AdapterCheck(base=file, serving=None),
        "both": AdapterCheck(base=directory, serving=file), "nowhere": NOWHERE,
    }[request.param]  # fmt: skip


def test_an_adapter_that_fits_is_taken(tmp_path: Path, against: AdapterCheck) -> None:
    against(*adapter_with(tmp_path / "one"))
    against(*with_gguf(tmp_path / "two"))


_OTHER = {_A: (2, 5), _B: (6, 2)}


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, against: AdapterCheck) -> None:
    """Where the base is here; else its form alone can be looked at."""
    made = adapter_with(tmp_path / "one", shapes=_OTHER)
    if against is NOWHERE:
        against(*made)
        return
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj of 6 x 5, base\S* has 6 x 4; was it trained"):
        against(*made)
    deeper = {name.replace("layers.0", "layers.1"): shape for name, shape in SHAPES.items()}
    with pytest.raises(ValueError, match=r"changes layers\.1\.self_attn\.q_proj, and base\S* has none"):
        against(*adapter_with(tmp_path / "two", shapes=deeper))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (gguf({"blk.0.attn_q.weight.lora_a": (5, 2), "blk.0.attn_q.weight.lora_b": (2, 6)}), "6 x 5, base.* has 6 x 4"),
        (gguf({name.replace("blk.0", "blk.1"): shape for name, shape in GGUF_SHAPES.items()}), "has none"),
        (gguf(fields={**GGUF_FIELDS, "general.architecture": "qwen2"}), "general.architecture = qwen2, base.* needs"),
    ],
    ids=["columns", "layer", "architecture"],
)
def test_a_gguf_adapter_of_another_base_is_refused(
    tmp_path: Path, against: AdapterCheck, content: bytes, why: str
) -> None:
    made = with_gguf(tmp_path / "one", content)
    if against is NOWHERE:  # what was trained is known there, what it is for is not
        with contextlib.nullcontext() if "architecture" in why else pytest.raises(ValueError, match="_CONVERTER"):
            against(*made)
        return
    with pytest.raises(ValueError, match=f"{why}.*SWARM_LORA_BASE_MODEL and SWARM_LORA_SERVING_BASE must be one"):
        against(*made)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"shapes": {_A: (2, 4)}}, "has one of its two matrices only"),
        ({"shapes": {_A: (3, 4), _B: (6, 3)}}, "has rank 3 and 3, not 2"),
        ({"shapes": {_A: (2, 4), _B: (6, 3)}}, "has rank 2 and 3, not 2"),
        ({"shapes": {_A: (2, 4, 1), _B: (6, 2)}}, "no two matrices of two dimensions"),
        ({"shapes": {}}, "changes nothing; model.json says q_proj"),
        ({"shapes": {name.replace("q_proj", "k_proj"): shape for name, shape in SHAPES.items()}}, "changes k_proj"),
        ({"shapes": {**SHAPES, "base_model.model.lm_head.weight": (4, 4)}}, "lm_head.weight: that is no linear layer"),
        ({"shapes": {"base_model.model.lm_head.lora_A.weight": (2, 4)}}, "no linear layer"),
        ({"shapes": {"base_model.model.model.layers.0.input_layernorm.lora_A.weight": (2, 4)}}, "no linear layer"),
        ({"shapes": {"base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight": (2, 4)}}, "no linear"),
        ({"config": {"r": 3}}, "says r = 3, model.json 2"),
        ({"config": {"lora_alpha": 5}}, "says lora_alpha = 5, model.json 4"),
        ({"config": {"use_rslora": True}}, "SWARM_LORA_TRAIN_SCRIPT: the adapter uses use_rslora"),
        ({"config": {"use_dora": True, "rank_pattern": {"q_proj": 4}}}, "uses use_dora, rank_pattern, which"),
        (
            {"config": {"alpha_pattern": {"q_proj": 4}, "modules_to_save": ["lm_head"]}},
            "alpha_pattern, modules_to_save",
        ),
        ({"config": {"lora_bias": True, "bias": "all"}}, "uses lora_bias, bias, which"),
        ({"config": {"init_lora_weights": "pissa_niter_4"}}, "uses pissa_niter_4, which"),
        ({"config": {"peft_type": "IA3"}}, "uses peft_type IA3"),
        ({"files": {"peft/new_embeddings.safetensors": b""}}, "new_embeddings.safetensors is no file of an adapter"),
        ({"files": {"peft/adapter_config.json": b"[" * 100_000}}, "is not what PEFT writes"),
        ({"rank": 0}, "says r = 2, model.json 0"),
    ],
)
def test_what_no_server_takes_or_contradicts_itself_is_refused(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    """Whatever the base."""
    made = adapter_with(tmp_path, **changes)
    with pytest.raises(ValueError, match=why):
        NOWHERE(*made)


def test_an_adapter_without_its_configuration_is_refused(tmp_path: Path) -> None:
    content, place = adapter_with(tmp_path)
    with pytest.raises(ValueError, match=r"has no peft/adapter_config\.json"):
        NOWHERE(content.replace(b"peft/adapter_config.json", b"peft/README.md"), place)


@pytest.mark.parametrize(
    ("type_name", "packed", "taken"),
    [
        ("F32", "<f", 1.0), ("F32", "<f", float("nan")), ("F32", "<f", float("-inf")), ("F64", "<d", float("inf")),
        ("F16", "<e", -65504.0), ("F16", "<e", float("nan")), ("F16", "<e", float("-inf")),
    ],
)  # fmt: skip
def test_a_number_that_is_none_is_found_wherever_it_stands(
    tmp_path: Path, type_name: str, packed: str, taken: float
) -> None:
    """No server says so: it answers with noise."""
    size = struct.calcsize(packed)
    numbers = bytearray(size * 40_000)
    numbers[-2 * size : -size] = struct.pack(packed, taken)
    header = {
        _A: {"dtype": type_name, "shape": [2, 10_000], "data_offsets": [0, size * 20_000]},
        _B: {"dtype": type_name, "shape": [10_000, 2], "data_offsets": [size * 20_000, size * 40_000]},
    }
    text = json.dumps(header).encode()
    made = adapter_with(tmp_path, files={WEIGHTS_FILE: len(text).to_bytes(8, "little") + text + numbers})
    if abs(taken) < 1e5:
        NOWHERE(*made)
        return
    with pytest.raises(ValueError, match=r"is not finite.*SWARM_LORA_LEARNING_RATE"):
        NOWHERE(*made)


def test_a_quantised_base_hides_its_shapes_and_takes_any(tmp_path: Path) -> None:
    """Packed four bits have other shapes, or other names; what it has none of is refused all the same."""
    packed = {"model.layers.0.self_attn.q_proj.qweight": (1, 6), "model.layers.0.mlp.up_proj.qweight": (1, 6)}
    check = AdapterCheck(base=base_directory(tmp_path / "base", packed, config={"model_type": "x"}), serving=None)
    check(*adapter_with(tmp_path / "one"))
    shapes = {name.replace("self_attn", "attention"): shape for name, shape in SHAPES.items()}
    with pytest.raises(ValueError, match="has none"):
        check(*adapter_with(tmp_path / "two", shapes=shapes))


def test_a_base_that_cannot_be_read_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "base.gguf").write_bytes(gguf(_BASE_GGUF, _BASE_FIELDS)[:90])
    made = with_gguf(tmp_path / "one")
    with pytest.raises(ConfigurationError, match=r"SWARM_LORA_BASE_MODEL: .*base\.gguf cannot be read"):
        AdapterCheck(base=tmp_path / "base.gguf", serving=None)(*made)
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigurationError, match=r"config\.json is not what transformers writes"):
        AdapterCheck(base=tmp_path / "directory", serving=None)(*made)


def test_a_base_of_the_hub_is_looked_for_where_its_download_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert base_on_this_machine("some/base") is None
    model = tmp_path / "hub/models--some--base"
    (model / "snapshots/abc").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs/main").write_text("abc")
    assert base_on_this_machine("some/base") == model / "snapshots/abc"
    assert base_on_this_machine(str(tmp_path)) == tmp_path


async def test_a_base_of_the_hub_is_looked_for_once_its_training_has_fetched_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first one there is none to hold an adapter against."""
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    async with opened(tmp_path) as store:
        await tell(store, task("t"))
        await project(store)
        recipe = recipe_over(store, tmp_path, Champion())
        frozen = await recipe.freeze(RUN, recipe.input_of(RUN.run_id))
    model = tmp_path / "hub/models--base"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("abc")
    (model / "snapshots").mkdir()
    base_directory(model / "snapshots/abc", {"model.layers.0.self_attn.q_proj.weight": (6, 5)}, config={})
    assert frozen.check is not None
    with pytest.raises(ValueError, match="of 6 x 4, abc has 6 x 5"):
        frozen.check(*adapter_with(tmp_path / "out"))


def test_a_gguf_adapter_that_is_junk_is_named_with_the_setting_of_its_maker(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^adapter\.gguf: the file ends within its header; .*SWARM_LORA_CONVERTER"):
        NOWHERE(*with_gguf(tmp_path / "one", b"GGUF"))


async def test_an_adapter_that_does_not_fit_is_a_failed_run_and_no_model(tmp_path: Path) -> None:
    """A script of the operator's had its word taken for it."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=("lora",))
        (tmp_path / "base.gguf").write_bytes(gguf({"blk.0.attn_q.weight": (5, 6)}, _BASE_FIELDS))
        await world.feed(30)
        async with world.running():
            run = await world.runs.wait(await world.command("c1", kind="lora"))
        assert run is not None
        assert run.state == "failed"
        assert (run.reason or "").startswith("bad_output: the adapter changes a layers.0.self_attn.q_proj of 6 x 4")
        assert await store.models("S") == []


# -- broken files


def _weights(data: bytes, place: Path) -> None:
    place.write_bytes(data)
    read_safetensors(place)


def _gguf(data: bytes, place: Path) -> None:
    place.write_bytes(data)
    architecture = architecture_of(place)
    assert isinstance(architecture, str)
    read_gguf(place, whole=False)
    check_gguf(place, None, alpha=4.0, rank=2)


_FORMS: dict[str, tuple[bytes, Callable[[bytes, Path], None]]] = {
    "safetensors": (safetensors(SHAPES), _weights),
    "gguf": (gguf(tokens=["one", "two"]), _gguf),
}


@pytest.mark.parametrize("form", _FORMS)
def test_a_file_that_was_cut_off_anywhere_is_refused(tmp_path: Path, form: str) -> None:
    whole, read = _FORMS[form]
    read(whole, tmp_path / "file")
    for length in range(len(whole) - 16 * (form == "gguf")):  # the last tensor's padding is no part of it
        with pytest.raises(ValueError, match=r"\w"):
            read(whole[:length], tmp_path / "file")


@pytest.mark.parametrize("form", _FORMS)
@given(data=st.data())
def test_a_file_with_damaged_bits_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    """With words for a person, never another error: an IndexError or a UnicodeDecodeError came out of the library."""
    whole, read = _FORMS[form]
    damaged = bytearray(whole)
    for bit in data.draw(st.lists(st.integers(0, 8 * len(whole) - 1), min_size=1, max_size=4)):
        damaged[bit // 8] ^= 1 << bit % 8
    place = tmp_path_factory.getbasetemp() / f"{form}-{os.getpid()}"
    with contextlib.suppress(ValueError):
        read(bytes(damaged), place)


@pytest.mark.parametrize("form", _FORMS)
def test_every_bit_of_a_header_may_be_damaged(tmp_path: Path, form: str) -> None:
    whole, read = _FORMS[form]
    header = len(whole) - (80 if form == "safetensors" else 96)
    refused = 0
    for bit in range(8 * header):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            read(bytes(damaged), tmp_path / "file")
        except ValueError:
            refused += 1
    assert refused > 4 * header  # most of them change what it says


def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    content, place = with_gguf(tmp_path)
    (place / GGUF_FILE).unlink()
    os.mkfifo(place / GGUF_FILE)
    with pytest.raises(ValueError, match="is no regular file"):
        NOWHERE(content, place)
