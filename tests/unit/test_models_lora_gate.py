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
    found = figures([answered(3, decisions=3, nll=1.0), answered(1, decisions=3, nll=3.0, seen=True)])
    assert found.next_action == pytest.approx(4 / 6)
    assert (found.exact, found.nll) == (0.5, 2.0)
    assert (found.examples, found.decisions, found.unseen_next_action) == (2, 6, 1.0)
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


def test_too_few_held_out_decisions_are_not_evaluable_and_the_figures_stay() -> None:
    weighed = judged(GOOD, BAD, min_samples=30)
    assert weighed.verdict.verdict == "not_evaluable"
    assert weighed.metrics["candidate"]["decisions"] == 8


def test_nothing_held_out_is_not_evaluable() -> None:
    assert judged([], []).verdict.verdict == "not_evaluable"


def test_an_adapter_that_changes_nothing_but_makes_the_answers_less_likely_is_rejected() -> None:
    weighed = judged([answered(0, nll=2.5)] * 8, BAD)
    assert weighed.verdict.verdict == "rejected"
    assert "against base: right as often, and the answers are less likely" in weighed.verdict.reasons


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


def test_what_was_only_learnt_by_heart_is_rejected() -> None:
    """Better on texts that were trained on, and significantly worse on all others."""
    mine = [answered(1, nll=0.1, seen=True)] * 20 + [answered(0, nll=1.0)] * 8
    base = [answered(0, nll=1.0, seen=True)] * 20 + [answered(1, nll=0.9)] * 8
    weighed = judged(mine, base)
    assert weighed.verdict.verdict == "rejected"
    assert any("texts that it was not trained on" in reason for reason in weighed.verdict.reasons)
    assert "20 of 28 held-out examples say what other tasks taught as well" in weighed.verdict.reasons


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


def test_preferences_that_were_only_learnt_by_heart_are_rejected() -> None:
    mine = [answered(1, prefers=True, seen=True)] * 20 + [answered(1, prefers=False)] * 8
    base = [answered(1, prefers=False, seen=True)] * 20 + [answered(1, prefers=True)] * 8
    weighed = weigh_adapter(GateConfig(min_samples=4), "dpo", mine, base, None)
    assert weighed.verdict.verdict == "rejected"
    assert (
        "against base: fewer preferred answers on texts that it was not trained on, p 0.00781"
        in weighed.verdict.reasons
    )


def test_too_few_pairs_are_called_pairs() -> None:
    one = [answered(1, decisions=9, prefers=True)] * 3
    weighed = weigh_adapter(GateConfig(min_samples=4), "dpo", one, one, None)
    assert weighed.verdict.reasons == ["3 pairs were held out; at least 4 are needed to tell"]


def test_dpo_that_says_neither_answer_any_more_is_rejected() -> None:
    """Both answers lose likelihood, the worse one more: the margin grows while the model turns to nonsense."""
    collapsed = [answered(0, nll=9.0, prefers=True)] * 8
    base = [answered(1, nll=1.0, prefers=False)] * 8
    weighed = weigh_adapter(GateConfig(min_samples=4), "dpo", collapsed, base, None)
    assert weighed.verdict.verdict == "rejected"
    assert "against base: right in fewer answers, p 0.00781" in weighed.verdict.reasons


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 20)), min_size=4, max_size=40))
def test_an_adapter_is_never_rejected_against_itself(drawn: list[tuple[int, float]]) -> None:
    answers = [answered(right, decisions=3, nll=nll) for right, nll in drawn]
    weighed = judged(answers, answers, answers)
    assert weighed.verdict.verdict == "blessed"
    assert math.isfinite(weighed.metrics["candidate"]["nll"])
