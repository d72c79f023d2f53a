"""The configured command that makes a GGUF adapter where the base is no llama."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from worker.errors import ConfigurationError
from worker.training.last_words import last_words
from worker.training.limits import EXIT_NOT_CONVERTED

#: Longest a conversion may take, in seconds; llama.cpp's takes a few, most of them to start Python.
CONVERTER_SECONDS = 1_800.0
_TAIL = 2_000


class ConversionFailed(ConfigurationError):
    """The configured converter made no adapter of what was trained; started again, only that is to be done."""

    exit_code = EXIT_NOT_CONVERTED


def convert(command: str, places: Mapping[str, Path], *, seconds: float = CONVERTER_SECONDS) -> None:
    """Run `command`, its {base}, {adapter} and {output} replaced; no shell. The end of what it says goes to stderr.

    Raises `ConversionFailed` where it cannot be started, fails, takes too long or leaves no output.
    """
    arguments = converter_arguments(command, places)
    try:
        # In our process group, so that it ends with the training.
        done = subprocess.run(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds,
            check=False,
        )  # fmt: skip
    except OSError as error:
        raise ConversionFailed(f"SWARM_LORA_CONVERTER: {arguments[0]} cannot be started: {error}") from error
    except subprocess.TimeoutExpired as error:
        _pass_on(error.stdout)
        raise ConversionFailed(f"SWARM_LORA_CONVERTER: it was not done after {seconds:g} s") from error
    said = last_words(_pass_on(done.stdout)) or "it said nothing"
    if done.returncode != 0:
        raise ConversionFailed(f"SWARM_LORA_CONVERTER: it ended with status {done.returncode}: {said}")
    if not places["output"].is_file():
        raise ConversionFailed(f"SWARM_LORA_CONVERTER: it ended well, but left no {places['output']}: {said}")


def _pass_on(output: bytes | None) -> str:
    """Say it in our own last words, which the worker logs: also where it ended well, since what it made may be junk."""
    said = (output or b"").decode("utf-8", "replace").strip()[-_TAIL:]
    if said:
        sys.stderr.write(f"{said}\n")
    return said


def converter_arguments(command: str, places: Mapping[str, Path]) -> list[str]:
    """The command's words with the places in them; `ConfigurationError` where one is missing or another is named.

    It may do without {base}: what was trained on may be a GGUF file, and llama.cpp's converter wants its directory.
    """
    for place in ("adapter", "output"):
        if f"{{{place}}}" not in command:
            raise ConfigurationError(f"SWARM_LORA_CONVERTER: {{{place}}} is missing in it: {command}")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigurationError(f"SWARM_LORA_CONVERTER: it is no command line: {error}: {command}") from error
    try:
        return [word.format_map(dict(places)) for word in words]
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"SWARM_LORA_CONVERTER: only {{base}}, {{adapter}} and {{output}} are replaced: {command}"
        ) from error
