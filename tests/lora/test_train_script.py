"""The training script of deploy/: what it leaves is taken, as deploy/README.md promises."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.lora.tiny import TinyBase
from tests.lora.training_input import config, examples, write_run
from worker.models.adapter import ADAPTER_DIR, GGUF_FILE
from worker.training.child import ChildLauncher, Finished
from worker.training.commands import lora_environment
from worker.training.lora.adapter_check import AdapterCheck

pytestmark = pytest.mark.lora
_SCRIPT = Path(__file__).parents[2] / "deploy" / "train_script.py"
#: As `worker.training.confined` calls it, but that it takes its share of the processors; see `PROMPT_TRAINER`.
_PROMPT = (sys.executable, "-c", "import runpy, sys; del sys.argv[2:]; runpy.run_path(%r, run_name='__main__')")


@pytest.mark.parametrize(("least", "outcome"), [(4, "model"), (100, "nothing")])
async def test_it_leaves_what_is_registered(base: TinyBase, tmp_path: Path, least: int, outcome: str) -> None:
    write_run(tmp_path, config(base.directory, epochs=1, min_examples=least), train=examples()[:6], held_out=[])
    command = (*_PROMPT[:2], _PROMPT[2] % str(_SCRIPT))
    launcher = ChildLauncher(timeout=50, memory_mb=0, command=command, environment=lora_environment)
    end = await launcher.run(tmp_path / "run", lambda *_: None, output_dir=tmp_path / "out")

    assert isinstance(end, Finished), end
    assert end.result.outcome == outcome
    if end.model is not None:
        AdapterCheck(base=base.directory, serving=base.gguf)(end.model, tmp_path / "out" / ADAPTER_DIR)
        assert (tmp_path / "out" / ADAPTER_DIR / GGUF_FILE).exists()
        assert {file.name for file in (tmp_path / "out").iterdir()} == {"adapter", "model.json", "result.json"}
