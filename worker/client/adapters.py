"""Adapters as a swarm node uses them: which server to ask now, and under which name; or the files, where none serves.

The worker replaces `<data_dir>/current/<scenario>.lora.json` at once, after it saw the server answer as the adapter
does, and keeps the adapter before it answering for a while. So a node that looks before each request is never lost:

    pointer = AdapterPointer(Path("/var/lib/swarm"), "checkout")
    current = pointer.current()
    if current is None:
        url, name = my_base_url, my_base_name  # nothing was learnt yet
    else:
        url, name = current.endpoint.url, current.endpoint.model
    client.post(f"{url}/v1/chat/completions", json={"model": name, "messages": messages})

A node without that directory follows `learning.applied` of kind `lora`: the router and vLLM serve an adapter as
`<scenario>@<model_version>`. With `SWARM_LORA_APPLICATOR=files` there is no endpoint: whoever serves the files takes
`current.directory`, and `async for current in pointer.follow():` tells when to take the next one.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct, UnsetType

from worker.errors import ConfigurationError
from worker.learning.offline_model import ModelUnreadable
from worker.wire.names import is_slug
from worker.wire.served import Endpoint, ServedModel

#: Seconds between two looks at the pointer; a look costs two system calls.
_LOOK_AGAIN = 1.0


class _Base(Struct):
    name: str
    sha256: str


class _Document(Struct):
    """What a node needs to know of an adapter's model.json."""

    base: _Base
    objective: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentAdapter:
    """One version of a scenario's adapter, as it is served."""

    scenario: str
    model_id: str
    version: int
    #: Of its model.json, which holds the hashes of all its files.
    sha256: str
    #: The model that it changes: a hub id, or the name of a file.
    base_model: str
    #: `sft` or `dpo`.
    objective: str
    #: Whom to ask, and under which name; None where the worker only leaves the files.
    endpoint: Endpoint | None
    #: Where its files lie on the worker's machine: `peft/`, and `adapter.gguf` for llama.cpp.
    directory: Path | None


class AdapterPointer:
    """The current adapter of one scenario in a worker's data directory. Blocking, but for `follow`."""

    def __init__(self, data_dir: Path, scenario: str) -> None:
        if not is_slug(scenario):
            raise ConfigurationError(f"{scenario!r} is no scenario name; use letters, digits, - and _, at most 64")
        self.path = data_dir / "current" / f"{scenario}.lora.json"
        self._seen: tuple[int, int, int] | None = None
        self._current: CurrentAdapter | None = None

    def current(self) -> CurrentAdapter | None:
        """The adapter that is served now; None before the first. Read again only where the file was replaced.

        Raises `ModelUnreadable` (damaged, or a newer worker's), or OSError where the file may not be read.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())  # of the open file: the path may lead to another one by now
                seen = (status.st_ino, status.st_mtime_ns, status.st_size)
                if seen != self._seen:
                    self._current, self._seen = self._read(file.read()), seen
        except FileNotFoundError:
            self._current = self._seen = None
        return self._current

    async def follow(self, *, every: float = _LOOK_AGAIN) -> AsyncGenerator[CurrentAdapter | None]:
        """The adapter that is served now, and each that takes its place; `every` is in seconds. Raises as `current`."""
        last = await asyncio.to_thread(self.current)
        yield last
        while True:
            await asyncio.sleep(every)
            found = await asyncio.to_thread(self.current)
            if found != last:
                last = found
                yield last

    def _read(self, text: bytes) -> CurrentAdapter:
        try:
            served = msgspec.json.decode(text, type=ServedModel)
            document = msgspec.json.decode(served.model, type=_Document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ModelUnreadable(f"{self.path} names no adapter: {error}; apply a version again") from error
        if hashlib.sha256(bytes(served.model)).hexdigest() != served.sha256:
            raise ModelUnreadable(
                f"adapter {served.model_id} in {self.path} is not what was served: its SHA-256 differs"
            )
        return CurrentAdapter(
            scenario=served.scenario,
            model_id=served.model_id,
            version=served.model_version,
            sha256=served.sha256,
            base_model=document.base.name,
            objective=document.objective,
            endpoint=None if isinstance(served.endpoint, UnsetType) else served.endpoint,
            directory=None if isinstance(served.uri, UnsetType) else _local(served.uri) / "adapter",
        )


def _local(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))
