"""Settings: where they come from, and what is said of those that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.cli.commands import train_now
from worker.cli.describe import masked
from worker.cli.run import run
from worker.errors import ConfigurationError
from worker.setting_types import parse_duration
from worker.settings import Settings, load_settings, unknown_variables


@pytest.fixture(autouse=True)
def _nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No .env, no secrets, no variables of the person who runs the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWARM_SECRETS_DIR", str(tmp_path / "none"))
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SWARM_{name.upper()}", raising=False)


def test_the_defaults_are_those_of_the_original() -> None:
    """check_interval 10 s, offline, 20 sessions, manual apply, history 5, 100 episodes or one hour (domain 7)."""
    settings = load_settings()
    assert (settings.check_interval, settings.processor_mode, settings.max_sessions) == (10.0, "offline", 20)
    assert (settings.apply_mode, settings.max_history) == ("manual", 5)
    assert settings.trigger == "count(100) or every(1h)"


def test_a_flag_wins_over_the_environment_over_dot_env_over_the_secrets_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    monkeypatch.setenv("SWARM_SECRETS_DIR", str(secrets))
    (secrets / "swarm_trigger").write_text("count(1)")
    assert load_settings().trigger == "count(1)"
    (tmp_path / ".env").write_text("SWARM_TRIGGER=count(2)\n")
    assert load_settings().trigger == "count(2)"
    monkeypatch.setenv("SWARM_TRIGGER", "count(3)")
    assert load_settings().trigger == "count(3)"
    assert load_settings(trigger="count(4)").trigger == "count(4)"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10.0), ("250ms", 0.25), ("15m", 900.0), ("1h30m", 5400.0), ("2d", 172_800.0), ("7", 7.0), (0.5, 0.5)],
)
def test_durations_are_read_as_people_write_them(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "10x", "-5s", "1h-5m"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 10s"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"scenarios": "good,../bad"}, "SWARM_SCENARIOS: '../bad' is no scenario name"),
        ({"scenarios": "a\n"}, "SWARM_HTTP_PORT"),
        ({"worker_id": "a b"}, "SWARM_WORKER_ID: 'a b' is no name"),
        ({"learn_models": "worker_task,nonsense"}, "'nonsense' is unknown; choose from"),
        ({"applicator": "webhook"}, "set SWARM_WEBHOOK_URL"),
        ({"webhook_url": "ftp://host/x"}, "SWARM_WEBHOOK_URL: it must begin with"),
        ({"check_interval": "often"}, "SWARM_CHECK_INTERVAL"),
        ({"apply_mode": "always"}, "SWARM_APPLY_MODE: 'always' is unknown; choose from manual, auto"),
        ({"prefetch": "5000"}, "SWARM_PREFETCH"),
        ({"quarantine_bytes": "1000"}, "SWARM_QUARANTINE_BYTES"),
        ({"scenario_options": '{"a": {"tigger": "manual"}}'}, "SWARM_SCENARIO_OPTIONS, a, tigger: "),
        ({"producers": '{"node": "n-*"}'}, "SWARM_PRODUCERS, node: write a list"),
        ({"scenario_options": "{a: 1}"}, "SWARM_SCENARIO_OPTIONS: this is no JSON object"),
        (
            {"scenario_options": '{"a": {"learn_models": ["nonsense"]}}'},
            "SWARM_SCENARIO_OPTIONS, a, learn_models: 'nonsense'",
        ),
        ({"disabled_commands": "shutdown,halt"}, "SWARM_DISABLED_COMMANDS: 'halt' is no command; choose from shutdown"),
        ({"scenarios": "a,b,a"}, "SWARM_SCENARIOS: 'a' stands there twice"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, str], told: str
) -> None:
    """The environment adds a second mistake where the first is one that is stripped away."""
    if flags == {"scenarios": "a\n"}:
        monkeypatch.setenv("SWARM_HTTP_PORT", "many")
    with pytest.raises(ConfigurationError) as raised:
        load_settings(**flags)
    assert told in str(raised.value)
    assert raised.value.exit_code == 78


@pytest.mark.parametrize("road", ["flag", "environment"])
def test_settings_per_scenario_are_json_wherever_they_come_from(monkeypatch: pytest.MonkeyPatch, road: str) -> None:
    text = '{"a": {"apply_mode": "auto"}}'
    if road == "environment":
        monkeypatch.setenv("SWARM_SCENARIO_OPTIONS", text)
    settings = load_settings(**({"scenario_options": text} if road == "flag" else {}))
    assert settings.scenario_options["a"].apply_mode == "auto"


def test_a_misspelt_variable_is_found_with_the_one_that_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_TRIGER", "never")
    assert unknown_variables()["SWARM_TRIGER"] == "SWARM_TRIGGER"


def test_no_secret_can_be_given_on_the_command_line() -> None:
    """Everybody on the machine reads it there (`ps`), and the shell keeps it."""
    flags = {option for command in (run, train_now) for one in command.params for option in one.opts}
    assert "--amqp-url" in flags
    assert not flags & {"--control-key", "--webhook-key", "--webhook-url"}


@pytest.mark.parametrize("password", ["canary", "can@ary", "can/ary", "can?ary", "can[ary"])
def test_describe_hides_a_password_that_breaks_its_url(password: str) -> None:
    assert masked(load_settings(amqp_url=f"amqp://ada:{password}@host/v"))["amqp_url"] == "amqp://***@host/v"


def test_describe_shows_no_secret() -> None:
    """Of the broker's address the place stays, of other secrets nothing."""
    settings = load_settings(
        amqp_url="amqps://ada:canary1@broker.example/v", control_key="k:canary2", webhook_url="https://h/canary3"
    )
    shown = str(masked(settings))
    assert "canary" not in shown
    assert "broker.example" in shown
