"""From settings to what one scenario means by them: its rules, learn models, trigger, apply mode. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from worker.episodes.dependency_graph import DependencyGraphLearnModel
from worker.episodes.dpo import DpoLearnModel
from worker.episodes.model import LearnModel
from worker.episodes.rules import Rules
from worker.episodes.worker_decision_sequence import WorkerDecisionSequenceLearn
from worker.episodes.worker_task import WorkerTaskLearn
from worker.errors import ConfigurationError
from worker.learning.trigger_text import TriggerSyntaxError, parse_trigger
from worker.learning.triggers import TrainTrigger
from worker.settings import ScenarioOptions, Settings

_NO_OPTIONS = ScenarioOptions()


def options_of(settings: Settings, scenario: str) -> ScenarioOptions:
    """What the scenario sets for itself."""
    return settings.scenario_options.get(scenario, _NO_OPTIONS)


def rules_of(settings: Settings, scenario: str) -> Rules:
    """The scenario's terminal, system and available actions."""
    own = options_of(settings, scenario)
    return Rules(
        terminal_actions=frozenset(name.lower() for name in own.terminal_actions or settings.terminal_actions),
        system_events=frozenset(name.lower() for name in own.system_events or settings.system_events),
        available_actions=own.available_actions or (),
        system_prompt=own.system_prompt,
        holdout=settings.holdout,
    )


def learn_models_of(settings: Settings, scenario: str) -> list[LearnModel]:
    """The learn models that run on the scenario, in the order named."""
    own = options_of(settings, scenario)
    rules = rules_of(settings, scenario)
    made: list[LearnModel] = []
    for name in own.learn_models or settings.learn_models:
        match name:
            case "worker_decision_sequence":
                sequence = WorkerDecisionSequenceLearn(rules=rules)
                if rules.system_prompt:
                    sequence = sequence.with_system_prompt(rules.system_prompt)
                if rules.available_actions:
                    sequence = sequence.with_available_actions(*rules.available_actions)
                made.append(sequence)
            case "worker_task":
                task = WorkerTaskLearn(rules=rules)
                made.append(task.with_system_prompt(rules.system_prompt) if rules.system_prompt else task)
            case "dependency_graph":
                made.append(DependencyGraphLearnModel())
            case "dpo":
                made.append(DpoLearnModel(rules=rules))
            case _:
                raise ConfigurationError(f"SWARM_LEARN_MODELS: there is no learn model {name!r}")
    return made


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


def outcome_model(models: Sequence[LearnModel]) -> str:
    """Whose episodes' outcomes count for quality and drift: the first learn model."""
    return models[0].name if models else ""
