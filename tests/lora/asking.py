"""A decider of the swarm that asks a language model where the pointer says; it knows nothing else of the worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp

from tests.lora.tiny import END, question, rendered


def pointer(data_dir: Path, scenario: str) -> dict[str, Any] | None:
    """What nodes read: `endpoint` says whom to ask. It is whole or not there."""
    try:
        text = (data_dir / "current" / f"{scenario}.lora.json").read_bytes()
    except FileNotFoundError:
        return None
    document: dict[str, Any] = json.loads(text)
    return document


async def answer(url: str, model: str, target: str) -> str:
    """What `model` at `url` says is to be done about `target`, decoded greedily."""
    asked = {"model": model, "prompt": rendered(question(target)), "temperature": 0, "max_tokens": 40}
    async with aiohttp.ClientSession() as http, http.post(f"{url}/v1/completions", json=asked) as response:
        text = await response.json()
        assert response.status == 200, text
    said: str = text["choices"][0]["text"]
    return said.removesuffix(END)


async def asked(data_dir: Path, scenario: str, target: str) -> str:
    """The same of the model that is pointed at."""
    document = pointer(data_dir, scenario)
    assert document is not None, f"nobody is told whom to ask about {scenario}"
    return await answer(document["endpoint"]["url"], document["endpoint"]["model"], target)
