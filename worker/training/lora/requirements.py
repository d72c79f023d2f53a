"""What modes lora and full need before anything starts (the original noticed only when a trigger fired: fault 17)."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from worker.configuration import base_model
from worker.episodes.model import LearnModel
from worker.errors import ConfigurationError
from worker.models.applicators.requirements import serving_faults
from worker.models.gguf_header import is_gguf
from worker.settings import LEARN_MODELS, Settings
from worker.training.confined import COMMAND
from worker.training.lora.base_check import base_faults
from worker.training.lora.converter import converter_arguments
from worker.training.modes import ProcessorMode

#: What the extra brings, as it is imported.
PACKAGES = ("torch", "transformers", "peft", "gguf", "safetensors")
#: As the hub names them: no part begins or ends with a dot or a dash, so none of them leads up a directory.
_HUB_NAME = r"\w(?:[\w.-]{0,94}\w)?"
_HUB_ID = re.compile(rf"(?!.*(?:\.\.|--)){_HUB_NAME}(?:/{_HUB_NAME})?")
#: llama.cpp skips or refuses adapters of these (its issues #11554, #9065), and vLLM takes none of the embeddings.
_NEVER_SERVED = re.compile(r"lm_head|embed|norm|wte|wpe|modules_to_save", re.IGNORECASE)
#: Says which of the packages named behind it this Python lacks.
_PROBE = "import importlib.util, sys; print(*(n for n in sys.argv[1:] if importlib.util.find_spec(n) is None))"
_PROBE_SECONDS = 30
#: Not by a name: swarm-worker is in no package index, and what somebody puts there under it is not ours.
_INSTALL = "pip install '.[lora]' in swarm-worker's checkout"


def require_lora(
    settings: Settings,
    mode: ProcessorMode,
    learn_models: Mapping[str, Sequence[LearnModel]],
    *,
    own_applicator: bool = False,
) -> None:
    """`ConfigurationError` with a line for each fault; `own_applicator`: the settings do not choose it."""
    faults = list(lora_faults(settings, learn_models, own_applicator=own_applicator))
    if faults:
        raise ConfigurationError(f"SWARM_PROCESSOR_MODE={mode} cannot run:\n" + "\n".join(f"  {one}" for one in faults))


def lora_faults(
    settings: Settings, learn_models: Mapping[str, Sequence[LearnModel]], *, own_applicator: bool = False
) -> Iterator[str]:
    """What is wrong with the settings of LoRA, each with its cure."""
    yield from list(_base(settings)) or base_faults(settings)
    yield from _objective(settings, learn_models)
    yield from _modules(settings)
    yield from _programs(settings)
    yield from _packages(settings)
    yield from _directories(settings)
    if not own_applicator:
        yield from serving_faults(settings)


def _base(settings: Settings) -> Iterator[str]:
    name = base_model(settings)
    path = Path(name)
    if not name:
        yield (
            "SWARM_LORA_BASE_MODEL: no base model is set, and adapters are trained on one; "
            "set it to a local directory, a GGUF file or a hub id"
        )
    elif path.is_dir():
        if not (path / "config.json").is_file():
            found = sorted(path.glob("*.gguf"))
            cure = f"name its file: {found[0]}" if found else "set it to the directory that transformers wrote"
            yield f"SWARM_LORA_BASE_MODEL: {path} holds no config.json, so it is no model; {cure}"
        elif not any(path.glob("*.safetensors")):
            yield (
                f"SWARM_LORA_BASE_MODEL: {path} holds no *.safetensors; pickled weights (*.bin) are not loaded, "
                "since they can run code: convert them"
            )
    elif path.is_file():
        if not is_gguf(path):
            yield f"SWARM_LORA_BASE_MODEL: {path} is no GGUF file; set a GGUF file or a directory"
    elif name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        yield f"SWARM_LORA_BASE_MODEL: {name} is not there"
    elif not _HUB_ID.fullmatch(name):
        yield f"SWARM_LORA_BASE_MODEL: {name} is neither there nor a hub id such as LiquidAI/LFM2.5-1.2B-Instruct"


def _objective(settings: Settings, learn_models: Mapping[str, Sequence[LearnModel]]) -> Iterator[str]:
    objective = settings.lora_objective
    for scenario, models in learn_models.items():
        if not any(model.training_format.value == objective for model in models):
            running = ", ".join(model.name for model in models) or "none"
            cure = (
                "dpo" if objective == "dpo" else f"one of {', '.join(name for name in LEARN_MODELS if name != 'dpo')}"
            )
            yield (
                f"SWARM_LORA_OBJECTIVE: no learn model of {scenario} gives examples for {objective}, it has {running}; "
                f"add {cure} to SWARM_LEARN_MODELS, or change the objective"
            )


def _modules(settings: Settings) -> Iterator[str]:
    if not settings.lora_target_modules:
        yield "SWARM_LORA_TARGET_MODULES: it names none; q_proj,v_proj is the least that teaches anything"
    for name, times in Counter(settings.lora_target_modules).items():
        if times > 1:
            yield f"SWARM_LORA_TARGET_MODULES: {name} is in it {times} times; name it once"
        if _NEVER_SERVED.search(name):
            yield (
                f"SWARM_LORA_TARGET_MODULES: no server takes an adapter of {name}; name linear layers of attention and "
                "MLP, such as q_proj or down_proj"
            )


def _programs(settings: Settings) -> Iterator[str]:
    if settings.lora_python_path is not None and not shutil.which(settings.lora_python_path):
        yield f"SWARM_LORA_PYTHON_PATH: {settings.lora_python_path} is no program that can be started"
    if settings.lora_train_script is not None and not settings.lora_train_script.is_file():
        yield f"SWARM_LORA_TRAIN_SCRIPT: {settings.lora_train_script} is not there"
    if settings.lora_launcher is not None:
        yield from _template("SWARM_LORA_LAUNCHER", settings.lora_launcher, (COMMAND,))
    if settings.lora_converter is not None:
        yield from _converter(settings.lora_converter)
    if settings.lora_device == "cuda" and settings.lora_memory_mb:
        yield (
            "SWARM_LORA_MEMORY_MB: CUDA reserves far more address space than it uses, so no limit can hold; "
            "set it to 0, or SWARM_LORA_DEVICE to cpu"
        )


def _converter(command: str) -> Iterator[str]:
    try:
        converter_arguments(command, dict.fromkeys(("base", "adapter", "output"), Path()))
    except ConfigurationError as error:
        yield str(error)
    else:
        yield from _template("SWARM_LORA_CONVERTER", command, ())


def _template(setting: str, template: str, places: Sequence[str]) -> Iterator[str]:
    try:
        words = shlex.split(template)
    except ValueError as error:
        yield f"{setting}: it is no command line: {error}"
        return
    for place in places:
        if place not in template:
            yield f"{setting}: {place} is missing in it"
    if words and "{" not in words[0] and not shutil.which(words[0]):
        yield f"{setting}: there is no program {words[0]}; install it or write its whole path"


def _packages(settings: Settings) -> Iterator[str]:
    # A script or launcher of the operator's brings its own, maybe on another machine.
    if settings.lora_train_script is not None or settings.lora_launcher is not None:
        return
    if settings.lora_python_path is None:
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        where, cure = "here", f"install it: {_INSTALL}"
    elif shutil.which(settings.lora_python_path):
        where = f"in {settings.lora_python_path} (SWARM_LORA_PYTHON_PATH)"
        cure = f"install it there too ({_INSTALL}), or leave the setting out"
        try:
            missing = _missing_in(settings.lora_python_path)
        except (OSError, subprocess.SubprocessError) as error:
            yield f"SWARM_LORA_PYTHON_PATH: {settings.lora_python_path} does not run as a Python: {error}"
            return
    else:
        return  # told of already
    if missing:
        yield f"the extra lora is not installed {where} ({', '.join(missing)} missing); {cure}"


def _missing_in(python: Path) -> list[str]:
    # Without our environment: a PYTHONPATH or a secret of ours is none of its business.
    found = subprocess.run(
        [str(python), "-s", "-c", _PROBE, *PACKAGES, "msgspec", "structlog"],
        env={name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
        capture_output=True, check=True, text=True, timeout=_PROBE_SECONDS,
    )  # fmt: skip
    return found.stdout.split()


def _directories(settings: Settings) -> Iterator[str]:
    for setting, path in (
        ("SWARM_LORA_DATA_DIR", settings.lora_data_dir),
        ("SWARM_LORA_OUTPUT_DIR", settings.lora_output_dir),
    ):
        if path is not None:
            above = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
            if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
                yield f"{setting}: {above} is no directory that we may write to"
