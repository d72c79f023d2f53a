"""Cutting: a task's actions become sequences, each closed by a terminal action, its session's end or silence.

Domain 4.8 and decisions (d), (e), (j), (l). Everything here depends on what the records say and never on when or in
what order they came, so a sequence that lay over two batches, or grew by a late record, is cut as if it had come at
once (the original cut per batch and lost the halves).
"""

from __future__ import annotations

from collections import defaultdict
from hashlib import blake2b
from math import isfinite

from msgspec import Struct

from worker.episodes.episode import Step
from worker.episodes.rules import Rules
from worker.episodes.task import PlacedAction, TaskView
from worker.wire.records import ActionRecord, Failure, LearnStatsRecord, Outcome, Success, Timeout, Unknown
from worker.wire.times import happened_at

#: The terminal action by which a worker admits defeat: a failure, whatever its `success` says.
GIVE_UP = "give_up"


class Cut(Struct, kw_only=True, gc=False):
    """One closed sequence of actions with its verdict. System events are gone."""

    task_id: str
    #: None for a sequence of the whole task, over all of its workers.
    worker_id: int | None
    #: 0, 1, ... in the order of the sequences of this task (and worker), the short ones counted too.
    ordinal: int
    #: At least one, in the order of the log.
    actions: list[PlacedAction]
    #: The same actions, as far as learning looks at them.
    steps: list[Step]
    #: The last action is a terminal one; False for a tail that the session's end or silence closed.
    terminal: bool
    outcome: Outcome
    #: Mean of the KPIs that were reported; kept beside a failure too.
    mean_kpi: float | None
    session_id: str | None
    group_id: str | None
    #: Who sent the last action, and with it says how the sequence ended.
    producer: str
    #: Unix ms of the last action: see `happened_at`.
    ended_at_ms: int
    holdout: bool


class Slices(Struct):
    """A task cut up: its closed sequences, and whether one more is still open."""

    cuts: list[Cut]
    open_tail: bool


def order_of(placed: PlacedAction) -> tuple[int, int, int, int, tuple[str, int, int, int]]:
    """Where an action stands in its task: by what it says of itself, its producer's place for it last."""
    record = placed.record
    event_id = record.event_id
    return (record.tick, record.worker_id, -1 if event_id is None else event_id, record.timestamp_ms or 0, placed.place)


def holdout(key: str, share: float) -> bool:
    """Whether this is held out for the gate: a stable hash of `holdout_key`, about `share` (0-1) of all keys."""
    return holdout_hash(key) < share * 2**64


def holdout_hash(key: str) -> int:
    """The hash, below 2**64; the lower, the smaller the share that holds it out."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")


def holdout_key(scenario: str, name: str) -> str:
    """What `holdout` hashes; `name` is the session's id, or the task's where no session is known.

    By session, so that the attempts of one session never lie on both sides.
    """
    return f"{scenario}\0{name}"


def cut(view: TaskView, rules: Rules) -> list[Cut]:
    """The closed sequences of each worker of the task, by worker and then in order.

    An open tail is among them only where the session has ended or the task is idle.
    """
    return slice_task(view, rules).cuts


def slice_task(view: TaskView, rules: Rules, *, whole: bool = False) -> Slices:
    """`cut`, with word of an open tail; `whole` takes the task's workers together as one sequence."""
    # Rules are asked once per name: a task repeats a handful of names.
    names = {placed.record.action for placed in view.actions}
    terminals = {name for name in names if rules.is_terminal(name)}
    ordered = sorted(view.actions, key=order_of)
    lanes = _lanes(ordered, {name for name in names if rules.is_system(name)}, whole=whole)
    slices = Slices([], open_tail=False)
    if not lanes:
        return slices
    closes = view.session is not None or view.idle
    session_id = _session_id(view, ordered)
    out = holdout(holdout_key(view.scenario, session_id or view.task_id), rules.holdout)
    for lane, actions in lanes:
        ordinal = 0
        run: list[PlacedAction] = []
        for placed in actions:
            run.append(placed)
            if placed.record.action in terminals:
                slices.cuts.append(_close(view, lane, ordinal, run, session_id, terminal=True, out=out))
                ordinal += 1
                run = []
        if run and closes:
            slices.cuts.append(_close(view, lane, ordinal, run, session_id, terminal=False, out=out))
        elif run:
            slices.open_tail = True
    return slices


def judge(steps: list[Step], last: ActionRecord, session: LearnStatsRecord | None, *, terminal: bool) -> Outcome:
    """The outcome of a sequence by decision (d); `steps` are not empty, `last` is the record of the last one.

    An outcome that the session states wins, with its own score; a timeout that states none gets the sequence's. Else
    the terminal action decides, and where there is none, nobody knows.
    """
    if session is not None and not isinstance(session.outcome, Unknown):
        if isinstance(session.outcome, Timeout) and session.outcome.partial_score is None:
            return Timeout(score(steps))
        return session.outcome
    if not terminal:
        return Unknown()
    if last.success is False:
        return Failure(last.error or f"the terminal action {last.action} failed")
    if last.action.lower() == GIVE_UP:
        return Failure(last.error or "the worker gave up")
    return Success(score(steps))


def score(steps: list[Step]) -> float:
    """The mean KPI where any was reported, else the share of successful actions."""
    mean = mean_kpi(steps)
    return sum(step.ok for step in steps) / len(steps) if mean is None else mean


def mean_kpi(steps: list[Step]) -> float | None:
    """The mean over those steps that report a KPI; None where none does."""
    kpis = [step.kpi for step in steps if step.kpi is not None]
    if not kpis:
        return None
    total = sum(kpis)
    # Two KPIs of 1e308 are legal on the wire, an infinite score is not legal in JSON.
    return total / len(kpis) if isfinite(total) else sum(kpi / len(kpis) for kpi in kpis)


def step_of(record: ActionRecord) -> Step:
    """An action as learning looks at it, the domain's defaults filled in."""
    kpi = record.kpi
    return Step(
        record.action,
        record.success is not False,
        record.duration_ms or 0,
        None if kpi is None else float(kpi),
        record.discoveries or 0,
        record.selection_logic,
    )


def _lanes(
    ordered: list[PlacedAction], system: set[str], *, whole: bool
) -> list[tuple[int | None, list[PlacedAction]]]:
    """What each worker did (or, `whole`, all of them), in order, by worker, without what the system did."""
    if system:
        ordered = [placed for placed in ordered if placed.record.action not in system]
    if whole:
        return [(None, ordered)] if ordered else []
    lanes: dict[int, list[PlacedAction]] = defaultdict(list)
    for placed in ordered:
        lanes[placed.record.worker_id].append(placed)
    return [*sorted(lanes.items())]


def _close(
    view: TaskView,
    worker_id: int | None,
    ordinal: int,
    run: list[PlacedAction],
    session_id: str | None,
    *,
    terminal: bool,
    out: bool,
) -> Cut:
    steps = [step_of(placed.record) for placed in run]
    last = run[-1]
    return Cut(
        task_id=view.task_id,
        worker_id=worker_id,
        ordinal=ordinal,
        actions=run,
        steps=steps,
        terminal=terminal,
        outcome=judge(steps, last.record, view.session, terminal=terminal),
        mean_kpi=mean_kpi(steps),
        session_id=session_id,
        group_id=_group_id(run, view.session),
        producer=last.producer,
        ended_at_ms=happened_at(last.record.timestamp_ms, last.received_at_ms),
        holdout=out,
    )


def _session_id(view: TaskView, ordered: list[PlacedAction]) -> str | None:
    """The ended session's id, else the first that its actions name."""
    if view.session is not None:
        return view.session.session_id
    return next((placed.record.session_id for placed in ordered if placed.record.session_id is not None), None)


def _group_id(run: list[PlacedAction], session: LearnStatsRecord | None) -> str | None:
    """The group that the first action of the sequence names, else its session's."""
    for placed in run:
        if placed.record.group_id is not None:
            return placed.record.group_id
    return None if session is None else session.group_id
