"""What comes of one pending item: its episodes, the change of the counts, and which rules it went by. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass

import msgspec
from msgspec.structs import replace

from worker.episodes.model import Graph, LearnModel, Task
from worker.episodes.projection import Fault, project_graph, project_task
from worker.episodes.rules import Rules
from worker.episodes.task import TaskView
from worker.learning.contribution import session_counts, task_counts
from worker.learning.counts import BucketedCounts
from worker.store.port import Pending, PendingGraph, PendingSession, PendingTask, Projection

#: Part of every rules digest: grows when cutting, judging or counting changes, so that stores are projected anew.
PROJECTION_VERSION = 3
_EXPORT_FIELDS = frozenset({"system_prompt", "available_actions", "rules"})


def project_item(item: Pending, rules: Rules, models: Sequence[LearnModel]) -> tuple[Projection, list[Fault]]:
    """What comes of one pending item, and which parts of it failed. Pure."""
    faults: list[Fault] = []
    if isinstance(item, PendingSession):
        counts = _guarded(lambda: _session_counts(item, rules), faults)
        return Projection(of=item, episodes=[], counts=counts), faults
    if isinstance(item, PendingGraph):
        made = project_graph(Graph(item.scenario, item.record, item.received_at_ms, rules), models)
        return Projection(of=item, episodes=made.episodes, counts={}), made.faults
    task = Task(item.task, rules)
    made = project_task(task, models)
    counts = _guarded(lambda: task_counts(item.task, rules), faults)
    earlier = as_projected(item)
    if earlier is not None:
        # A view that could not be counted then cannot be counted now: the fault was shown, and nothing was added.
        counts = difference(counts, _guarded(lambda: task_counts(earlier, rules), []))
    projection = Projection(of=item, episodes=made.episodes, counts=counts, open_tail=made.open_tail)
    return projection, made.faults + faults


def rules_digest(rules: Rules, models: Sequence[LearnModel]) -> str:
    """What decides how a scenario is projected, as 16 hex digits. A learn model counts by its class and its fields.

    Prompts and available actions do not count: they change what is exported, not what is cut, judged or counted.
    """
    parts: list[object] = [PROJECTION_VERSION, replace(rules, system_prompt=None, available_actions=())]
    for model in models:
        names = [field.name for field in fields(model)] if is_dataclass(model) else ["name"]
        parts += [type(model).__module__, type(model).__qualname__]
        parts += [(name, getattr(model, name)) for name in names if name not in _EXPORT_FIELDS]
    text = msgspec.json.encode(parts, enc_hook=_name_of, order="sorted")
    return hashlib.sha256(text).hexdigest()[:16]


def _name_of(value: object) -> str:
    """A function or class among a model's fields, by its name."""
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def as_projected(item: PendingTask) -> TaskView | None:
    """The task as it was when it was last projected; None where it never was.

    A session stored by then was part of it only if it was linked by then: a later action may have named it first.
    """
    upto, view = item.projected_upto, item.task
    if upto is None:
        return None
    actions = [placed for placed in view.actions if placed.batch_no <= upto]
    session = view.session
    if session is not None:
        linked = view.task_id in (session.task_ids or ()) or any(
            placed.record.session_id == session.session_id for placed in actions
        )
        if not linked or item.session_batch_no is None or item.session_batch_no > upto:
            session = None
    return TaskView(
        scenario=view.scenario, task_id=view.task_id, actions=actions, session=session, idle=item.projected_idle
    )


def difference(new: BucketedCounts, old: BucketedCounts) -> BucketedCounts:
    """New minus old, without what did not change."""
    change: BucketedCounts = {}
    for bucket in new.keys() | old.keys():
        counts = Counter(new.get(bucket, {}))
        counts.subtract(old.get(bucket, {}))
        if changed := Counter({key: value for key, value in counts.items() if value}):
            change[bucket] = changed
    return change


def _guarded(count: Callable[[], BucketedCounts], faults: list[Fault]) -> BucketedCounts:
    """The counts, or none where counting fails."""
    try:
        return count()
    except Exception as error:  # noqa: BLE001  whatever is wrong with one item's data, the others go on
        faults.append(Fault("counts", f"{type(error).__name__}: {error}"))
        return {}


def _session_counts(item: PendingSession, rules: Rules) -> BucketedCounts:
    return session_counts(
        item.record,
        item.received_at_ms,
        scenario=item.scenario,
        holdout_share=rules.holdout,
        producer=item.producer,
    )
