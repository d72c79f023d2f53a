"""What commands print for people: settings as they are written, values in words, nothing that moves the cursor."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from worker.broker.answers import Answer
from worker.cli import cli, commands
from worker.cli.commands import _print_answer
from worker.cli.common import flat, shown
from worker.cli.models import _readable
from worker.cli.written import default, form, written
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
    assert form("processor_mode") == "offline|lora|full"
    text = CliRunner().invoke(cli, ["run", "--help"]).output
    assert "--apply-mode manual|auto" in text
    assert "default: 192" in " ".join(text.split())


@pytest.mark.parametrize(("command", "flag"), [("run", "--"), ("check", "--"), ("describe", "SWARM_")])
def test_settings_are_listed_in_groups_and_those_of_lora_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, flag: str
) -> None:
    """A newcomer met forty of them before the broker's address."""
    monkeypatch.setenv("SWARM_DATA_DIR", str(tmp_path))
    words = [command] if command == "describe" else [command, "--help"]
    # What stands first in each line, a flag's or a variable's name as a setting's.
    names = [
        line.strip().partition("  ")[0].partition(" TEXT")[0].removeprefix(flag).lower().replace("-", "_").rstrip(":")
        for line in CliRunner().invoke(cli, words).output.splitlines()
    ]
    places = [
        names.index(name)
        for name in (
            "what is served, where things are", "amqp_url", "data_dir", "episodes",
            "lora: what is trained", "lora_base_model", "lora: vllm", "vllm_models_dir",
        )
    ]  # fmt: skip
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("words", "useless"),
    [
        (["models"], "--amqp-url"),
        (["models", "show"], "--amqp-url"),
        (["sessions", "merged"], "--amqp-url"),
        (["quarantine", "list"], "--amqp-url"),
        (["export", "records"], "--amqp-url"),
        (["backup"], "--amqp-url"),
        (["train-now"], "--data-dir"),
        (["pause"], "--data-dir"),
        (["dead", "list"], "--store-url"),
    ],
    ids=str,
)
def test_a_command_has_no_flag_that_it_cannot_use(words: list[str], useless: str) -> None:
    assert useless not in CliRunner().invoke(cli, [*words, "--help"]).output
    for both in ("status", "apply", "rollback"):
        assert {"--amqp-url", "--data-dir"} <= set(CliRunner().invoke(cli, [both, "--help"]).output.split())


@pytest.mark.parametrize(
    "words", [["models", "--json", "show", "1"], ["sessions", "--scenario", "S", "merged"]], ids=str
)
def test_a_flag_before_the_subcommand_is_wrong_usage(words: list[str]) -> None:
    """It was passed over in silence."""
    told = CliRunner().invoke(cli, words)
    assert (told.exit_code, f"write {words[1]} behind" in told.output) == (2, True)


def test_no_command_is_cut_short_in_the_list() -> None:
    for path in ([], ["quarantine"], ["export"], ["models"]):
        assert "..." not in CliRunner().invoke(cli, [*path, "--help"]).output.partition("Commands:")[2]


class Told:
    """A worker that tells, of each scenario, which models its aliases name."""

    def __init__(self, aliases: dict[str, dict[str, str]]) -> None:
        self.scenarios = {name: {"aliases": told} for name, told in aliases.items()}

    @asynccontextmanager
    async def client(self, _settings: Settings) -> AsyncIterator[None]:
        yield None

    async def answers(self, _client: None) -> AsyncIterator[Answer]:
        yield Answer(command_id="c", worker="w", status="done", result={"scenarios": self.scenarios})


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Scenarios that commands were sent to; the data directory holds no store."""
    to: list[str] = []
    monkeypatch.setattr(commands, "carry", lambda *words, **_: to.append(words[3]))
    told = Told({"checkout": {}, "search": {"candidate": "1" * 32}})
    monkeypatch.setattr(commands, "control_client", told.client)
    monkeypatch.setattr(commands, "_ask_status", told.answers)
    monkeypatch.setenv("SWARM_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SWARM_SCENARIOS", "checkout")
    return to


@pytest.mark.parametrize(
    "words", [("apply",), ("train-now",), ("rollback",), ("rebuild",), ("quarantine", "replay"), ("dead", "replay")]
)
def test_a_command_takes_the_only_scenario_there_is(
    sent: list[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """Of several one has to be named; which was not, is wrong usage and no wrong setting."""
    for module in ("quarantine", "dead"):
        monkeypatch.setattr(f"worker.cli.{module}.carry", lambda *words, **_: sent.append(words[3]))
    assert CliRunner().invoke(cli, words).exit_code == 0
    monkeypatch.setenv("SWARM_SCENARIOS", "checkout,search")
    result = CliRunner().invoke(cli, words)
    assert (result.exit_code, "--scenario NAME" in result.output) == (2, True)
    assert sent == ["checkout"]


@pytest.mark.parametrize("command", ["apply", "rollback"])
def test_an_id_says_alone_which_scenario_is_meant(
    sent: list[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Where the store is on another machine the workers know it."""
    monkeypatch.setenv("SWARM_SCENARIOS", "checkout,search")
    assert CliRunner().invoke(cli, [command, "--model", "1" * 32]).exit_code == 0
    assert CliRunner().invoke(cli, [command, "--model", "2" * 32]).exit_code == 2
    assert CliRunner().invoke(cli, [command, "--model", "3"]).exit_code == 2
    assert sent == ["search"]


def test_a_hostile_name_writes_no_control_sequence() -> None:
    assert shown("a\x1b[2J\u202eb") == "a\\x1b[2J\\x202eb"
    assert shown([True, None, "x"]) == "yes, , x"


def test_a_document_becomes_rows() -> None:
    document: dict[str, Any] = {"gate": {"verdict": "blessed", "reasons": []}, "made_at_ms": None, "none": "", "n": 0}
    assert list(flat(document)) == [("gate.verdict", "blessed"), ("made_at", "never"), ("n", 0)]
    document = {"window": [1, 5], "p_value": 0.0, "gate": {"reasons": ["more, and better", "by chance"]}}
    assert list(flat(document)) == [
        ("window", [1, 5]), ("p_value", "< 0.001"), ("gate.reasons", "more, and better"), ("", "by chance")
    ]  # fmt: skip


def test_an_adapter_is_shown_with_a_line_for_each_file_and_what_is_long_last() -> None:
    file = {"path": "peft/adapter_model.safetensors", "sha256": "5ad8", "size": 69032}
    fields = {"lineage": {"seed": 4}, "metrics": {}, "gate_verdict": "blessed", "adapter": {"files": [file, file]}}
    line = "peft/adapter_model.safetensors, 69,032 bytes, sha256 5ad8"
    assert list(flat(_readable(fields))) == [
        ("gate_verdict", "blessed"), ("adapter.files", line), ("", line), ("lineage.seed", 4)
    ]  # fmt: skip


def test_an_answer_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """People read `applied.applied  no`; programs still do."""
    told = {"applied": {"applied": False, "reason": "apply mode is manual"}, "gate": {"verdict": "blessed"}}
    result = {"offline": {"state": "skipped"}, "lora": told, "detail": ""}
    answer = Answer(command_id="c", worker="w", status="done", result=result)
    _print_answer("train-now", answer, as_json=False)
    rows = [re.split(" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [
        ["offline state", "skipped"], ["lora applied", "no"], ["lora why not applied", "apply mode is manual"],
        ["lora gate", "blessed"],
    ]  # fmt: skip
    _print_answer("train-now", answer, as_json=True)
    assert '"applied":{"applied":false' in capsys.readouterr().out
