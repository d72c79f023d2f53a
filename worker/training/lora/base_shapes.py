"""The linear layers of a base model, by its files' headers: what weights of an adapter must fit. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from worker.durable import read_file
from worker.errors import ConfigurationError
from worker.models.gguf_header import read_gguf
from worker.models.safetensors_header import read_safetensors
from worker.training.commands import lora_environment

#: Linear layers outside of the decoder's layers (the head), and experts that servers keep stacked, take no adapter.
_LAYER = re.compile(r"(?:^|\.)((?:layers|h|blocks)\.\d+\..+)")
_STACKED = re.compile(r"\.experts\.")
_NO_LINEAR = re.compile(r"norm|embed|lm_head", re.IGNORECASE)
#: Names of llama.cpp, which are the same for llama, mistral, qwen and gemma; others' layers have more, and more names.
_OF_GGUF: Final = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_IN_GGUF: Final = {part: name for name, part in _OF_GGUF.items()}
_GGUF_WEIGHT = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def in_a_layer(module: str) -> bool:
    """Whether servers take an adapter of the module of this name, as PyTorch has it."""
    last = module.rpartition(".")[2]
    return bool(_LAYER.search(module)) and not _STACKED.search(f".{module}.") and not _NO_LINEAR.search(last)


def place_of_gguf(name: str) -> str | None:
    """The place of a weight that llama.cpp calls so; None where it is none of llama's."""
    found = _GGUF_WEIGHT.fullmatch(name)
    return f"layers.{found[1]}.{_OF_GGUF[found[2]]}" if found and found[2] in _OF_GGUF else None


def name_in_gguf(module: str) -> str:
    """What llama.cpp calls the weight of a module of llama's; of another the module's place in its layer."""
    place = _place(module) or module
    _, _, rest = place.partition(".")
    layer, _, part = rest.partition(".")
    return f"blk.{layer}.{_IN_GGUF[part]}.weight" if place.startswith("layers.") and part in _IN_GGUF else place


def targets_fault(targets: Sequence[str], there: Collection[str], base: str) -> str | None:
    """What is wrong with these SWARM_LORA_TARGET_MODULES on a base whose layers' modules have the last names `there`.

    By these alone: a document names an adapter's modules so.
    """
    missing = [name for name in targets if name not in there]
    return (
        f"SWARM_LORA_TARGET_MODULES: {base} has no linear layer of attention or MLP named {', '.join(missing)}; "
        f"choose from {', '.join(sorted(there))}"
        if missing
        else None
    )


@dataclass(frozen=True, slots=True)
class BaseShapes:
    """Rows and columns by a module's place in its layer: what stands before it differs between a file and PEFT."""

    name: str  # of the file or directory, for messages
    #: Several where two parts of a model have layers of the same names; none where a quantised one hides its shape.
    shapes: Mapping[str, set[tuple[int, int]]]
    complete: bool  # whether the base has no module but these

    @classmethod
    def of(cls, base: Path | None) -> Self:
        """Of a directory of safetensors or a GGUF file; of None nothing is known.

        Raises `ConfigurationError` where it cannot be read.
        """
        if base is None:
            return cls("the base", {}, complete=False)
        try:
            return cls._of_gguf(base) if base.is_file() else cls._of_directory(base)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"SWARM_LORA_BASE_MODEL: {base} cannot be read: {error}; copy or download it again"
            ) from error

    @classmethod
    def _of_directory(cls, base: Path) -> Self:
        shapes: dict[str, set[tuple[int, int]]] = {}
        for file in sorted(base.glob("*.safetensors")):
            for name, tensor in read_safetensors(file).items():
                module, _, leaf = name.rpartition(".")
                if (place := _place(module)) is None:
                    continue
                known = shapes.setdefault(place, set())
                # Those of a quantised one lie packed in integers, or under another name.
                if leaf == "weight" and tensor.type.startswith(("F", "BF")):
                    match tensor.shape:
                        case (rows, columns):
                            known.add((rows, columns))
        return cls(base.name, shapes, complete=bool(shapes))

    @classmethod
    def _of_gguf(cls, base: Path) -> Self:
        shapes: dict[str, set[tuple[int, int]]] = {}
        said = read_gguf(base, whole=False)
        for name, tensor in said.tensors.items():
            match tensor.shape:
                case (columns, rows) if place := place_of_gguf(name):
                    shapes[place] = {(rows, columns)}
        llama = said.fields.get("general.architecture") == "llama"
        return cls(base.name, shapes, complete=llama and bool(shapes))

    def check(self, module: str, rows: int, columns: int) -> None:
        """ValueError where the base has no such module, or one of another shape."""
        place = _place(module) or module
        known = self.shapes.get(place)
        if known is None and self.complete:
            raise ValueError(f"the adapter changes {place}, and {self.name} has none; was it trained on another base?")
        if known and (rows, columns) not in known:
            has = " or ".join(f"{one} x {other}" for one, other in sorted(known))
            raise ValueError(
                f"the adapter changes a {place} of {rows} x {columns}, {self.name} has {has}; was it trained on "
                "another base?"
            )


def _place(module: str) -> str | None:
    found = _LAYER.search(module)
    return None if found is None else found[1]


def base_on_this_machine(name: str) -> Path | None:
    """Where a configured base lies: the directory or file of this name, or what an earlier download of a hub id left.

    None where it was never here, as it may be where a launcher trains on another machine.
    """
    path = Path(name)
    if path.exists():
        return path
    # How huggingface_hub lays its cache out; a base is downloaded in its newest revision.
    environment = lora_environment(path)
    cache = Path(environment.get("HF_HUB_CACHE") or f"{environment['HF_HOME']}/hub")
    model = cache / f"models--{name.replace('/', '--')}"
    try:
        revision = read_file(model / "refs" / "main", limit=1_000).decode("ascii").strip()
    except (OSError, ValueError):
        return None
    found = model / "snapshots" / revision
    return found if found.is_dir() else None
