"""What the case `training-lora` trains: an adapter of the tiny model, or of the base that SWARM_BENCH_LORA_BASE names.

It is measured while optimiser steps are made; freezing the data and loading the libraries come before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from tests.bench.training import Subject
from tests.lora import swarm
from tests.lora.tiny import tiny_base

_MESSAGES, _TASKS_A_MESSAGE = 20, 20
#: So that the training outlasts the ingest of a turn; where a real model is named, one pass does.
_TINY_EPOCHS, _REAL_EPOCHS = 40, 1


def subject() -> Subject:
    """The adapter; makes the tiny model where it is not cached yet."""
    given = os.environ.get("SWARM_BENCH_LORA_BASE")
    return Subject(
        name="training-lora",
        least=0.85,
        first=_bodies,
        first_messages=_MESSAGES,
        settings={
            "SWARM_PROCESSOR_MODE": "lora",
            "SWARM_LEARN_MODELS": "worker_decision_sequence",
            "SWARM_LORA_BASE_MODEL": given or str(tiny_base().directory),
            "SWARM_LORA_EPOCHS": str(_REAL_EPOCHS if given else _TINY_EPOCHS),
            "SWARM_LORA_MAX_SEQ_LENGTH": "256",
        },
        under_way="SELECT EXISTS (SELECT 1 FROM training_run WHERE state = 'running' AND progress_text LIKE 'step %')",
    )


def _bodies() -> Iterator[bytes]:
    for batch in range(_MESSAGES):
        tasks = range(batch * _TASKS_A_MESSAGE, (batch + 1) * _TASKS_A_MESSAGE)
        yield swarm.body(swarm.lived(tasks, swarm.FIRST_ORDER), batch=batch)
