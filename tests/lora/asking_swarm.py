"""Nodes that generate all the while, whom a swap of adapters may cost nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.lora.made_adapters import Made
from worker.client.adapters import AdapterPointer
from worker.models.applicators.probe import answers_as


@dataclass
class Swarm:
    """Nodes that ask all the while, each time whom the pointer names; some read it a while before they ask."""

    data_dir: Path
    key: str  # the server's
    made: dict[str, Made]
    answered: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    stopping: bool = False

    async def ask(self, *, tokens: int, late_by: float = 0.0) -> None:
        """Until `stopping`."""
        pointer = AdapterPointer(self.data_dir, "S")
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {self.key}"}) as http:
            while not self.stopping:
                current = pointer.current()
                assert current is not None
                assert current.endpoint is not None
                name = current.endpoint.model
                await asyncio.sleep(late_by)
                probe = self.made[name].probes[0]
                body = {"model": name, "prompt": probe.prompt, "max_tokens": tokens, "temperature": 0}
                # `ignore_eos`, so that answers are long and most swaps come in the middle of some.
                async with http.post(
                    f"{current.endpoint.url}/v1/completions", json={**body, "ignore_eos": tokens > probe.max_tokens}
                ) as response:
                    text = await response.text()
                    if response.status != 200:
                        self.wrong.append(f"{name}: HTTP {response.status}: {text}")
                        continue
                    said = (await response.json())["choices"][0]["text"]
                if not answers_as(probe.expected, probe.base, said):
                    self.wrong.append(f"{name}: {said!r} instead of {probe.expected!r}")
                self.answered[name] = self.answered.get(name, 0) + 1
