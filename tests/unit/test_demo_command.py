"""The demo's command where it cannot begin."""

from __future__ import annotations

from importlib import import_module

import pytest
from click.testing import CliRunner

from worker.cli import cli
from worker.errors import ConfigurationError


def test_without_its_extra_it_says_how_to_come_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And every other command works without it: nothing of it is imported at the top."""
    monkeypatch.setattr(import_module("worker.cli.demo"), "find_spec", lambda name: name == "plotext" or None)
    error = CliRunner().invoke(cli, ["demo"]).exception
    assert isinstance(error, ConfigurationError)
    assert "needs gymnasium; use `make demo`" in str(error)
