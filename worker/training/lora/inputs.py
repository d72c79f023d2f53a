"""What a LoRA training sees, frozen: files in the run's directory, the same at every attempt.

`input.json` is the head; the examples lie beside it, a row a line, in an order that follows from what they say, so that
the same records in any order of arrival give the same files (see `LoraManifest`). The child gets nothing else.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from worker import __version__
from worker.durable import read_file, replace_file
from worker.learning.offline_model import Window
from worker.models.gate import GateConfig
from worker.training.inputs import FrozenFacts
from worker.training.results import INPUT_FILE

TRAIN_FILE = "train.jsonl"
HELD_OUT_FILE = "held_out.jsonl"
MANIFEST_FILE = "manifest.json"
#: Where an attempt leaves, below `output_dir`, what the next one goes on from.
CHECKPOINT_DIR = "checkpoint"

Objective: TypeAlias = Literal["sft", "dpo"]

_INPUT_LIMIT = 16_000_000
#: Largest file of examples; `worker.training.lora.data` takes no more than fits.
EXAMPLES_LIMIT = 512_000_000
#: Episodes that a row names; the manifest names all.
EPISODES_NAMED = 20


class LoraConfig(Struct, frozen=True, kw_only=True):
    """What an adapter is made and judged by, beside the data; its hash is part of a run's identity.

    The fields are the settings `SWARM_LORA_...` of the same name (worker/lora_settings.py), where they are described.
    """

    base_model: str  # a directory or GGUF file (absolute), else a hub id
    objective: Objective = "sft"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    epochs: int = 3
    batch_size: int = 4
    gradient_accumulation: int = 4
    learning_rate: float = 2e-4
    max_seq_length: int = 2048
    dpo_beta: float = 0.1
    min_examples: int = 20
    max_episodes: int = 20_000
    device: Literal["auto", "cpu", "cuda"] = "auto"
    holdout: float = 0.2  # share of tasks held out for the gate; the files are split already
    producer_share: float = 1.0
    gate: GateConfig = GateConfig()
    seed: int = 42  # the original's default
    worker_version: str = __version__

    @property
    def hash(self) -> str:
        """SHA-256 over canonical JSON, 16 hex digits."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:16]

    @property
    def shape(self) -> str:
        """The hash without what says only whether an adapter is wanted, which shapes neither its data nor a weight."""
        return replace(self, gate=GateConfig(), min_examples=0).hash


class LoraSurroundings(Struct, frozen=True, kw_only=True):
    """How it is trained on this machine: nothing in here changes the weights; the last two decide its GGUF file."""

    output_dir: str  # <lora_output_dir>/<run_id>, absolute: checkpoint/, adapter/, model.json, result.json
    checkpoint_steps: int = 50
    converter: str | None = None  # a command with {adapter}, {output} and maybe {base}, for a base that is no llama
    serving_base: str | None = None  # the GGUF file that llama.cpp serves, which the adapter is checked against


class LoraChampion(Struct, frozen=True, kw_only=True):
    """The live adapter, which a new one is compared with."""

    sha256: str  # of its model.json
    directory: str  # of its registered version, absolute: model.json and adapter/


class LoraExample(Struct, frozen=True, kw_only=True):
    """A row of `train.jsonl` or `held_out.jsonl`: each text once, however often it was lived."""

    prompt: str  # the user's message
    chosen: str  # the wanted answer
    system: str | None = None
    rejected: str | None = None  # dpo: the answer that is not wanted
    learn_model: str
    #: Action names where the answer is a sequence of them, joined by `worker.episodes.worker_task.ARROW`; else empty.
    actions: list[str] = []
    episodes: list[str]  # ids, sorted, at most `EPISODES_NAMED`; of a pair the chosen one's
    times: int = 1  # how many episodes (or pairs) said the same
    #: Held out, though the same prompt is trained on too, from another task: the gate judges by the others.
    seen: bool = False


class LoraInput(Struct, frozen=True, kw_only=True):
    """`input.json`. Everything the child reads, but for the rows."""

    format: Literal[1] = 1
    kind: Literal["lora"] = "lora"
    run_id: str
    scenario: str
    config: LoraConfig
    surroundings: LoraSurroundings
    champion: LoraChampion | None
    window: Window
    facts: FrozenFacts
    #: SHA-256 of the files beside it. The manifest's is `AdapterModel.data_sha256`: it follows from the data alone.
    train_sha256: str
    held_out_sha256: str
    manifest_sha256: str
    train_examples: int
    held_out_examples: int

    @property
    def shape(self) -> str:
        """What of the input shapes the adapter's weights: a checkpoint may be gone on from while this is the same."""
        return f"{self.config.shape} {self.train_sha256}"


def write_lora_input(run_dir: Path, given: LoraInput) -> None:
    """Put `input.json` in the run's directory, last of all, read-only for the child. Canonical JSON."""
    replace_file(run_dir / INPUT_FILE, msgspec.json.encode(given, order="sorted"), mode=0o400)


def read_lora_input(run_dir: Path) -> tuple[LoraInput, str]:
    """`input.json` and its SHA-256, once the files beside it were found whole.

    Raises OSError, ValueError or `msgspec.DecodeError`.
    """
    data = read_file(run_dir / INPUT_FILE, limit=_INPUT_LIMIT)
    given = msgspec.json.decode(data, type=LoraInput)
    for name, expected in (
        (TRAIN_FILE, given.train_sha256),
        (HELD_OUT_FILE, given.held_out_sha256),
        (MANIFEST_FILE, given.manifest_sha256),
    ):
        with (run_dir / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise ValueError(f"{run_dir / name} is not what {INPUT_FILE} says: it was changed or torn")
    return given, hashlib.sha256(data).hexdigest()


def read_examples(path: Path) -> list[LoraExample]:
    """The rows of one file, in its order. Raises OSError, ValueError or `msgspec.DecodeError`."""
    return msgspec.json.Decoder(LoraExample).decode_lines(read_file(path, limit=EXAMPLES_LIMIT))
