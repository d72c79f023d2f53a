"""How a llama-server of ours is started: its command line, and what of our environment it gets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pydantic import SecretStr

from worker.errors import ApplyFailed
from worker.models.applicators.versions import require_gguf

#: What of our environment a server may need; all else may be a secret. LLAMA_ARG_... are its options.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
_ENVIRONMENT_PREFIXES = ("LLAMA_ARG_", "GGML_", "OMP_", "CUDA_", "NVIDIA_", "HIP_", "HSA_", "ROCR_")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """The original's `LlamaServerConfig`, but for the port and the files."""

    program: Path  # on PATH, or with a directory
    base: Path  # GGUF
    host: str
    gpu_layers: int
    context_size: int  # tokens, of all requests together
    parallel: int
    api_key: SecretStr | None


def command_line(options: ServerOptions, *, port: int, name: str, adapter: Path) -> list[str]:
    """To serve the GGUF adapter as `name`. Raises `ApplyFailed` for what it cannot take."""
    if "," in str(adapter):
        raise ApplyFailed(f"llama-server splits --lora at commas: move {adapter}, that is SWARM_DATA_DIR")
    require_gguf(adapter)
    return [
        _found(options.program), "--model", str(options.base.absolute()), "--lora", str(adapter), "--alias", name,
        "--host", options.host, "--port", str(port), "--ctx-size", str(options.context_size),
        "--parallel", str(options.parallel), "--n-gpu-layers", str(options.gpu_layers), "--slots",
        "--no-webui",  # a program for people, for which nobody asked
        "--log-verbosity", "2",  # warnings and errors: the information of each request would fill the disk
    ]  # fmt: skip


def option(command: list[str], name: str) -> str | None:
    """The value of an option in a command line, which a pid file may hold in a form of another release of ours."""
    return next((value for key, value in pairwise(command) if key == name), None)


def environment(options: ServerOptions) -> Mapping[str, str]:
    """What a server may know of ours, and its key: not on the command line, which every user of the machine sees."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
    }
    return kept if options.api_key is None else kept | {"LLAMA_API_KEY": options.api_key.get_secret_value()}


def _found(program: Path) -> str:
    """Absolute, since the process runs elsewhere. Raises `ApplyFailed` where there is none."""
    path = shutil.which(program)
    if path is None:
        raise ApplyFailed(f"there is no program {str(program)!r}; set SWARM_LLAMA_SERVER_PATH to llama-server")
    return str(Path(path).absolute())
