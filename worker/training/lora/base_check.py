"""Whether the first training could work on the base, as far as headers of files and the GPU's driver tell.

No weights are read, at each start. Torch is asked by `check` alone, in a process of its own: it takes seconds and
hundreds of megabytes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from worker.configuration import base_model
from worker.errors import ConfigurationError
from worker.settings import Settings
from worker.training.commands import lora_environment
from worker.training.lora.base_shapes import BaseShapes, base_on_this_machine, in_a_layer, targets_fault

_GPU_PROBE = "import torch; print(torch.cuda.is_available())"
#: A cold disk reads torch for a minute.
_GPU_PROBE_SECONDS = 120


def base_faults(settings: Settings) -> Iterator[str]:
    """What is wrong with the base and the modules on it, each with its cure; nothing of one that is yet to come."""
    try:
        base = BaseShapes.of(base_on_this_machine(base_model(settings)))
    except ConfigurationError as error:
        yield str(error)
    else:
        there = {place.rpartition(".")[2] for place in base.shapes if in_a_layer(place)}
        if base.complete and (fault := targets_fault(settings.lora_target_modules, there, base.name)):
            yield fault
        yield from _serving(settings, base)


def _serving(settings: Settings, base: BaseShapes) -> Iterator[str]:
    """Shapes alone: two models of one shape are told apart by the probes of the first adapter."""
    path = settings.lora_serving_base
    if path is None or not path.is_file():
        return
    try:
        served = BaseShapes.of(path)
    except ConfigurationError as error:
        yield str(error).replace("SWARM_LORA_BASE_MODEL", "SWARM_LORA_SERVING_BASE")
        return
    for place, shapes in base.shapes.items():
        others = served.shapes.get(place, set())
        if shapes and shapes != others and (others or served.complete):
            yield (
                f"SWARM_LORA_SERVING_BASE: {served.name} is another model than {base.name}, which adapters are trained "
                f"on: {place} is {_said(others)} in it and {_said(shapes)} there; set it to the GGUF file of the same "
                "model"
            )
            return


def _said(shapes: set[tuple[int, int]]) -> str:
    return " or ".join(f"{rows} x {columns}" for rows, columns in sorted(shapes)) or "missing"


def gpu_faults(settings: Settings) -> Iterator[str]:
    """Whether a GPU that is asked for is there, for the Python that trains. Blocking."""
    # A script or launcher of the operator's may train on another machine.
    if settings.lora_device != "cuda" or settings.lora_train_script is not None or settings.lora_launcher is not None:
        return
    python = str(settings.lora_python_path or sys.executable)
    with tempfile.TemporaryDirectory() as home:
        try:
            found = subprocess.run(
                [python, "-s", "-c", _GPU_PROBE], env=lora_environment(Path(home)), capture_output=True, check=True,
                text=True, timeout=_GPU_PROBE_SECONDS,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            yield f"SWARM_LORA_DEVICE: cuda, and torch does not start in {python}: {error}; set cpu, or mend it"
            return
    if found.stdout.strip() != "True":
        yield (
            f"SWARM_LORA_DEVICE: cuda, but torch in {python} finds no GPU; set cpu or auto, or install the "
            "GPU's driver and a torch with CUDA"
        )
