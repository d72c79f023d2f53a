"""The applicators that the settings name, of each kind of model."""

from __future__ import annotations

from typing import Literal

from worker.configuration import serving_base
from worker.errors import ConfigurationError
from worker.models.applicators.adapter_webhook import AdapterWebhookApplicator
from worker.models.applicators.blue_green import BlueGreenApplicator
from worker.models.applicators.files import FilesApplicator
from worker.models.applicators.llama_client import LlamaClient
from worker.models.applicators.llama_router import LlamaRouterApplicator
from worker.models.applicators.llama_server import LlamaServerApplicator
from worker.models.applicators.noop import NoopApplicator
from worker.models.applicators.own_server import OwnServer
from worker.models.applicators.port import Applicator
from worker.models.applicators.router_preset import PresetFile
from worker.models.applicators.server_command import ServerOptions
from worker.models.applicators.server_process import ServerProcess
from worker.models.applicators.server_state import Colour
from worker.models.applicators.vllm import VllmApplicator
from worker.models.applicators.vllm_client import VllmClient
from worker.models.applicators.webhook import WebhookApplicator
from worker.settings import Settings


def offline_applicator(settings: Settings) -> Applicator:
    """How offline models reach those who use them."""
    match settings.applicator:
        case "files":
            return FilesApplicator(settings.data_dir)
        case "webhook" if settings.webhook_url is not None:
            return WebhookApplicator(settings.webhook_url, key=settings.webhook_key)
        case _:
            return NoopApplicator()


def lora_applicator(settings: Settings) -> Applicator:
    """How adapters reach the inference server; `serving_faults` has found nothing wrong with the settings."""
    match settings.lora_applicator:
        case "files":
            return FilesApplicator(settings.data_dir, "lora")
        case "webhook" if settings.webhook_url is not None:
            webhook = WebhookApplicator(settings.webhook_url, key=settings.webhook_key, kind="lora")
            return AdapterWebhookApplicator(webhook, settings.data_dir)
        case "llama_router":
            return _router(settings)
        case "llama_server":
            return LlamaServerApplicator(
                _own_server(settings, settings.llama_port),
                data_dir=settings.data_dir,
                drain_seconds=settings.lora_drain_timeout,
            )
        case "blue_green":
            return BlueGreenApplicator(
                {
                    "blue": _own_server(settings, settings.llama_port, colour="blue"),
                    "green": _own_server(settings, settings.llama_standby_port, colour="green"),
                },
                data_dir=settings.data_dir,
                drain_seconds=settings.lora_drain_timeout,
            )
        case "vllm":
            client = VllmClient(settings.vllm_url, settings.vllm_api_key)
            return VllmApplicator(
                client,
                settings.data_dir,
                drain_timeout=settings.lora_drain_timeout,
                models_dir=settings.vllm_models_dir,
            )
        case _:
            return NoopApplicator()


def _router(settings: Settings) -> LlamaRouterApplicator:
    base = serving_base(settings)
    if settings.llama_preset is None or base is None:
        raise ConfigurationError("SWARM_LORA_APPLICATOR: llama_router needs SWARM_LLAMA_PRESET and a GGUF base")
    return LlamaRouterApplicator(
        LlamaClient(settings.llama_url, settings.llama_api_key),
        preset=PresetFile(settings.llama_preset),
        data_dir=settings.data_dir,
        serving_base=base,
        drain_seconds=settings.lora_drain_timeout,
    )


def _own_server(settings: Settings, port: int, *, colour: Colour | None = None) -> OwnServer:
    base = serving_base(settings)
    if base is None:
        raise ConfigurationError(f"SWARM_LORA_APPLICATOR: {settings.lora_applicator} needs a GGUF base")
    options = ServerOptions(
        program=settings.llama_server_path,
        base=base,
        host=settings.llama_host,
        gpu_layers=settings.llama_gpu_layers,
        context_size=settings.llama_ctx_size,
        parallel=settings.llama_parallel,
        api_key=settings.llama_api_key,
    )
    return OwnServer(options, port=port, process=server_processes(settings)[colour or "one"])


def server_processes(settings: Settings) -> dict[Colour | Literal["one"], ServerProcess]:
    """Those that we start, whichever applicator is chosen: `one` is llama_server's. Each has its two files."""
    folder = settings.data_dir / "llama"
    pid_file = settings.llama_pid_file or folder / "server.pid"
    log_file = settings.llama_log_file or folder / "server.log"
    colours: tuple[Colour, Colour] = ("blue", "green")
    processes: dict[Colour | Literal["one"], ServerProcess] = {
        "one": ServerProcess(pid_file=pid_file, log_file=log_file)
    }
    for colour in colours:  # two of one name would be one server
        own_pid, own_log = (path.with_stem(f"{path.stem}-{colour}") for path in (pid_file, log_file))
        processes[colour] = ServerProcess(pid_file=own_pid, log_file=own_log)
    return processes
