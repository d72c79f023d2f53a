"""From settings to a scenario: what it sets for itself wins, what it leaves out follows the general settings."""

from __future__ import annotations

import pytest

from worker.app import WorkerBuilder
from worker.configuration import apply_mode_of, learn_models_of, rules_of, trigger_of
from worker.errors import ConfigurationError
from worker.settings import Settings

OWN = {
    "apply_mode": "auto",
    "trigger": "count(3)",
    "terminal_actions": ["Solved"],
    "learn_models": ["worker_task"],
    "available_actions": ["Look", "Solved"],
}


def settings(**changes: object) -> Settings:
    return Settings.model_validate({"scenarios": ["own", "plain"], "scenario_options": {"own": OWN}, **changes})


def test_a_scenario_may_set_its_own_rules() -> None:
    given = settings(terminal_actions=["done"])
    assert rules_of(given, "own").is_terminal("SOLVED")
    assert not rules_of(given, "own").is_terminal("done")
    assert rules_of(given, "plain").is_terminal("Done")
    assert [model.name for model in learn_models_of(given, "own")] == ["worker_task"]
    assert len(learn_models_of(given, "plain")) == 4
    assert (apply_mode_of(given, "own"), apply_mode_of(given, "plain")) == ("auto", "manual")


def test_available_actions_of_a_scenario_reach_its_learn_models() -> None:
    """The original's built-in list is about troubleshooting, wrong for everybody else (fault 39)."""
    own = settings(scenario_options={"own": {"available_actions": ["Look", "Solved"]}})
    sequence, _, _, preference = learn_models_of(own, "own")
    assert getattr(sequence, "available_actions", None) == ("Look", "Solved")
    assert getattr(preference, "available_actions", None) == ("Look", "Solved")


def test_examples_of_a_scenario_that_names_no_actions_offer_those_that_were_seen() -> None:
    model = learn_models_of(settings(), "plain", ["climb", "look"])[0]
    assert getattr(model, "available_actions", None) == ("climb", "look")
    named = learn_models_of(settings(scenario_options={"own": {"available_actions": ["Look"]}}), "own", ["climb"])[0]
    assert getattr(named, "available_actions", None) == ("Look",)


def test_an_empty_list_of_a_scenario_is_a_choice_too() -> None:
    """A world without terminal actions, whose sequences end with their sessions."""
    own = settings(scenario_options={"own": {"terminal_actions": []}})
    assert not rules_of(own, "own").is_terminal("done")


def test_a_trigger_that_does_not_parse_names_its_setting() -> None:
    with pytest.raises(ConfigurationError, match="SWARM_TRIGGER"):
        trigger_of(settings(trigger="count(many)"), "plain")
    broken = settings(scenario_options={"own": {"trigger": "evry(1h)"}})
    with pytest.raises(ConfigurationError, match="SWARM_SCENARIO_OPTIONS, own"):
        trigger_of(broken, "own")


@pytest.mark.parametrize("mode", ["lora", "LoRA_only", "full", "both"])
def test_a_mode_that_cannot_run_is_refused_before_anything_starts(mode: str) -> None:
    """The original accepts it and fails when a trigger fires (fault 17)."""
    with pytest.raises(ConfigurationError, match="SWARM_PROCESSOR_MODE"):
        WorkerBuilder(settings(processor_mode=mode)).build()


def test_a_worker_without_a_scenario_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="SWARM_SCENARIOS"):
        WorkerBuilder(settings(scenarios=[], scenario_options={})).build()
