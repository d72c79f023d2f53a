"""Adapters as a swarm node uses them: which server to ask now, and under which name; or the files, where none serves.

The worker replaces `<data_dir>/current/<scenario>.lora.json` at once, after it saw the server answer as the adapter
does, and keeps the adapter before it answering for a while. So a node that looks before each request is never lost:

    pointer = AdapterPointer(Path("/var/lib/swarm"), "checkout")
    current = pointer.current()
    if current is None:
        url, name = "http://127.0.0.1:8080", "base"  # nothing was learnt yet; the router's own base has this name
    else:
        url, name = current.endpoint.url, current.endpoint.model
    client.post(f"{url}/v1/chat/completions", json={"model": name, "messages": messages})

A node without that directory follows the events `learning.applied` and `learning.rolled_back`, which name the same
endpoint (`following.LiveAdapter`). With `SWARM_LORA_APPLICATOR=files` there is none: whoever serves the files takes
`current.directory`, and `async for current in pointer.follow():` tells when to take the next one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct, UnsetType

from worker.client.current_file import CurrentFile
from worker.learning.offline_model import ModelUnreadable
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
    #: Where its files lie in the data directory: `peft/`, and `adapter.gguf` for llama.cpp.
    directory: Path


class AdapterPointer(CurrentFile[CurrentAdapter]):
    """The current adapter of one scenario in a worker's data directory. Blocking, but for `follow`."""

    def __init__(self, data_dir: Path, scenario: str) -> None:
        super().__init__(data_dir, scenario, ".lora.json", partial(_adapter_of, models=data_dir / "models" / scenario))

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


def _adapter_of(served: ServedModel, *, models: Path) -> CurrentAdapter:
    document = msgspec.json.decode(served.model, type=_Document)
    if hashlib.sha256(bytes(served.model)).hexdigest() != served.sha256:
        raise ModelUnreadable(
            f"adapter {served.model_id} of {served.scenario} is not what was served: its SHA-256 differs"
        )
    return CurrentAdapter(
        scenario=served.scenario,
        model_id=served.model_id,
        version=served.model_version,
        sha256=served.sha256,
        base_model=document.base.name,
        objective=document.objective,
        endpoint=None if isinstance(served.endpoint, UnsetType) else served.endpoint,
        # Not where `uri` says: the directory may be mounted here at another path than at the worker's.
        directory=models / str(served.model_version) / "adapter",
    )
