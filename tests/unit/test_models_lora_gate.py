"""The gate of adapters: figures and verdicts on answers to held-out questions."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.models.gate import GateConfig, Weighed
from worker.models.lora_gate import Answered, compare, figures, mcnemar, weigh_adapter


def answered(right: int, *, decisions: int = 1, nll: float = 1.0, **more: Any) -> Answered:
    """One answer."""
    return Answered(right=right, decisions=decisions, nll=nll, **more)


def judged(
    mine: list[Answered], base: list[Answered], champion: list[Answered] | None = None, **config: Any
) -> Weighed:
    """What the gate says of sft."""
    return weigh_adapter(GateConfig(**{"min_samples": 4, **config}), "sft", mine, base, champion)


GOOD = [answered(1, nll=0.1)] * 8
FAIR = [answered(1, nll=0.5)] * 4 + [answered(0, nll=1.5)] * 4
BAD = [answered(0, nll=2.0)] * 8


def test_the_figures_count_decisions_and_whole_answers() -> None:
    found = figures([answered(3, decisions=3, nll=1.0), answered(1, decisions=3, nll=3.0)])
    assert found.next_action == pytest.approx(4 / 6)
    assert (found.exact, found.nll) == (0.5, 2.0)
    assert (found.examples, found.decisions) == (2, 6)
    assert found.low < found.next_action < found.high


@pytest.mark.parametrize(
    ("better", "worse", "p"), [(0, 0, 1.0), (1, 0, 1.0), (6, 0, 0.03125), (0, 6, 0.03125), (9, 2, 0.06543), (5, 5, 1.0)]
)
def test_mcnemar_is_the_exact_binomial_test(better: int, worse: int, p: float) -> None:
    """Against values of R's binom.test(better, better + worse)."""
    assert mcnemar(better, worse) == pytest.approx(p, abs=1e-4)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_a_chance_and_the_same_from_both_sides(better: int, worse: int) -> None:
    assert 0.0 < mcnemar(better, worse) <= 1.0
    assert mcnemar(better, worse) == mcnemar(worse, better)


def test_models_are_compared_example_by_example() -> None:
    found = compare(GOOD, FAIR)
    assert (found.better, found.worse, found.p_value) == (4, 0, 0.125)
    assert found.nll_difference == pytest.approx(-0.9)
    assert found.nll_p_value < 0.01


def test_an_adapter_that_answers_better_than_base_and_champion_is_blessed() -> None:
    weighed = judged(GOOD, BAD, FAIR)
    assert weighed.verdict.verdict == "blessed"
    assert weighed.metrics["candidate"]["next_action"] == 1.0
    assert weighed.metrics["base"]["paired"]["p_value"] == pytest.approx(0.007812)
    assert weighed.metrics["champion"]["exact"] == 0.5


def test_one_that_is_worse_than_the_champion_is_rejected_though_it_beats_the_base() -> None:
    weighed = judged(FAIR, BAD, GOOD)
    assert weighed.verdict.verdict == "rejected"
    assert any("champion: 1.0000" in reason for reason in weighed.verdict.reasons)


def test_a_difference_that_may_be_chance_is_blessed_and_said() -> None:
    weighed = judged(GOOD, FAIR)
    assert weighed.verdict.verdict == "blessed"
    assert "not significant against base: it may be chance" in weighed.verdict.reasons


def test_one_answer_that_got_better_is_blessed_as_the_gate_of_statistics_does_and_said_to_be_chance() -> None:
    """p is 1: point values decide (`worker.learning.validation.judge`), and nobody should take them for certain."""
    base = [answered(2, decisions=5)] * 30
    weighed = judged([answered(3, decisions=5), *base[1:]], base, min_samples=30)
    assert weighed.metrics["base"]["paired"]["p_value"] == 1.0
    assert weighed.verdict.verdict == "blessed"
    assert "not significant against base: it may be chance" in weighed.verdict.reasons


def test_too_few_held_out_examples_are_not_evaluable_and_the_figures_stay() -> None:
    """However long their answers are: the decisions of one answer hang together."""
    base = [answered(2, decisions=5)] * 6
    weighed = judged([answered(3, decisions=5), *base[1:]], base, min_samples=30)
    assert weighed.verdict.verdict == "not_evaluable"
    assert weighed.verdict.reasons == [
        "6 examples were held out; at least 30 are needed to tell (more tasks, or a larger SWARM_HOLDOUT)"
    ]
    assert weighed.metrics["candidate"]["decisions"] == 30


def test_nothing_held_out_is_not_evaluable() -> None:
    assert judged([], []).verdict.verdict == "not_evaluable"


def test_an_adapter_that_changes_nothing_but_makes_the_answers_less_likely_is_rejected() -> None:
    weighed = judged([answered(0, nll=2.5)] * 8, BAD)
    assert weighed.verdict.verdict == "rejected"
    assert any(reason.startswith("against base: the answers are less likely") for reason in weighed.verdict.reasons)


def test_one_that_can_get_no_better_is_blessed_though_it_is_less_sure_by_what_may_be_chance() -> None:
    """A retraining on data that is known by heart."""
    champion = [answered(1, nll=0.01)] * 8
    mine = [answered(1, nll=0.01 + change) for change in (0.002, -0.001) * 4]
    weighed = judged(mine, BAD, champion)
    assert weighed.metrics["champion"]["paired"]["nll_p_value"] > 0.05
    assert weighed.verdict.verdict == "blessed"
    assert "not significant against champion: it may be chance" in weighed.verdict.reasons


def test_improvement_on_nothing_has_to_be_one() -> None:
    """A tenth more than 0 is 0: that alone would let every adapter pass."""
    likelier = [answered(0, nll=1.0)] * 8
    assert judged(likelier, BAD, strategy="improvement").verdict.verdict == "rejected"
    assert judged(likelier, BAD, strategy="no_regression").verdict.verdict == "blessed"
    assert judged(GOOD, FAIR, strategy="improvement").verdict.verdict == "blessed"


def test_absolute_wants_its_share_whatever_the_base_does() -> None:
    assert judged(FAIR, BAD, strategy="absolute").verdict.verdict == "rejected"
    assert judged(FAIR, BAD, strategy="absolute", threshold=0.5).verdict.verdict == "blessed"
    less_likely = [answered(1, nll=0.2)] * 8
    assert judged(less_likely, GOOD, strategy="absolute").verdict.verdict == "blessed"
    assert judged(less_likely, GOOD, strategy="no_regression").verdict.verdict == "rejected"


def test_what_was_trained_on_tells_nothing() -> None:
    """Better wherever the prompt is among those trained on, worse on all others: too few of these to tell."""
    mine = [answered(1, nll=0.1, seen=True)] * 95 + [answered(0, nll=1.0)] * 5
    base = [answered(0, nll=1.0, seen=True)] * 95 + [answered(1, nll=0.9)] * 5
    weighed = judged(mine, base, min_samples=30)
    assert weighed.verdict.verdict == "not_evaluable"
    (reason,) = weighed.verdict.reasons
    assert reason == (
        "5 examples were held out; at least 30 are needed to tell (more tasks, or a larger SWARM_HOLDOUT); 95 more do "
        "not count, since the same was asked in training (one group_id for tasks that ask the same holds them out "
        "together)"
    )
    assert weighed.metrics["candidate"]["examples"] == 5
    assert weighed.metrics["base"]["paired"]["worse"] == 5


def test_where_all_was_asked_in_training_nobody_can_tell() -> None:
    """As where many tasks are about few targets."""
    weighed = judged([answered(1, seen=True)] * 40, [answered(0, seen=True)] * 40)
    assert weighed.verdict.verdict == "not_evaluable"
    assert weighed.verdict.reasons[0].startswith("0 examples were held out; at least 4 are needed to tell")
    assert list(weighed.metrics) == ["seen"]
    assert weighed.metrics["seen"]["candidate"]["next_action"] == 1.0


def test_what_was_asked_in_training_is_told_apart_and_changes_nothing() -> None:
    mine, base = [*GOOD, *[answered(0, nll=9.0, seen=True)] * 20], [*FAIR, *[answered(1, seen=True)] * 20]
    weighed, alone = judged(mine, base), judged(GOOD, FAIR)
    assert weighed.verdict.verdict == alone.verdict.verdict == "blessed"
    assert weighed.verdict.reasons == [
        *alone.verdict.reasons,
        "judged on 8 held-out examples; 20 more do not count, since the same was asked in training",
    ]
    seen = weighed.metrics.pop("seen")
    assert weighed.metrics == alone.metrics
    assert seen["candidate"]["examples"] == seen["base"]["examples"] == 20
    assert (seen["candidate"]["next_action"], seen["base"]["next_action"]) == (0.0, 1.0)
    assert seen["base"]["paired"]["worse"] == 20


def test_dpo_is_judged_by_what_it_prefers() -> None:
    config = GateConfig(min_samples=4)
    prefers = [answered(1, nll=2.0, prefers=True)] * 8
    indifferent = [answered(1, nll=1.0, prefers=False)] * 8
    assert weigh_adapter(config, "dpo", prefers, indifferent, None).verdict.verdict == "blessed"
    assert weigh_adapter(config, "dpo", indifferent, prefers, None).verdict.verdict == "rejected"


def test_dpo_is_compared_pair_by_pair_in_what_it_prefers() -> None:
    """Not in what it says: all answers are right here, so that test would see no difference."""
    prefers = [answered(1, prefers=True)] * 8
    indifferent = [answered(1, prefers=False)] * 8
    weighed = weigh_adapter(GateConfig(min_samples=4), "dpo", prefers, indifferent, None)
    assert weighed.metrics["base"]["paired"]["preferred"] == {"better": 8, "worse": 0, "p_value": 0.007812}
    assert weighed.metrics["base"]["paired"]["p_value"] == 1.0
    (said,) = weighed.verdict.reasons
    assert "preferred answers 1.0000" in said
    assert "more in 8 examples, fewer in 0, p 0.00781" in said


def test_preferences_that_may_be_chance_are_blessed_and_said() -> None:
    mine = [answered(1, prefers=True)] * 5 + [answered(1, prefers=False)] * 3
    base = [answered(1, prefers=False)] * 2 + [answered(1, prefers=True)] * 2 + [answered(1, prefers=False)] * 4
    weighed = weigh_adapter(GateConfig(min_samples=4), "dpo", mine, base, None)
    assert weighed.verdict.verdict == "blessed"
    assert "not significant against base: it may be chance" in weighed.verdict.reasons


def test_too_few_pairs_are_called_pairs() -> None:
    one = [answered(1, decisions=9, prefers=True)] * 3
    weighed = weigh_adapter(GateConfig(min_samples=4), "dpo", one, one, None)
    assert weighed.verdict.reasons == [
        "3 pairs were held out; at least 4 are needed to tell (more tasks, or a larger SWARM_HOLDOUT)"
    ]


def test_dpo_that_says_neither_answer_any_more_is_rejected() -> None:
    """Both answers lose likelihood, the worse one more: the margin grows while the model turns to nonsense."""
    collapsed = [answered(0, nll=9.0, prefers=True)] * 8
    base = [answered(1, nll=1.0, prefers=False)] * 8
    weighed = weigh_adapter(GateConfig(min_samples=4), "dpo", collapsed, base, None)
    assert weighed.verdict.verdict == "rejected"
    assert "against base: right in fewer answers, p 0.00781" in weighed.verdict.reasons


def apart(mean: float) -> list[float]:
    """Likelihoods of 40 answers, not all the same."""
    return [mean + change for change in (-0.2, 0.1, 0.1, 0.0) * 10]


@pytest.mark.parametrize("said", [0, 5])
def test_dpo_that_makes_the_better_answers_unlikely_is_rejected_where_too_few_were_ever_said(said: int) -> None:
    """An answer of free text is hardly ever said word for word, by the base neither."""
    mine = [answered(0, nll=nll, prefers=True) for nll in apart(9.0)]
    base = [answered(place < said, nll=nll, prefers=False) for place, nll in enumerate(apart(1.0)[::-1])]
    weighed = weigh_adapter(GateConfig(), "dpo", mine, base, None)
    assert weighed.verdict.verdict == "rejected"
    assert any(reason.startswith("against base: the answers are less likely") for reason in weighed.verdict.reasons)


def test_dpo_may_take_likelihood_from_the_better_answers_where_they_are_said_as_before() -> None:
    """It takes from both; what is said tells whether it was too much."""
    mine = [answered(1, nll=nll, prefers=True) for nll in apart(2.0)]
    base = [answered(1, nll=nll, prefers=False) for nll in apart(1.0)]
    assert weigh_adapter(GateConfig(), "dpo", mine, base, None).verdict.verdict == "blessed"


def test_dpo_that_says_nothing_word_for_word_is_blessed_where_the_answers_stay_as_likely() -> None:
    mine = [answered(0, nll=nll, prefers=True) for nll in apart(1.0)[::-1]]
    base = [answered(0, nll=nll, prefers=False) for nll in apart(1.0)]
    assert weigh_adapter(GateConfig(), "dpo", mine, base, None).verdict.verdict == "blessed"


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 20)), min_size=4, max_size=40))
def test_an_adapter_is_never_rejected_against_itself(drawn: list[tuple[int, float]]) -> None:
    answers = [answered(right, decisions=3, nll=nll) for right, nll in drawn]
    weighed = judged(answers, answers, answers)
    assert weighed.verdict.verdict == "blessed"
    assert math.isfinite(weighed.metrics["candidate"]["nll"])
