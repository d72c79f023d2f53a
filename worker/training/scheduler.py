"""Asks each scenario's trigger, every check interval, whether to train, and requests the run where it says so.

What a trigger knows comes from the store, so a restart changes nothing. The first check comes after one interval, and
missed ticks are made up for once, not in a burst (faults 9 and 16).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from msgspec.structs import replace

from worker.clock import Clock, sleep_unless
from worker.errors import StoreError
from worker.learning.firing import Firing, evaluate
from worker.learning.trigger_context import TriggerContext, TriggerError, TriggerMetrics
from worker.learning.triggers import TrainTrigger
from worker.store.port import Facts, ModelKind, RollingOutcomes, ScenarioFacts, TriggerState
from worker.training.endings import has_news
from worker.training.runs import RunManager
from worker.training.trigger_book import TriggerBook
from worker.training.waiting import in_words, waiting_text

log = structlog.get_logger(__name__)

#: Newest closed episodes whose outcomes the quality trigger sees, and how many the drift trigger sees before them.
_NEWEST = 100
_EARLIER = 400


@dataclass(slots=True)
class SchedulerStats:
    """What happened since the start."""

    checks: int = 0
    fired: int = 0
    trigger_errors: int = 0
    store_errors: int = 0
    last_check_ms: float = 0.0  # how long the last check of all scenarios took


class TriggerScheduler:
    """One timer for all scenarios."""

    def __init__(
        self,
        *,
        store: Facts,
        book: TriggerBook,
        runs: RunManager,
        clock: Clock,
        triggers: Mapping[str, TrainTrigger],
        interval: float,
        learn_models: Mapping[str, str],
    ) -> None:
        """`learn_models`: per scenario, whose episodes are counted and whose outcomes tell quality and drift."""
        self._store = store
        self._book = book
        self._runs = runs
        self._clock = clock
        self._triggers = dict(triggers)
        self._interval = interval
        self._learn_models = learn_models
        self.stats = SchedulerStats()

    async def run(self, stopping: asyncio.Event) -> None:
        """Check every interval until `stopping`. No error of a trigger or the store ends this."""
        while not stopping.is_set():
            await sleep_unless(stopping, self._interval)
            if not stopping.is_set():
                await self.check_all()

    async def check_all(self) -> None:
        """One check of every scenario."""
        began = self._clock.monotonic()
        for scenario in self._triggers:
            try:
                await self.check(scenario)
            except StoreError as error:
                self.stats.store_errors += 1
                log.warning("trigger_not_checked", scenario=scenario, error=str(error))
        self.stats.checks += 1
        self.stats.last_check_ms = (self._clock.monotonic() - began) * 1000

    async def check(self, scenario: str) -> bool:
        """Ask the scenario's trigger for each kind of training; True where a run was requested.

        Each kind has its own watermark: an adapter that took hours, or failed, is trained on what came since its own
        last training. Where both are due, both are requested, in the order of `RunManager.kinds`.
        """
        facts = await self._store.facts(scenario)
        fired = [(kind, firing) for kind in self._runs.kinds if (firing := await self._ask(facts, kind)) is not None]
        requested = False
        for kind, firing in fired:
            run = await self._runs.request(scenario, kind=kind, trigger=_as_trigger(firing))
            if run.state == "queued":
                requested = True
                self.stats.fired += 1
                log.info(
                    "trigger_fired", scenario=scenario, kind=kind, rule=firing.rule, run_id=run.run_id, **firing.values
                )  # fmt: skip
        return requested

    async def _ask(self, facts: ScenarioFacts, kind: ModelKind) -> Firing | None:
        scenario = facts.scenario
        state = await self._book.read(scenario, kind)
        if await self._reason_not_to_ask(facts, state, kind):
            return None
        try:
            return evaluate(self._triggers[scenario], await self._context(facts, state))
        except TriggerError as error:
            await self._note_error(scenario, kind, str(error))
            return None

    async def waiting_for(self, scenario: str) -> str:
        """What the next automatic run of the scenario waits for, in words; of each kind where they differ."""
        facts = await self._store.facts(scenario)
        found = {kind: await self._waiting_for(facts, kind) for kind in self._runs.kinds}
        if len(set(found.values())) == 1:
            return next(iter(found.values()))
        return "; ".join(f"{kind}: {text}" for kind, text in found.items())

    async def _waiting_for(self, facts: ScenarioFacts, kind: ModelKind) -> str:
        state = await self._book.read(facts.scenario, kind)
        reason = await self._reason_not_to_ask(facts, state, kind)
        if reason is not None:
            return reason
        try:
            return waiting_text(self._triggers[facts.scenario], await self._context(facts, state))
        except Exception as error:  # noqa: BLE001 - the trigger may be the user's own
            return f"its trigger, which fails: {type(error).__name__}: {error}"

    async def _reason_not_to_ask(self, facts: ScenarioFacts, state: TriggerState, kind: ModelKind) -> str | None:
        """Why no trigger is asked, cheapest first: a check costs the same however much is stored."""
        current = self._runs.current(facts.scenario)
        if current is not None and current.run.kind == kind:
            return "a training is running"
        reason = self._reason_to_rest(facts, state)
        if reason is None and any(run.kind == kind for run in await self._runs.unfinished(facts.scenario)):
            return "a training is queued"
        if reason is None and state.failures and await self._runs.held(facts.scenario, kind):
            return f"new data: {state.failures} trainings failed, the last on these very records; or --force"
        return reason

    def _reason_to_rest(self, facts: ScenarioFacts, state: TriggerState) -> str | None:
        if state.paused:
            return "paused; go on with: swarm-worker resume"
        if not has_news(state, facts):
            return "new episodes or sessions"
        now_ms = self._clock.now_ms()
        wait_ms = state.not_before_ms - now_ms
        # Before the attempt that set the wait: the clock was set back, nobody waits for it to catch up.
        if wait_ms > 0 and now_ms >= (state.last_attempt_at_ms or 0):
            if state.failures:
                why = f"after {state.failures} failed trainings"
            elif state.last_attempt_at_ms == state.last_success_at_ms:
                why = "SWARM_TRAINING_COOLDOWN"
            else:
                why = "the last one was skipped; SWARM_TRAINING_BACKOFF"
            return f"{in_words(wait_ms)} more ({why})"
        return None

    async def _context(self, facts: ScenarioFacts, state: TriggerState) -> TriggerContext:
        learn_model = self._learn_models[facts.scenario]
        sample = await self._store.rolling_outcomes(facts.scenario, learn_model=learn_model, sample=_NEWEST)
        wider = await self._store.rolling_outcomes(facts.scenario, learn_model=learn_model, sample=_NEWEST + _EARLIER)
        newest, both = _metrics(sample), _metrics(wider)
        return TriggerContext(
            event_count=facts.episodes_by_model.get(learn_model, 0),
            session_count=facts.counted_sessions,
            other_news=facts.episodes > state.trained_episodes,
            now_ms=self._clock.now_ms(),
            first_record_at_ms=facts.first_record_at_ms,
            last_train_at_ms=state.last_success_at_ms,
            last_train_count=state.trained_by_model.get(learn_model, 0),
            last_train_sessions=state.trained_sessions,
            metrics=newest,
            earlier=None if newest is None or both is None else both.before(newest),
        )

    async def _note_error(self, scenario: str, kind: ModelKind, error: str) -> None:
        """A trigger error counts as "no", and is logged, counted and kept to be shown."""
        self.stats.trigger_errors += 1
        log.error("trigger_error", scenario=scenario, error=error)
        await self._book.change(
            scenario,
            kind,
            lambda state: replace(state, trigger_errors=state.trigger_errors + 1, last_trigger_error=error[:500]),
        )


def _metrics(outcomes: RollingOutcomes | None) -> TriggerMetrics | None:
    if outcomes is None:
        return None
    return TriggerMetrics(
        sample_count=outcomes.sample_count, success_rate=outcomes.success_rate, avg_score=outcomes.avg_score
    )


def _as_trigger(firing: Firing) -> dict[str, Any]:
    return {
        "kind": firing.kind, "values": {**firing.values, "thresholds": firing.thresholds, "rule": firing.rule},
        "by": "trigger",
    }  # fmt: skip
