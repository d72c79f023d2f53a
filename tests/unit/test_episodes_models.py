"""The learn models: which episodes they make, how they judge, what training text they give."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Raw

from worker.episodes.dependency_graph import DependencyGraphLearnModel
from worker.episodes.dpo import DpoConfig, DpoLearnModel, DpoPair, quality_of
from worker.episodes.episode import Episode
from worker.episodes.model import (
    ConversionError,
    EpisodeContext,
    Graph,
    InvalidEpisode,
    LearnModel,
    MissingData,
    Task,
)
from worker.episodes.projection import learn_models, project_task
from worker.episodes.rules import Rules
from worker.episodes.task import PlacedAction, TaskView
from worker.episodes.worker_decision_sequence import WorkerDecisionSequenceLearn
from worker.episodes.worker_task import PERSONA, WorkerTaskLearn
from worker.settings import LEARN_MODELS
from worker.wire.records import (
    ActionRecord,
    DependencyGraphRecord,
    Failure,
    LearnStatsRecord,
    Outcome,
    Success,
    Timeout,
    Unknown,
)

SEQUENCE = WorkerDecisionSequenceLearn()
TASK = WorkerTaskLearn()
GRAPH = DependencyGraphLearnModel()
DPO = DpoLearnModel()


def act(tick: int, action: str, *, worker: int = 0, task: str = "t", **fields: Any) -> ActionRecord:
    return ActionRecord(task_id=task, tick=tick, worker_id=worker, action=action, **fields)


def task_of(*records: ActionRecord, idle: bool = False, session: LearnStatsRecord | None = None) -> Task:
    actions = [PlacedAction(record, 1, 0, ("node", 0, 0, n)) for n, record in enumerate(records)]
    view = TaskView(scenario="s", task_id=records[0].task_id, actions=actions, idle=idle, session=session)
    return Task(view, Rules())


def graph_record(**fields: Any) -> DependencyGraphRecord:
    given: dict[str, Any] = {
        "prompt": "which order?", "response": "a, then b", "available_actions": ["a", "b"], "discover_order": ["a"],
        "not_discover_order": ["b"], "model": "m", "endpoint": "http://x", "latency_ms": 5,
    }  # fmt: skip
    return DependencyGraphRecord(**(given | fields))


def episode(name: str, outcome: Outcome, *, group: str | None = "g", mean_kpi: float | None = None) -> Episode:
    return Episode(
        episode_id=f"dpo:{name}:0:0", learn_model="dpo", outcome=outcome, actions=[name, "done"], task_id=name,
        group_id=group, worker_id=0, start_tick=1, end_tick=2, mean_kpi=mean_kpi,
    )  # fmt: skip


def opening(name: str) -> EpisodeContext:
    return EpisodeContext([act(1, name, task=name, target="api"), act(2, "done", task=name)])


def test_the_defaults_are_those_of_the_domain() -> None:
    assert (SEQUENCE.min_actions, TASK.min_actions) == (3, 2)
    assert SEQUENCE.available_actions[:2] == ("CheckStatus", "ReadLogs")
    assert SEQUENCE.system_prompt.startswith(PERSONA)
    assert (DPO.config.min_quality_gap, DPO.config.max_pairs, DPO.config.allow_reuse) == (0.1, None, False)
    assert tuple(model.name for model in (SEQUENCE, TASK, GRAPH, DPO)) == LEARN_MODELS


def test_sequences_shorter_than_the_minimum_are_dropped_and_keep_their_ordinal() -> None:
    """So the id of a sequence does not move when a short one before it grows."""
    records = [act(1, "a"), act(2, "done"), act(3, "a"), act(4, "b"), act(5, "done")]
    made = SEQUENCE.build_episodes(task_of(*records))
    assert [one.episode_id for one in made] == ["worker_decision_sequence:t:0:1"]
    assert len(SEQUENCE.with_min_actions(2).build_episodes(task_of(*records))) == 2
    assert len(TASK.build_episodes(task_of(*records))) == 2
    assert len(TASK.with_min_actions(3).build_episodes(task_of(*records))) == 1


def test_a_task_sequence_spans_its_workers_and_must_end_in_done() -> None:
    records = [act(1, "a", worker=1), act(2, "b", worker=2), act(3, "done", worker=1), act(4, "c"), act(5, "d")]
    (made,) = TASK.build_episodes(task_of(*records, idle=True))
    assert (made.episode_id, made.actions, made.worker_id) == ("worker_task:t:-:0", ["a", "b", "done"], None)
    alone = TASK.build_episodes(task_of(act(1, "a", worker=7), act(2, "done", worker=7)))
    assert [one.episode_id for one in alone] == ["worker_task:t:-:0"]


def test_an_episode_tells_where_and_how_it_was_lived() -> None:
    records = [
        act(3, "a", selection_logic="UCB1", duration_ms=5, group_id="g", session_id="run", kpi=0.5),
        act(4, "b", selection_logic="Greedy", duration_ms=6),
        act(9, "done", selection_logic="Greedy", timestamp_ms=77, policy_version="v3"),
    ]
    (made,) = SEQUENCE.build_episodes(task_of(*records))
    assert (made.task_id, made.worker_id, made.group_id, made.session_id) == ("t", 0, "g", "run")
    assert (made.start_tick, made.end_tick, made.duration_ms, made.ended_at_ms) == (3, 9, 11, 77)
    assert (made.strategy, made.mean_kpi, made.tags) == ("Greedy", 0.5, {"policy_version": "v3"})
    assert made.outcome == Success(0.5)


def test_a_sequence_model_may_leave_out_events_of_its_own() -> None:
    records = [act(1, "a"), act(2, "Ping"), act(3, "b"), act(4, "done")]
    (made,) = SEQUENCE.with_system_event("ping").build_episodes(task_of(*records))
    assert made.actions == ["a", "b", "done"]


def test_a_decision_sequence_becomes_a_question_and_the_order_of_its_actions() -> None:
    records = [act(1, "a", target="api", previous_action="start", lora="l1"), act(2, "b"), act(3, "done")]
    (made,) = SEQUENCE.build_episodes(task_of(*records))
    data = SEQUENCE.with_available_actions("a", "b", "done").convert(made, EpisodeContext(reversed(records)))
    assert data.prompt == (
        "Target: api\nAvailable actions: a, b, done\nDone before: start\nWhat is the best sequence of actions?"
    )
    assert (data.system, data.chosen, data.rejected) == (SEQUENCE.system_prompt, "a -> b -> done", None)
    assert (data.metadata.episode_id, data.metadata.model) == (made.episode_id, "worker_decision_sequence")
    assert (data.metadata.lora, data.metadata.outcome_score) == ("l1", 1.0)


def test_the_candidates_that_the_agent_had_come_before_the_list_of_the_scenario() -> None:
    records = [act(1, "a", candidates=["a", "z"]), act(2, "b"), act(3, "done")]
    (made,) = SEQUENCE.build_episodes(task_of(*records))
    assert "Available actions: a, z\n" in SEQUENCE.convert(made, EpisodeContext(records)).prompt


def test_a_task_sequence_becomes_its_subject_and_the_way_to_done() -> None:
    records = [act(1, "a"), act(2, "done")]
    (made,) = TASK.build_episodes(task_of(*records))
    data = TASK.convert(made, EpisodeContext(records))
    assert (data.system, data.prompt, data.chosen) == (PERSONA, "Task: t", "a -> done")


@pytest.mark.parametrize("outcome", [Failure("x"), Timeout(0.9), Unknown()])
def test_only_success_is_taught(outcome: Outcome) -> None:
    for model in (SEQUENCE, TASK, GRAPH):
        with pytest.raises(InvalidEpisode):
            model.convert(episode("a", outcome), opening("a"))


def test_an_episode_whose_records_are_not_there_is_missing_data() -> None:
    for model in (SEQUENCE, TASK, GRAPH):
        with pytest.raises(MissingData):
            model.convert(episode("a", Success(1.0)), opening("b"))


def test_a_batch_says_what_it_left_out_and_why() -> None:
    """The original dropped it without a word."""
    both = [(episode("a", Success(1.0)), opening("a")), (episode("b", Failure("x")), opening("b"))]
    converted = SEQUENCE.convert_batch(both)
    assert [data.metadata.episode_id for data in converted.examples] == ["dpo:a:0:0"]
    assert [one.episode_id for one in converted.excluded] == ["dpo:b:0:0"]
    assert converted.excluded[0].reason.startswith("InvalidEpisode: only successful episodes")


def test_worker_models_judge_records_by_the_terminal_action_and_their_session() -> None:
    for model in (SEQUENCE, TASK, DPO):
        assert model.evaluate(EpisodeContext()) == Unknown()
        assert model.evaluate(EpisodeContext([act(2, "done"), act(1, "a", success=False)])) == Success(0.5)
        assert model.evaluate(EpisodeContext([act(1, "a")])) == Unknown()
        context = EpisodeContext([act(1, "a")])
        context.push(LearnStatsRecord("run", Raw(b"{}"), Timeout(0.3), 1, 1))
        assert model.evaluate(context) == Timeout(0.3)


def test_a_graph_succeeded_iff_it_has_no_error_and_some_order() -> None:
    outcomes = [
        GRAPH.evaluate(EpisodeContext([record]))
        for record in (
            graph_record(),
            graph_record(discover_order=[]),
            graph_record(error="timed out"),
            graph_record(discover_order=[], not_discover_order=[]),
        )
    ]
    assert outcomes == [Success(1.0), Success(1.0), Failure("timed out"), Failure("the inference gave no order")]
    assert GRAPH.evaluate(EpisodeContext()) == Unknown()


def test_a_graph_is_converted_verbatim() -> None:
    record = graph_record(timestamp_ms=5, session_id="run", lora="l1")
    (made,) = GRAPH.build_graph_episodes(Graph("s", record, 99, Rules()))
    assert (made.actions, made.session_id, made.ended_at_ms, made.duration_ms) == (["a", "b"], "run", 5, 5)
    data = GRAPH.convert(made, EpisodeContext([graph_record(), record]))
    assert (data.prompt, data.chosen, data.metadata.lora) == ("which order?", "a, then b", "l1")
    assert GRAPH.extractor(made, EpisodeContext([record])) == ("which order?", "a, then b")


def test_dpo_makes_episodes_of_groups_only() -> None:
    assert DPO.build_episodes(task_of(act(1, "done"))) == []
    assert len(DPO.build_episodes(task_of(act(1, "done", group_id="g")))) == 1


def pairs_of(model: DpoLearnModel, *episodes: Episode) -> list[tuple[str, str]]:
    return [(str(pair.chosen.task_id), str(pair.rejected.task_id)) for pair in model.build_pairs(episodes)]


def test_the_best_success_goes_with_the_worst_failure_once_each() -> None:
    episodes = [
        episode("s1", Success(0.5)), episode("s2", Success(0.9)), episode("f1", Failure("x"), mean_kpi=0.2),
        episode("f2", Failure("x"), mean_kpi=-1.0), episode("f3", Failure("x"), mean_kpi=0.1),
        episode("u", Unknown()), episode("t", Timeout(0.1)),
    ]  # fmt: skip
    assert pairs_of(DPO, *episodes) == [("s2", "f2"), ("s1", "f3")]
    assert pairs_of(DPO.with_max_pairs(1), *episodes) == [("s2", "f2")]
    reused = pairs_of(DPO.with_config(DpoConfig(allow_reuse=True)), *episodes)
    assert reused == [("s2", "f2"), ("s1", "f2"), ("s2", "f3"), ("s2", "f1"), ("s1", "f3"), ("s1", "f1")]


def test_pairs_stay_in_their_group_and_need_the_gap() -> None:
    good, bad = episode("s", Success(0.6)), episode("f", Failure("x"), mean_kpi=0.5)
    assert pairs_of(DPO, good, bad) == [("s", "f")]  # a gap of just 0.1
    assert pairs_of(DPO.with_min_quality_gap(0.11), good, bad) == []
    assert pairs_of(DPO, episode("s", Success(1.0)), episode("f", Failure("x"), group="other")) == []
    nobody = [episode("s", Success(1.0), group=None), episode("f", Failure("x"), group=None)]
    assert pairs_of(DPO, *nobody) == []


def test_the_quality_of_a_failure_is_its_mean_kpi() -> None:
    """Decision (l); without one it is 0."""
    assert quality_of(episode("f", Failure("x"), mean_kpi=0.4)) == 0.4
    assert quality_of(episode("f", Failure("x"))) == 0.0
    assert quality_of(episode("s", Success(0.7), mean_kpi=0.1)) == 0.7


def test_a_pair_becomes_a_preference_under_the_prompt_of_the_chosen() -> None:
    good, bad, alone = episode("s", Success(1.0)), episode("f", Failure("x")), episode("u", Unknown())
    converted = DPO.convert_batch([(good, opening("s")), (bad, opening("f")), (alone, opening("u"))])
    (data,) = converted.examples
    assert (data.chosen, data.rejected) == ("s -> done", "f -> done")
    assert data.prompt.startswith("Target: api\n")
    assert data.metadata.episode_id == good.episode_id
    assert [(one.episode_id, one.reason) for one in converted.excluded] == [("dpo:u:0:0", "no partner in its group")]


def test_a_pair_that_says_the_same_twice_teaches_nothing() -> None:
    good, bad = episode("s", Success(1.0)), episode("f", Failure("x"))
    pair = DpoPair(chosen=good, rejected=bad, group_id="g", quality_gap=1.0)
    same = DpoLearnModel(extractor=lambda _episode, _context: ("p", "r"))
    with pytest.raises(ConversionError):
        same.convert_pair(pair, opening("s"), opening("f"))
    silent = DpoLearnModel(extractor=lambda _episode, _context: None)
    with pytest.raises(ConversionError):
        silent.convert_pair(pair, opening("s"), opening("f"))
    with pytest.raises(InvalidEpisode):
        DPO.convert(good, opening("s"))


def test_a_scenario_sets_actions_and_persona() -> None:
    """Fault 39: the built-in ones are about troubleshooting."""
    rules = Rules(available_actions=("left", "right"), system_prompt="You walk on ice.")
    sequence, whole, dpo = learn_models(("worker_decision_sequence", "worker_task", "dpo"), rules)
    assert isinstance(sequence, WorkerDecisionSequenceLearn)
    assert isinstance(whole, WorkerTaskLearn)
    assert isinstance(dpo, DpoLearnModel)
    assert sequence.available_actions == dpo.available_actions == ("left", "right")
    assert sequence.system_prompt.startswith("You walk on ice. Given a context")
    assert dpo.system_prompt == sequence.system_prompt
    assert whole.system_prompt == "You walk on ice."
    with pytest.raises(KeyError):
        learn_models(("nonesuch",), rules)


def test_a_models_episodes_must_be_its_own_and_distinct() -> None:
    """Else they would overwrite others in the store."""

    class Doubled(WorkerTaskLearn):
        def build_episodes(self, task: Task) -> list[Episode]:
            return super().build_episodes(task) * 2

    class Foreign(WorkerTaskLearn):
        def build_episodes(self, task: Task) -> list[Episode]:
            return SEQUENCE.with_min_actions(1).build_episodes(task)

    models: list[LearnModel] = [Doubled(), Foreign(), TASK]
    made = project_task(task_of(act(1, "a"), act(2, "done")), models)
    assert len(made.episodes) == 1
    assert [fault.error.split(":")[0] for fault in made.faults] == ["ValueError", "ValueError"]
