"""How a LoRA training is started: our own in a chosen Python, a script of the operator's, or inside of a launcher.

`ChildLauncher` calls the command with the run's directory and the limits behind it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from worker.training.child import child_environment

#: What downloading a base from a hub and finding a GPU go by; the hub's token is in HF_HOME, where its login leaves it.
#: A proxy's address may hold its password: without it nothing comes through. Last words of a child are masked for it.
_PASSED_ON = (
    "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy",
    "SSL_CERT_FILE", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "LD_LIBRARY_PATH",
)  # fmt: skip


def lora_command(python: Path | None, script: Path | None, launcher: str | None) -> tuple[str, ...]:
    """The command for `lora_python_path`, `lora_train_script` and `lora_launcher`.

    A script is called as PYTHON SCRIPT RUN_DIR; deploy/README.md says what it reads there, and what it must leave.
    """
    own = sys.executable
    used = str(python or own)
    if script is None and launcher is None:
        # No limit on files: a base that comes from a hub is gigabytes.
        return (used, "-P", "-s", "-m", "worker.training.trainer", "--file-mb", "0")
    confined = (own, "-P", "-s", "-m", "worker.training.confined", "--python", used)
    chosen = () if script is None else ("--script", str(script))
    return (*confined, *chosen, *(() if launcher is None else ("--launcher", launcher)))


def own_program(script: Path | None, launcher: str | None) -> str | None:
    """The settings of what is started in the place of our own training; None where that is."""
    names = ("SWARM_LORA_LAUNCHER", launcher), ("SWARM_LORA_TRAIN_SCRIPT", script)
    return " around ".join(name for name, value in names if value is not None) or None


def lora_environment(run_dir: Path) -> dict[str, str]:
    """What an offline training sees, and what torch and the hub's client need: where they find things.

    Of secrets only a proxy's password, where its address holds one; none of the worker's own.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return {
        **child_environment(run_dir),
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        # Downloads outlive the run, whose directory is HOME.
        "HF_HOME": os.environ.get("HF_HOME") or f"{cache}/huggingface",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it cuBLAS is not deterministic, says torch's documentation
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # Bars and warnings of libraries are noise in a pipe, and the last words that are kept would be theirs.
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
    }
