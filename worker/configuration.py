"""From settings to what one scenario means by them: its rules, learn models, trigger, apply mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from msgspec.structs import replace
from pydantic import SecretStr

from worker.episodes.model import LearnModel
from worker.episodes.projection import learn_models
from worker.episodes.rules import Rules
from worker.errors import ConfigurationError
from worker.learning.trigger_text import TriggerSyntaxError, parse_trigger
from worker.learning.triggers import TrainTrigger
from worker.settings import ScenarioOptions, Settings
from worker.wire.signing import parse_keys

_NO_OPTIONS = ScenarioOptions()


def options_of(settings: Settings, scenario: str) -> ScenarioOptions:
    """What the scenario sets for itself."""
    return settings.scenario_options.get(scenario, _NO_OPTIONS)


def rules_of(settings: Settings, scenario: str) -> Rules:
    """The scenario's terminal, system and available actions."""
    own = options_of(settings, scenario)
    # Compared with None: an empty list is a choice too.
    terminal = settings.terminal_actions if own.terminal_actions is None else own.terminal_actions
    system = settings.system_events if own.system_events is None else own.system_events
    return Rules(
        terminal_actions=frozenset(name.lower() for name in terminal),
        system_events=frozenset(name.lower() for name in system),
        available_actions=own.available_actions or (),
        system_prompt=own.system_prompt,
        holdout=settings.holdout,
    )


def learn_models_of(settings: Settings, scenario: str, seen: Sequence[str] = ()) -> list[LearnModel]:
    """The learn models that run on the scenario, in the order named.

    `seen` are the actions that examples offer where the scenario names none: those of its own world, since the
    original's built-in list is about troubleshooting. Cutting and judging do not depend on them.
    """
    own = options_of(settings, scenario).learn_models
    rules = rules_of(settings, scenario)
    if not rules.available_actions:
        rules = replace(rules, available_actions=tuple(seen))
    return learn_models(settings.learn_models if own is None else own, rules)


def trigger_of(settings: Settings, scenario: str) -> TrainTrigger:
    """The scenario's trigger; a mistake in its text names the setting."""
    own = options_of(settings, scenario).trigger
    try:
        return parse_trigger(own or settings.trigger)
    except TriggerSyntaxError as error:
        setting = f"SWARM_SCENARIO_OPTIONS, {scenario}, trigger" if own else "SWARM_TRIGGER"
        raise ConfigurationError(f"{setting}: {error}") from None


def apply_mode_of(settings: Settings, scenario: str) -> Literal["manual", "auto"]:
    """The scenario's apply mode."""
    return options_of(settings, scenario).apply_mode or settings.apply_mode


def base_model(settings: Settings) -> str:
    """What adapters are trained on: an absolute path where it is there, since the child works elsewhere; else a hub id.

    Empty where none is set.
    """
    name = settings.lora_base_model or ""
    path = Path(name).expanduser()
    return str(path.absolute()) if name and path.exists() else name


def serving_base(settings: Settings) -> Path | None:
    """The GGUF file that llama.cpp serves: the one that is set, else the base model where it is such a file."""
    if settings.lora_serving_base is not None:
        return settings.lora_serving_base.absolute()
    base = Path(base_model(settings))
    return base if base.suffix == ".gguf" else None


def outcome_model(models: Sequence[LearnModel]) -> str:
    """Whose episodes triggers count, and whose outcomes quality and drift go by: the first learn model."""
    return models[0].name if models else ""


def control_keys(settings: Settings) -> Mapping[str, bytes]:
    """The keys of SWARM_CONTROL_KEY by id; none where it is not set."""
    if settings.control_key is None:
        return {}
    try:
        return parse_keys(settings.control_key.get_secret_value())
    except ValueError as error:
        raise ConfigurationError(f"SWARM_CONTROL_KEY: {error}") from None


def secrets_of(settings: Settings) -> list[str]:
    """Every secret of the settings as it might turn up in a text: whole, and in its parts."""
    found = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            found += _forms(name, value.get_secret_value())
    return [*found, *_password_in(settings.store_url or "")]


def _forms(name: str, secret: str) -> list[str]:
    if name == "control_key":
        return [key.strip().partition(":")[2] or key.strip() for key in secret.split(",")]
    # The broker's address itself may be told, masked; a webhook's may not, since what names it is often its key.
    return _password_in(secret) if name == "amqp_url" else [secret, *_password_in(secret)]


def _password_in(url: str) -> list[str]:
    """Also of a URL that is none: whoever mistyped it has a password in it all the same."""
    credentials = url.partition("://")[2].rpartition("@")[0]
    password = credentials.partition(":")[2]
    return [password, unquote(password)]
