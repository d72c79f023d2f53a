"""What the chosen way of serving adapters needs: its settings, its files, its program."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

from worker.configuration import serving_base
from worker.errors import ApplyFailed
from worker.hosts import is_loopback
from worker.models.applicators.router_preset import PresetFile, fits_into_preset
from worker.models.gguf_header import architecture_of
from worker.settings import Settings

_LLAMA = frozenset({"llama_router", "llama_server", "blue_green"})
#: Whose adapters we write as GGUF ourselves; others need a converter.
_OWN_FORMAT = "llama"


def serving_faults(settings: Settings) -> Iterator[str]:
    """What is wrong, each with its cure."""
    chosen = settings.lora_applicator
    if chosen in _LLAMA:
        yield from _gguf_base(settings)
    if chosen == "llama_router":
        yield from _url(settings, "llama")
        if settings.llama_preset is None:
            yield (
                "SWARM_LLAMA_PRESET: llama_router writes the file that the router is started with (--models-preset); "
                "name it"
            )
        elif not (folder := settings.llama_preset.absolute().parent).is_dir():
            yield f"SWARM_LLAMA_PRESET: {folder} is no directory; make it, or name another file"
        elif not os.access(folder, os.W_OK | os.X_OK):
            yield f"SWARM_LLAMA_PRESET: this user may not write to {folder}; give it the right, or name another file"
        else:
            try:
                PresetFile(settings.llama_preset).read()
            except ApplyFailed as error:
                yield str(error)
        yield from _preset_paths(settings)
    elif chosen in ("llama_server", "blue_green"):
        yield from _own_servers(settings)
    elif chosen == "vllm":
        yield from _url(settings, "vllm")
    elif chosen == "webhook" and settings.webhook_url is None:
        yield "SWARM_LORA_APPLICATOR: webhook needs a URL; set SWARM_WEBHOOK_URL"


def _gguf_base(settings: Settings) -> Iterator[str]:
    base = serving_base(settings)
    if base is None:
        yield (
            f"SWARM_LORA_SERVING_BASE: {settings.lora_applicator} serves a GGUF file, and the base model is none; "
            "set it to the GGUF file of the same model"
        )
        return
    setting = "SWARM_LORA_BASE_MODEL" if settings.lora_serving_base is None else "SWARM_LORA_SERVING_BASE"
    if not base.is_file():
        yield f"{setting}: {base} is not there"
        return
    try:
        architecture = architecture_of(base)
    except (OSError, ValueError) as error:
        yield f"{setting}: {base} cannot be read: {error}"
        return
    if architecture != _OWN_FORMAT and settings.lora_converter is None:
        yield (
            f"SWARM_LORA_CONVERTER: {base.name} is of architecture {architecture}, and only adapters of llama are "
            "converted here; set a command, such as llama.cpp's converter, with {adapter} and {output}"
        )


def _preset_paths(settings: Settings) -> Iterator[str]:
    paths = {"SWARM_DATA_DIR": settings.data_dir.absolute(), "SWARM_LORA_SERVING_BASE": serving_base(settings)}
    for setting, path in paths.items():
        if path is not None and not fits_into_preset(path):
            yield (
                f"{setting}: llama-server's preset cannot hold the path {str(path)!r}: it may have no quote, comma, "
                "semicolon, #, backslash or line break, and no blank at an end; choose another"
            )


def _own_servers(settings: Settings) -> Iterator[str]:
    chosen = settings.lora_applicator
    if not shutil.which(settings.llama_server_path):
        yield (
            f"SWARM_LLAMA_SERVER_PATH: there is no program {settings.llama_server_path}; install llama.cpp's "
            "llama-server, or write its whole path"
        )
    if len(settings.scenarios) > 1:
        yield (
            f"SWARM_LORA_APPLICATOR: {chosen} starts servers for one adapter, and there are {len(settings.scenarios)} "
            "scenarios; use llama_router or vllm, or a worker for each"
        )
    if "," in str(settings.data_dir.absolute()):
        yield f"SWARM_DATA_DIR: llama-server splits paths of adapters at commas: {settings.data_dir}; choose another"
    if not settings.llama_api_key and not is_loopback(settings.llama_host):
        yield (
            f"SWARM_LLAMA_API_KEY: with SWARM_LLAMA_HOST={settings.llama_host}, everybody who reaches this machine may "
            "use the server that we start; set a key, which nodes send too, or let it listen at 127.0.0.1"
        )
    if chosen == "blue_green" and settings.llama_port == settings.llama_standby_port:
        yield f"SWARM_LLAMA_STANDBY_PORT: {settings.llama_standby_port} is SWARM_LLAMA_PORT too; choose another"
    ports = {"SWARM_LLAMA_PORT": settings.llama_port}
    if chosen == "blue_green":
        ports["SWARM_LLAMA_STANDBY_PORT"] = settings.llama_standby_port
    for setting, port in ports.items():
        if port == settings.http_port and settings.llama_host == settings.http_host:
            yield f"{setting}: {port} is SWARM_HTTP_PORT too; choose another"


def _url(settings: Settings, server: Literal["llama", "vllm"]) -> Iterator[str]:
    text = settings.llama_url if server == "llama" else settings.vllm_url
    key = settings.llama_api_key if server == "llama" else settings.vllm_api_key
    setting, key_setting = f"SWARM_{server.upper()}_URL", f"SWARM_{server.upper()}_API_KEY"
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:  # what Python says of it may hold a password
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        yield f"{setting}: it must begin with http:// or https:// and a host"
    elif "@" in parts.netloc:
        # Nodes read the address in a file that is no secret, and get no 401 that would say what is wrong.
        yield f"{setting}: it may hold no user and password; the server's key has a setting of its own, {key_setting}"
    elif parts.scheme == "http" and key and not settings.lora_allow_plaintext and not is_loopback(parts.hostname):
        yield (
            f"{setting}: http:// would send {key_setting} to {parts.hostname} unencrypted; use https://, or set "
            "SWARM_LORA_ALLOW_PLAINTEXT=true on a network you trust"
        )
