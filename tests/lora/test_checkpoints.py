"""A checkpoint that was changed is none: what is gone on from is what was written, to the last bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from worker.training.lora.checkpoints import Checkpoints
from worker.training.lora.inputs import CHECKPOINT_DIR

pytestmark = pytest.mark.lora

Standing: TypeAlias = tuple[dict[str, nn.Parameter], torch.optim.Optimizer]


def begun(seed: int) -> Standing:
    """Two weights after one step."""
    torch.manual_seed(seed)
    parameters = {name: nn.Parameter(torch.randn(3, 2)) for name in ("a", "b")}
    optimiser = torch.optim.AdamW(parameters.values())
    for parameter in parameters.values():
        parameter.grad = torch.randn(3, 2)
    optimiser.step()
    return parameters, optimiser


def numbers(standing: Standing) -> list[torch.Tensor]:
    """All of a standing."""
    parameters, optimiser = standing
    states = [optimiser.state[parameter] for parameter in parameters.values()]
    return [*(one.detach() for one in parameters.values()), *(one for state in states for one in state.values())]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The checkpoint of seven steps."""
    Checkpoints(tmp_path, identity="mine").save(7, *begun(1))
    return tmp_path / CHECKPOINT_DIR / "latest.safetensors"


def saved_again(file: Path, **metadata: str) -> None:
    """The same numbers, with other words about them."""
    with safe_open(file, framework="pt") as before:
        tensors = {name: before.get_tensor(name) for name in before.keys()}  # noqa: SIM118 - not a mapping
        said = {**before.metadata(), **metadata}
    save_file(tensors, file, metadata={name: text for name, text in said.items() if text})


def turned(file: Path, at: int) -> None:
    """One bit of it."""
    data = bytearray(file.read_bytes())
    data[at] ^= 0x20
    file.write_bytes(data)


def replaced(file: Path, make: Callable[[Path], object]) -> None:
    """Something else in its place."""
    file.unlink()
    make(file)


def elsewhere(file: Path) -> None:
    """A link to the very file."""
    file.rename(file.parent.parent / "aside")
    file.symlink_to(file.parent.parent / "aside")


def test_what_was_written_is_gone_on_from(tmp_path: Path, file: Path) -> None:
    standing, checkpoints = begun(2), Checkpoints(tmp_path, identity="mine")

    assert checkpoints.load(*standing) == 7
    assert checkpoints.damage is None
    before = begun(1)
    for parameter in before[0].values():
        before[1].state[parameter]["step"] = torch.tensor(7.0)
    for found, expected in zip(numbers(standing), numbers(before), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_that_of_another_training_is_left_where_it_is(tmp_path: Path, file: Path) -> None:
    checkpoints = Checkpoints(tmp_path, identity="another's")

    assert (checkpoints.load(*begun(2)), checkpoints.damage) == (0, None)
    assert file.exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda file: turned(file, -1), "its SHA-256 differs", id="a number"),
        pytest.param(lambda file: turned(file, file.read_bytes().index(b"mine")), "SHA-256 differs", id="whose it is"),
        pytest.param(lambda file: saved_again(file, step="9"), "its SHA-256 differs", id="another step"),
        pytest.param(lambda file: saved_again(file, step=""), "its SHA-256 differs", id="no step"),
        pytest.param(lambda file: saved_again(file, sha256=""), "its SHA-256 differs", id="no hash"),
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:-40]), "deserializing header", id="cut off"),
        pytest.param(lambda file: file.write_bytes(b""), "deserializing header", id="empty"),
        pytest.param(lambda file: replaced(file, Path.mkdir), "is no regular file", id="a directory"),
        pytest.param(lambda file: replaced(file, os.mkfifo), "is no regular file", id="a named pipe"),
        pytest.param(elsewhere, "is no regular file", id="a link"),
    ],
)
def test_a_damaged_one_is_told_of_and_trained_over(
    tmp_path: Path, file: Path, damage: Callable[[Path], None], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(file)
    standing, checkpoints = begun(2), Checkpoints(tmp_path, identity="mine")

    assert checkpoints.load(*standing) == 0
    assert checkpoints.damage is not None
    assert words in checkpoints.damage
    assert "trained from the start" in capsys.readouterr().err
    for found, expected in zip(numbers(standing), numbers(begun(2)), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    checkpoints.save(3, *standing)
    assert Checkpoints(tmp_path, identity="mine").load(*begun(4)) == 3
