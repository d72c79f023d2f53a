"""The settings of LoRA training and serving: a part of `worker.settings.Settings`, apart since there are many."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from worker.setting_types import CommaList, Duration, PositiveDuration


class LoraSettings(BaseSettings):
    """The original's `LoraTrainerConfig` and `LlamaServerConfig` (domain, 4.14 and 4.15), and what they lack."""

    # -- what is trained
    lora_base_model: str | None = Field(
        None, description="what adapters are trained on: a local directory, a GGUF file or a hub id"
    )
    lora_objective: Literal["sft", "dpo"] = Field(
        "sft", description="sft learns from successful episodes, dpo from pairs of attempts of one group"
    )
    lora_rank: int = Field(16, ge=1, le=256, description="rank of the adapter's matrices")
    lora_alpha: float = Field(
        32.0, gt=0, allow_inf_nan=False, description="scale of the adapter; in force is alpha / rank"
    )
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the adapter's input while training")
    lora_target_modules: CommaList = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="modules that get an adapter; only linear layers of attention and MLP can be served",
    )
    lora_epochs: int = Field(3, ge=1, description="passes over the examples")
    lora_batch_size: int = Field(4, ge=1, description="examples in one forward pass")
    lora_gradient_accumulation: int = Field(4, ge=1, description="forward passes per optimiser step")
    lora_learning_rate: float = Field(
        2e-4, gt=0, le=1, description="AdamW's learning rate; dpo wants a tenth of what sft does"
    )
    lora_max_seq_length: int = Field(2048, ge=16, description="most tokens of an example; longer ones are left out")
    lora_seed: int = Field(
        42,
        ge=0,
        lt=2**32,
        description="of first weights, order and dropout; the same data and seed give the same adapter",
    )
    lora_dpo_beta: float = Field(
        0.1, gt=0, allow_inf_nan=False, description="how strongly dpo holds on to the base model"
    )
    lora_min_examples: int = Field(20, ge=1, description="fewer examples are not trained on")
    lora_max_episodes: int = Field(
        20_000,
        ge=1,
        description="most episodes of each learn model that a training takes: the newest by the records' "
        "timestamp_ms, and where they have none by when they came in; producers and tasks take turns",
    )

    # -- how
    lora_device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one")
    lora_timeout: PositiveDuration = Field(
        21_600.0,
        description="longest a LoRA training may take at a time; it goes on, at most twice, where it can end so",
    )
    lora_memory_mb: int = Field(0, ge=0, description="address space of a LoRA training; 0: no limit, as CUDA needs it")
    lora_checkpoint_steps: int = Field(
        50, ge=1, description="optimiser steps between checkpoints, which a killed training goes on from"
    )
    lora_python_path: Path | None = Field(None, description="Python that trains; default: the worker's own")
    lora_train_script: Path | None = Field(
        None,
        description="a training script of one's own, called as PYTHON SCRIPT RUN_DIR; what it must leave is said in "
        "deploy/README.md; default: built in",
    )
    lora_launcher: str | None = Field(
        None,
        description="a command around the training, such as: torchrun --no-python --nproc-per-node 4 {command}",
    )
    lora_converter: str | None = Field(
        None,
        description="makes GGUF adapters where the base is no llama: a command with {adapter}, {output}, maybe {base}",
    )
    lora_data_dir: Path | None = Field(None, description="training data of runs; default <data_dir>/lora/data")
    lora_output_dir: Path | None = Field(
        None, description="checkpoints and adapters in the making; default <data_dir>/lora/adapters"
    )

    # -- how adapters reach their server
    lora_applicator: Literal["files", "webhook", "noop", "llama_router", "llama_server", "blue_green", "vllm"] = Field(
        "files", description="how an adapter reaches the inference server; noop is for tests"
    )
    lora_serving_base: Path | None = Field(
        None, description="the GGUF file that llama.cpp serves; default: the base model, where it is one"
    )
    lora_allow_plaintext: bool = Field(
        default=False, description="allow http:// with an API key to an inference server that is not on this machine"
    )
    lora_health_window: Duration = Field(0.0, description="how long a new adapter must stay healthy to count as live")
    lora_drain_timeout: PositiveDuration = Field(
        30.0, description="longest wait for requests of the old adapter before it is unloaded"
    )
    llama_url: str = Field("http://127.0.0.1:8080", description="llama-server in router mode")
    llama_api_key: SecretStr | None = Field(None, description="its --api-key, and that of servers that we start")
    llama_preset: Path | None = Field(None, description="the --models-preset file of the router, which we write")
    llama_server_path: Path = Field(Path("llama-server"), description="the program, for llama_server and blue_green")
    llama_host: str = Field("127.0.0.1", description="where servers that we start listen; beyond loopback with a key")
    llama_port: int = Field(8080, ge=1, le=65535, description="their port; of blue_green's blue one")
    llama_standby_port: int = Field(8081, ge=1, le=65535, description="the port of blue_green's green one")
    llama_gpu_layers: int = Field(0, ge=0, description="layers on the GPU, of a server that we start")
    llama_ctx_size: int = Field(4096, ge=64, description="its context in tokens, which its requests share")
    llama_parallel: int = Field(4, ge=1, description="requests that it works on at once")
    llama_pid_file: Path | None = Field(
        None,
        description="default <data_dir>/llama/server.pid; blue_green's two are server-blue.pid and server-green.pid",
    )
    llama_log_file: Path | None = Field(
        None, description="default <data_dir>/llama/server.log; blue_green's two as with its pid files"
    )
    vllm_url: str = Field("http://127.0.0.1:8000", description="vLLM with --enable-lora and run-time updating")
    vllm_api_key: SecretStr | None = Field(None, description="its --api-key")
    vllm_models_dir: Path | None = Field(
        None, description="where vLLM sees <data_dir>/models, if it runs elsewhere; default: the same path"
    )
