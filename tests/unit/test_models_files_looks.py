"""An adapter that is served as files is read whole once, and again only once one of its files was changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.scripted_adapter import NAMES
from tests.unit.test_models_adapters import register
from tests.unit.training_world import opened, worker_over
from worker.models.adapter import adapter_directory
from worker.models.adapter_files import check_adapter
from worker.models.applicators import files


async def test_files_are_read_again_only_where_one_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look each minute at gigabytes; also one that was changed behind its times is seen."""
    read: list[Path] = []

    def counted(adapter: Any, directory: Path) -> None:
        read.append(directory)
        check_adapter(adapter, directory)

    monkeypatch.setattr(files, "check_adapter", counted)
    async with opened(tmp_path) as store:
        applicator = files.FilesApplicator(tmp_path, "lora")
        model = await register(worker_over(store, tmp_path, kinds=("lora",), adapters=applicator), 1)
        await applicator.apply(model, (adapter_directory(model).parent / "model.json").read_bytes())
        assert [await applicator.served("S") for _ in range(3)] == [model.sha256] * 3
        assert len(read) == 1
        weights = adapter_directory(model) / NAMES[1]
        before = weights.stat()
        weights.chmod(0o600)
        weights.write_bytes(b"x" * before.st_size)
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
        for _ in range(2):
            assert "damaged" in (await applicator.served("S") or "")
        assert len(read) == 3, "what is damaged is looked at each time"
        weights.unlink()
        assert "damaged" in (await applicator.served("S") or "")
