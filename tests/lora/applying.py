"""A worker's apply in a process of its own, to be killed: `python -m tests.lora.applying ROW CONTENT CRASH_POINT`.

The files hold the row of a registered model and its model.json; the settings are in the environment.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from worker import crash
from worker.models.applicators.chosen import lora_applicator
from worker.models.applicators.port import Applicator
from worker.settings import load_settings
from worker.store.port import Model


def main() -> None:
    """Dies at the point."""
    row, content, point = sys.argv[1:]
    model = msgspec.json.decode(Path(row).read_bytes(), type=Model)
    applicator = lora_applicator(load_settings())
    crash.arm(point)
    asyncio.run(_apply(applicator, model, Path(content).read_bytes()))


async def _apply(applicator: Applicator, model: Model, content: bytes) -> None:
    await applicator.apply(model, content)


if __name__ == "__main__":
    main()
