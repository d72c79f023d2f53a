"""What deploy/ and compose.yaml say of the worker is true: names of settings and metrics, versions, limits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from worker.ops.metrics import make_registry
from worker.ops.probe import main as probe
from worker.settings import Settings
from worker.wire.limits import MAX_BODY

ROOT = Path(__file__).parents[2]
_FILES = [ROOT / "compose.yaml", *(path for path in sorted((ROOT / "deploy").rglob("*")) if path.is_file())]
_NOT_SETTINGS = {"SWARM_IMAGE", "SWARM_DEMO_IMAGE", "SWARM_SECRETS_DIR"}


class _Everything(dict[str, Any]):
    """A status in which every figure is there, also those within others."""

    def get(self, key: str, default: Any = None) -> Any:
        return self

    def __missing__(self, key: str) -> Any:
        return self

    def __float__(self) -> float:
        return 1.0


def _metric_names() -> set[str]:
    registry, collector = make_registry()
    collector.status = {"scenarios": {"s": _Everything()}, "counters": _Everything()}
    return set(re.findall(r"^(\w+)[{ ]", generate_latest(registry).decode(), re.MULTILINE))


@pytest.mark.parametrize("path", _FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_setting_and_metric_named_in_deploy_exists(path: Path) -> None:
    """A variable nobody reads, or an alert on a metric nobody gives, would never be noticed."""
    text = path.read_text()
    settings = {f"SWARM_{name.upper()}" for name in Settings.model_fields} | _NOT_SETTINGS
    assert set(re.findall(r"\bSWARM_[A-Z][A-Z_]*[A-Z]\b", text)) <= settings
    assert set(re.findall(r"\bswarm_[a-z_]+\b", text)) <= _metric_names()


def test_image_and_makefile_use_the_same_uv() -> None:
    """One lock file, one resolver."""
    versions = {
        re.search(r"UV_VERSION\s*:?=\s*(\S+)", (ROOT / name).read_text()).group(1)  # type: ignore[union-attr]  # fails if missing
        for name in ("Makefile", "deploy/Dockerfile")
    }
    assert len(versions) == 1


def test_compose_stops_the_worker_later_than_it_stops_itself() -> None:
    """The engine's SIGKILL must not come while the worker still drains."""
    worker = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["worker"]
    assert int(worker["stop_grace_period"].removesuffix("s")) > Settings.model_fields["shutdown_grace"].default


def test_the_broker_takes_every_body_that_the_worker_takes() -> None:
    """The broker's own limit is the wider one, so that too large a body is quarantined with a reason."""
    found = re.search(r"^max_message_size = (\d+)$", (ROOT / "deploy/rabbitmq/rabbitmq.conf").read_text(), re.MULTILINE)
    assert found is not None
    assert int(found.group(1)) > MAX_BODY


def test_the_probe_of_a_worker_that_is_not_there_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No answer is no health, and no traceback either."""
    monkeypatch.setenv("SWARM_HTTP_HOST", "0.0.0.0")  # noqa: S104 - as in a container
    monkeypatch.setenv("SWARM_HTTP_PORT", "1")
    assert probe([]) == 1
    assert "no worker answers on localhost:1" in capsys.readouterr().out
