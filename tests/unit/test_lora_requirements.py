"""What modes lora and full need is looked at before anything starts: each fault names its setting and the cure."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.scripted_adapter import safetensors
from worker.app import WorkerBuilder
from worker.errors import ConfigurationError
from worker.models.applicators.noop import NoopApplicator
from worker.settings import load_settings
from worker.training.lora import requirements


def gguf(path: Path, architecture: str = "llama") -> Path:
    """The beginning of a file as llama.cpp's writers make it, with a few values before the architecture."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    values = [
        text("general.type") + struct.pack("<I", 8) + text("model"),
        text("general.sizes") + struct.pack("<IIQ3I", 9, 4, 3, 1, 2, 3),
        text("general.version") + struct.pack("<IQ", 10, 7),
        text("general.architecture") + struct.pack("<I", 8) + text(architecture),
    ]
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, len(values)) + b"".join(values)
    path.write_bytes(header + bytes(-len(header) % 32))
    return path


def program(path: Path, text: str = "#!/bin/sh\nexit 0\n") -> Path:
    path.write_text(text)
    path.chmod(0o700)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory as transformers writes it, as far as a look at it goes."""
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    names = [f"self_attn.{one}_proj" for one in "qkvo"] + [f"mlp.{one}_proj" for one in ("gate", "up", "down")]
    weights = safetensors({f"model.layers.0.{name}.weight": (4, 4) for name in names})
    (directory / "model.safetensors").write_bytes(weights)
    return directory


@pytest.fixture
def flags(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings that nothing is wrong with, whether or not the extra is installed here."""
    monkeypatch.setattr(requirements, "PACKAGES", ("json",))
    return {
        "scenarios": "a",
        "processor_mode": "lora",
        "lora_base_model": str(base),
        "data_dir": tmp_path / "data",
        "store_url": "memory:",
    }


def refusal(flags: dict[str, Any], **more: Any) -> str:
    """Why a worker of these settings is not built."""
    with pytest.raises(ConfigurationError) as raised:
        WorkerBuilder(load_settings(**{**flags, **more})).build()
    assert raised.value.exit_code == 78
    return str(raised.value)


@pytest.mark.parametrize("mode", ["lora", "full", "lora_only", "both"])
def test_a_worker_is_built_where_everything_is_there(flags: dict[str, Any], mode: str) -> None:
    WorkerBuilder(load_settings(**{**flags, "processor_mode": mode})).build()


def test_offline_needs_none_of_it(tmp_path: Path) -> None:
    WorkerBuilder(
        load_settings(scenarios="a", data_dir=tmp_path, store_url="memory:", lora_base_model="/no/where")
    ).build()


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_every_fault_has_its_line(flags: dict[str, Any], mode: str) -> None:
    """The original noticed none of them before a trigger fired (fault 17)."""
    first, *lines = refusal(
        flags, processor_mode=mode, lora_base_model=None, lora_train_script="/no/train.py", lora_objective="dpo",
        learn_models="worker_task",
    ).splitlines()  # fmt: skip
    assert first == f"SWARM_PROCESSOR_MODE={mode} cannot run:"
    assert [line.split(":")[0].strip() for line in lines] == [
        "SWARM_LORA_BASE_MODEL",
        "SWARM_LORA_OBJECTIVE",
        "SWARM_LORA_TRAIN_SCRIPT",
    ]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (None, "no base model is set"),
        ("/no/where", "is not there"),
        ("./nowhere", "is not there"),
        ("nowhere.gguf", "is not there"),
        ("what is this?", "neither there nor a hub id"),
        ("a/b/c", "neither there nor a hub id"),
        ("a/..", "neither there nor a hub id"),
        ("a../b", "neither there nor a hub id"),
        ("a/b--c", "neither there nor a hub id"),
        ("../x/y", "is not there"),
    ],
)
def test_a_base_model_that_is_not_there_is_refused(flags: dict[str, Any], name: str | None, why: str) -> None:
    assert why in refusal(flags, lora_base_model=name)


@pytest.mark.parametrize("name", ["LiquidAI/LFM2.5-1.2B-Instruct", "gpt2", "a/b", "a_b-c.d/e"])
def test_a_hub_id_is_taken_for_one(flags: dict[str, Any], name: str) -> None:
    WorkerBuilder(load_settings(**{**flags, "lora_base_model": name})).build()


def test_a_directory_must_be_a_model_of_safetensors(flags: dict[str, Any], base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    assert "pickled weights" in refusal(flags)
    (base / "config.json").unlink()
    assert "holds no config.json" in refusal(flags)
    gguf(base / "model.gguf")
    assert str(base / "model.gguf") in refusal(flags)


def test_a_file_must_be_a_gguf_file(flags: dict[str, Any], base: Path, tmp_path: Path) -> None:
    assert "is no GGUF file" in refusal(flags, lora_base_model=str(base / "config.json"))
    WorkerBuilder(load_settings(**{**flags, "lora_base_model": str(gguf(tmp_path / "base.gguf"))})).build()


@pytest.mark.parametrize(
    ("objective", "models", "missing"), [("dpo", "worker_task,dependency_graph", "dpo"), ("sft", "dpo", "worker_task")]
)
def test_learn_models_must_give_examples_of_the_objective(
    flags: dict[str, Any], objective: str, models: str, missing: str
) -> None:
    text = refusal(flags, lora_objective=objective, learn_models=models)
    assert "SWARM_LORA_OBJECTIVE: no learn model of a" in text
    assert missing in text
    options = {"a": {"learn_models": [missing]}}
    WorkerBuilder(
        load_settings(**flags, lora_objective=objective, learn_models=models, scenario_options=options)
    ).build()


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens", "input_layernorm"])
def test_modules_that_no_server_takes_are_refused(flags: dict[str, Any], module: str) -> None:
    text = refusal(flags, lora_target_modules=f"q_proj,{module}")
    assert f"no server takes an adapter of {module}" in text
    assert "it names none" in refusal(flags, lora_target_modules="")


@pytest.mark.parametrize("module", ["q_prj", "self_attn.q_proj"])
def test_modules_that_the_base_has_not_are_refused_before_anything_is_trained(
    flags: dict[str, Any], module: str
) -> None:
    text = refusal(flags, lora_target_modules=f"{module},v_proj")
    assert f"base has no linear layer of attention or MLP named {module}; choose from down_proj, gate_proj" in text


def test_a_base_that_was_cut_off_is_refused_at_the_start(flags: dict[str, Any], base: Path) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert f"SWARM_LORA_BASE_MODEL: {base} cannot be read" in refusal(flags)


def test_a_module_is_named_once(flags: dict[str, Any]) -> None:
    """A set of PEFT has it once, model.json would say it twice: refused, with the training paid for."""
    text = refusal(flags, lora_target_modules="q_proj,v_proj,q_proj")
    assert "SWARM_LORA_TARGET_MODULES: q_proj is in it 2 times; name it once" in text


@pytest.mark.parametrize("stray", ["{model}", "{}", "{0}", "{adapter.nothing}", "{adapter[0]}", "{", "'"])
def test_a_converter_that_could_not_be_called_is_refused_before_anything_is_trained(
    flags: dict[str, Any], stray: str
) -> None:
    text = refusal(flags, lora_converter=f"sh x {{adapter}} {{output}} {stray}")
    assert text.count("SWARM_LORA_CONVERTER: ") == 1
    assert ("no command line" if stray == "'" else "only {base}, {adapter} and {output} are replaced") in text


def test_programs_must_be_there(flags: dict[str, Any], tmp_path: Path) -> None:
    assert "SWARM_LORA_PYTHON_PATH" in refusal(flags, lora_python_path="/no/python")
    assert "SWARM_LORA_PYTHON_PATH" in refusal(flags, lora_python_path=program(tmp_path / "p", "#!/bin/sh\nexit 1\n"))
    assert "there is no program nolaunch" in refusal(flags, lora_launcher="nolaunch {command}")
    assert "{command} is missing" in refusal(flags, lora_launcher="sh -c true")
    assert "no command line" in refusal(flags, lora_launcher="sh -c '{command}")
    assert "{output} is missing" in refusal(flags, lora_converter="sh {base} {adapter}")
    WorkerBuilder(
        load_settings(
            **flags,
            lora_python_path=sys.executable,
            lora_launcher="sh -c '{command}'",
            lora_converter="sh x {base} {adapter} {output}",
        )
    ).build()


def test_the_extra_must_be_installed_where_we_train(flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "PACKAGES", ("json", "no_such_package"))
    text = refusal(flags)
    assert "the extra lora is not installed here (no_such_package missing)" in text
    assert "pip install '.[lora]'" in text
    there = refusal(flags, lora_python_path=sys.executable)
    assert f"not installed in {sys.executable}" in there
    assert "swarm-worker[" not in text + there, "nobody vouches for that name in a package index"


def test_a_script_or_launcher_brings_its_own_packages(
    flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "PACKAGES", ("no_such_package",))
    script = program(tmp_path / "train.py")
    for more in ({"lora_train_script": script}, {"lora_launcher": "sh -c '{command}'"}):
        WorkerBuilder(load_settings(**flags, **more)).build()


def test_cuda_takes_no_limit_of_address_space(flags: dict[str, Any]) -> None:
    assert "SWARM_LORA_MEMORY_MB" in refusal(flags, lora_device="cuda", lora_memory_mb=4096)


def test_directories_must_be_ours_to_write(flags: dict[str, Any], base: Path) -> None:
    assert "SWARM_LORA_DATA_DIR" in refusal(flags, lora_data_dir=base / "config.json" / "data")
    assert "SWARM_LORA_OUTPUT_DIR" in refusal(flags, lora_output_dir=base / "config.json")


@pytest.mark.parametrize("applicator", ["llama_router", "llama_server", "blue_green"])
def test_llama_cpp_serves_a_gguf_file_of_an_architecture_that_we_convert(
    flags: dict[str, Any], tmp_path: Path, applicator: str
) -> None:
    given = {**flags, "lora_applicator": applicator, "llama_server_path": program(tmp_path / "server")}
    given |= {"llama_preset": tmp_path / "preset.ini"}
    assert "SWARM_LORA_SERVING_BASE: " in refusal(given)
    assert "is not there" in refusal(given, lora_serving_base=tmp_path / "none.gguf")
    text = tmp_path / "text.gguf"
    text.write_text("GGUF")
    assert "cannot be read" in refusal(given, lora_serving_base=text)
    other = gguf(tmp_path / "other.gguf", "lfm2")
    assert "SWARM_LORA_CONVERTER: other.gguf is of architecture lfm2" in refusal(given, lora_serving_base=other)
    for more in (
        {"lora_serving_base": other, "lora_converter": "sh x {base} {adapter} {output}"},
        {"lora_serving_base": gguf(tmp_path / "ours.gguf")},
        {"lora_base_model": str(tmp_path / "ours.gguf")},
    ):
        WorkerBuilder(load_settings(**{**given, **more})).build()


def test_the_router_needs_its_preset_and_an_address(flags: dict[str, Any], tmp_path: Path) -> None:
    given = {**flags, "lora_applicator": "llama_router", "lora_serving_base": gguf(tmp_path / "base.gguf")}
    assert "SWARM_LLAMA_PRESET" in refusal(given)
    assert "no is no directory; make it" in refusal(given, llama_preset=tmp_path / "no" / "preset.ini")
    given |= {"llama_preset": tmp_path / "preset.ini"}
    assert "SWARM_LLAMA_URL" in refusal(given, llama_url="localhost:8080")
    with_password = refusal(given, llama_url="http://me:canary@host:8080")
    assert "SWARM_LLAMA_URL: it may hold no user and password" in with_password
    assert "canary" not in with_password


def test_paths_that_the_routers_preset_cannot_hold_are_refused_before_an_adapter_is_trained(
    flags: dict[str, Any], tmp_path: Path
) -> None:
    given = {**flags, "lora_applicator": "llama_router", "llama_preset": tmp_path / "preset.ini"}
    given |= {"lora_serving_base": gguf(tmp_path / "base;1.gguf")}
    assert "SWARM_LORA_SERVING_BASE: llama-server's preset cannot hold the path" in refusal(given)
    given |= {"lora_serving_base": gguf(tmp_path / "base.gguf"), "data_dir": tmp_path / "data#1"}
    assert "SWARM_DATA_DIR: llama-server's preset cannot hold the path" in refusal(given)


@pytest.mark.parametrize("applicator", ["llama_server", "blue_green"])
def test_servers_of_our_own_need_a_program_ports_and_a_single_scenario(
    flags: dict[str, Any], tmp_path: Path, applicator: str
) -> None:
    given = {**flags, "lora_applicator": applicator, "lora_serving_base": gguf(tmp_path / "base.gguf")}
    given |= {"llama_server_path": program(tmp_path / "server")}
    assert "SWARM_LLAMA_SERVER_PATH" in refusal(given, llama_server_path="no-such-server")
    assert "there are 2 scenarios" in refusal(given, scenarios="a,b")
    assert "SWARM_LLAMA_PORT: 9108" in refusal(given, llama_port=9108)
    assert "SWARM_DATA_DIR: llama-server splits" in refusal(given, data_dir=tmp_path / "a,b")
    if applicator == "blue_green":
        assert "SWARM_LLAMA_STANDBY_PORT" in refusal(given, llama_port=8081)


@pytest.mark.parametrize("applicator", ["llama_server", "blue_green"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "gpu.example"])  # noqa: S104 - nothing is bound
def test_a_server_of_our_own_is_not_open_to_everybody_on_the_network(
    flags: dict[str, Any], tmp_path: Path, applicator: str, host: str
) -> None:
    given = {**flags, "lora_applicator": applicator, "lora_serving_base": gguf(tmp_path / "base.gguf")}
    given |= {"llama_server_path": program(tmp_path / "server"), "llama_host": host}
    for key in (None, ""):
        assert f"SWARM_LLAMA_API_KEY: with SWARM_LLAMA_HOST={host}, everybody" in refusal(given, llama_api_key=key)
    WorkerBuilder(load_settings(**given, llama_api_key="secret")).build()
    for own in ("127.0.0.2", "::1", "localhost"):
        WorkerBuilder(load_settings(**{**given, "llama_host": own})).build()


def test_vllm_and_webhook_need_an_address(flags: dict[str, Any]) -> None:
    assert "SWARM_VLLM_URL" in refusal(flags, lora_applicator="vllm", vllm_url="http://")
    assert "SWARM_WEBHOOK_URL" in refusal(flags, lora_applicator="webhook")
    WorkerBuilder(load_settings(**flags, lora_applicator="vllm")).build()


@pytest.mark.parametrize("server", ["llama", "vllm"])
def test_an_api_key_crosses_no_wire_in_the_open(flags: dict[str, Any], tmp_path: Path, server: str) -> None:
    given = {**flags, "lora_applicator": "llama_router" if server == "llama" else "vllm"}
    given |= {"llama_preset": tmp_path / "preset.ini", "lora_serving_base": gguf(tmp_path / "base.gguf")}
    url, key = f"{server}_url", {f"{server}_api_key": "secret"}
    text = refusal(given, **{url: "http://gpu.example"}, **key)
    assert f"SWARM_{server.upper()}_URL: http:// would send SWARM_{server.upper()}_API_KEY" in text
    assert "secret" not in text
    for more in ({url: "http://gpu.example"}, {url: "https://gpu.example", **key}, {url: "http://[::1]:1", **key}):
        WorkerBuilder(load_settings(**given, **more)).build()
    WorkerBuilder(load_settings(**given, **{url: "http://gpu.example"}, **key, lora_allow_plaintext="true")).build()


async def test_an_applicator_of_ones_own_needs_none_of_the_settings(flags: dict[str, Any]) -> None:
    builder = WorkerBuilder(load_settings(**flags, lora_applicator="llama_router"))

    own = NoopApplicator()
    worker = builder.applicator(own, "lora").build()
    assert worker._assemble(worker).applicators["lora"] is own


@pytest.mark.parametrize(
    ("mode", "trained", "served"),
    [
        ("offline", ["offline"], {"offline": "files"}),
        ("lora", ["lora"], {"offline": "files", "lora": "noop"}),
        ("full", ["offline", "lora"], {"offline": "files", "lora": "noop"}),
    ],
)
async def test_a_mode_trains_its_kinds_in_order_and_offline_models_stay_served(
    flags: dict[str, Any], mode: str, trained: list[str], served: dict[str, str]
) -> None:
    worker = WorkerBuilder(load_settings(**{**flags, "processor_mode": mode}, lora_applicator="noop")).build()
    parts = worker._assemble(worker)
    assert parts.runs.kinds == trained
    assert {kind: applicator.name for kind, applicator in parts.applicators.items()} == served
    assert parts.applier.kinds == list(served)
