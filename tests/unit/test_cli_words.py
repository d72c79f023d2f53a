"""What commands print for people: settings as they are written, values in words, nothing that moves the cursor."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from worker.cli import cli, commands
from worker.cli.common import flat, shown
from worker.cli.written import default, form, written
from worker.errors import ConfigurationError
from worker.settings import Settings, load_settings


def test_every_default_that_help_shows_is_taken_back() -> None:
    """As a flag would give it: the words are the setting's own, and mean the default."""
    usual = load_settings(worker_id="w")
    for name in Settings.model_fields:
        if default(name) and name not in ("data_dir", "worker_id"):
            assert getattr(load_settings(worker_id="w", **{name: default(name)}), name) == getattr(usual, name), name


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("batch_age", 0.02, "20ms"),
        ("idle_timeout", 900.0, "15m"),
        ("idle_timeout", 90.5, "1m30s500ms"),
        ("training_cooldown", 0.0, "0s"),
        ("batch_age", 0.0005, "0.0005s"),
        ("holdout", 0.2, "0.2"),
        ("amqp_allow_plaintext", False, "false"),
        ("scenarios", ["a", "b"], "a, b"),
        ("scenario_options", {"a": {"trigger": "never"}}, '{"a":{"trigger":"never"}}'),
        ("gate_threshold", None, ""),
    ],
)
def test_a_setting_is_written_as_it_is_set(name: str, value: object, text: str) -> None:
    assert written(name, value) == text


def test_help_says_what_a_setting_takes() -> None:
    assert (form("topology"), form("batch_age"), form("scenarios")) == ("auto|passive", "DURATION", "A,B,...")
    assert (form("prefetch"), form("gate_threshold"), form("trigger")) == ("NUMBER", "NUMBER", "TEXT")
    text = CliRunner().invoke(cli, ["run", "--help"]).output
    assert "--apply-mode manual|auto" in text
    assert "default: 192" in " ".join(text.split())


def test_no_command_is_cut_short_in_the_list() -> None:
    for path in ([], ["quarantine"], ["export"], ["models"]):
        assert "..." not in CliRunner().invoke(cli, [*path, "--help"]).output.partition("Commands:")[2]


def test_apply_takes_the_only_scenario_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is named by its id alone; of several scenarios one has to be named."""
    sent: list[object] = []
    monkeypatch.setattr(commands, "carry", lambda *words, **_: sent.append(words[3]))
    monkeypatch.setenv("SWARM_SCENARIOS", "checkout")
    assert CliRunner().invoke(cli, ["apply", "--model", "0" * 32]).exit_code == 0
    monkeypatch.setenv("SWARM_SCENARIOS", "checkout,search")
    with pytest.raises(ConfigurationError, match="--scenario"):
        CliRunner().invoke(cli, ["apply", "--model", "0" * 32], catch_exceptions=False)
    assert sent == ["checkout"]


def test_a_hostile_name_writes_no_control_sequence() -> None:
    assert shown("a\x1b[2J\u202eb") == "a\\x1b[2J\\x202eb"
    assert shown([True, None, "x"]) == "yes, , x"


def test_a_document_becomes_rows() -> None:
    document = {"gate": {"verdict": "blessed", "reasons": []}, "made_at_ms": None, "nothing": None, "n": 0}
    assert list(flat(document)) == [
        ("gate.verdict", "blessed"), ("gate.reasons", []), ("made_at", "never"), ("n", 0)
    ]  # fmt: skip
