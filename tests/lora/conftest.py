"""What the LoRA tests share: a tiny base model, a real llama-server, and what makes adapters."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.integration.conftest import command_line, new_worker, nursery  # noqa: F401 - fixtures
from tests.lora import llama_server
from tests.lora.made_adapters import AdapterMaker
from tests.lora.tiny import TinyBase, tiny_base

# Tests run beside each other already. The server's threads wait for each other by spinning: on a busy machine two of
# them were twenty times slower than one.
torch.set_num_threads(1)
os.environ["LLAMA_ARG_THREADS"] = "1"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the server before any test's clock runs, where it is not in the cache and is needed."""
    if any(item.get_closest_marker(name) for item in session.items for name in ("lora", "lora_full")):
        llama_server.llama_server()


@pytest.fixture(scope="session")
def base() -> TinyBase:
    """A language model of 0.1 million weights, as a directory and as GGUF."""
    return tiny_base()


@pytest.fixture(scope="session")
def llama_server_program() -> Path:
    """A real llama-server; built where it is not in the cache."""
    return llama_server.llama_server()


@pytest.fixture(scope="session")
def base_server(base: TinyBase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[llama_server.RunningServer]:
    """The base alone, served: to ask it, not to change it."""
    with llama_server.running_server(["--model", str(base.gguf)], directory=tmp_path_factory.mktemp("server")) as one:
        yield one


@pytest.fixture(scope="session")
def maker(base: TinyBase) -> AdapterMaker:
    """Makes adapters on the tiny base."""
    return AdapterMaker(base)
