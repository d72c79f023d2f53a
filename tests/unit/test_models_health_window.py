"""A new adapter counts as live only when it stayed healthy for a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.adapter_building import register
from worker.clock import ManualClock
from worker.errors import ApplyFailed
from worker.models.applicators.noop import NoopApplicator
from worker.models.health_window import HealthWindow
from worker.store.port import Model

GONE = ApplyFailed("connection refused")


class Fickle(NoopApplicator):
    """Serves as it is told to, look by look, then goes on as at last; each look takes a tenth of the window."""

    def __init__(self, *looks: str | ApplyFailed | None) -> None:
        super().__init__()
        self.looks = list(looks)
        self.looked = 0
        self.clock = ManualClock()

    async def watched(self, model: Model, seconds: float = 0.02) -> None:
        """To the end of a window."""
        await HealthWindow(seconds, self.clock).watch(self, model)

    async def served(self, scenario: str) -> str | None:
        self.looked += 1
        self.clock.advance(0.002)
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, ApplyFailed):
            raise look
        return look


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return register(tmp_path, 1).model


async def test_what_stays_served_passes(model: Model) -> None:
    fickle = Fickle(model.sha256)
    await fickle.watched(model)
    assert fickle.looked == 10


async def test_without_a_window_nobody_looks(model: Model) -> None:
    fickle = Fickle(None)
    await fickle.watched(model, 0)
    assert fickle.looked == 0


@pytest.mark.parametrize("instead", [None, "another", GONE])
async def test_what_does_not_stay_is_refused_with_the_setting_named(
    model: Model, instead: str | ApplyFailed | None
) -> None:
    """The server forgot it, serves another one, or is gone."""
    fickle = Fickle(model.sha256, model.sha256, instead)
    with pytest.raises(ApplyFailed, match="SWARM_LORA_HEALTH_WINDOW"):
        await fickle.watched(model)


async def test_two_looks_without_an_answer_are_forgiven_also_at_the_end(model: Model) -> None:
    """A busy server is not a broken one; and the last word is an answer."""
    fickle = Fickle(model.sha256, GONE, GONE, model.sha256)
    await fickle.watched(model)
    assert fickle.looked == 10
    fickle = Fickle(*[model.sha256] * 9, GONE, GONE, model.sha256)
    await fickle.watched(model)
    assert fickle.looked == 12


async def test_what_is_given_up_during_the_last_look_is_given_up(model: Model) -> None:
    """Whoever asked was told so: it must not go live a moment later."""

    class GivenUpLate(Fickle):
        async def served(self, scenario: str) -> str | None:
            answer = await super().served(scenario)
            if self.looked == 10:
                assert window.give_up("S", "an operator", at_ms=1) == model
            return answer

    fickle = GivenUpLate(model.sha256)
    window = HealthWindow(0.02, fickle.clock)
    with pytest.raises(ApplyFailed, match="given up in its health window by an operator"):
        await window.watch(fickle, model)
