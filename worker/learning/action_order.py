"""The learned order of actions: which record may set it, and for which exact set of actions it holds.

Repairs faults 29 and 30 of the original: a failed or empty inference never replaces a good order, and the hash is over
the actions that were available, so that it can match even where the inference left one out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from hashlib import blake2b

from msgspec import Struct

from worker.learning.tally import countable
from worker.wire.records import DependencyGraphRecord
from worker.wire.times import happened_at

#: Actions in one order; a set beyond it is no plan but a mistake, and models stay small.
MOST_ACTIONS = 256


class ActionOrderSource(StrEnum):
    """Who ordered the actions."""

    LLM = "llm"
    MANUAL = "manual"
    LEARNED = "learned"


class LoraConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The adapter that was in use."""

    id: str
    scale: float = 1.0
    name: str | None = None


class LearnedActionOrder(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An order of actions that expand the search (`discover`) and that do not, valid for one exact set of actions."""

    discover: list[str]
    not_discover: list[str]
    #: 16 hex digits; see `compute_hash`.
    action_set_hash: str
    source: ActionOrderSource = ActionOrderSource.LLM
    lora: LoraConfig | None = None
    validated_accuracy: float | None = None
    #: Actions that were available and that the order leaves out (ours).
    missing: list[str] = []
    #: Unix ms of the inference (ours).
    inferred_at_ms: int | None = None

    @classmethod
    def new(cls, discover: Sequence[str], not_discover: Sequence[str], actions: Sequence[str]) -> LearnedActionOrder:
        """An order over `actions`, or over what it names itself where `actions` is empty.

        A repeated action keeps its first place; one that is not available is left out, since nobody could take it.
        """
        available = set(actions)
        named = [name for name in dict.fromkeys((*discover, *not_discover)) if not available or name in available]
        expanding = set(discover)
        return cls(
            discover=[name for name in named if name in expanding],
            not_discover=[name for name in named if name not in expanding],
            action_set_hash=compute_hash(actions or named),
            missing=sorted(available.difference(named)),
        )

    @property
    def is_empty(self) -> bool:
        """Nothing is ordered."""
        return not self.discover and not self.not_discover

    def is_exact_match(self, actions: Iterable[str]) -> bool:
        """Whether the order is about exactly this set of actions."""
        return self.action_set_hash == compute_hash(actions)


class PlacedGraph(Struct, frozen=True, kw_only=True):
    """A dependency-graph record with what orders it: when it was inferred, else received, then its place in the log."""

    record: DependencyGraphRecord
    received_at_ms: int
    batch_no: int = 0
    index: int = 0

    @property
    def inferred_at_ms(self) -> int:
        """Unix ms: the record's own time where sent, else when its batch came in."""
        return happened_at(self.record.timestamp_ms, self.received_at_ms)


class OrderChoice(Struct, frozen=True, kw_only=True):
    """The order to use, and what became of the records it was chosen from."""

    order: LearnedActionOrder | None
    changed: bool  # another one than before
    accepted: int = 0
    #: Reason to number of records: `error`, `empty`, `unknown_actions`, `too_many_actions`.
    refused: dict[str, int] = {}


def compute_hash(actions: Iterable[str]) -> str:
    """The action-set hash, 16 hex digits: names de-duplicated, sorted, joined by NUL, BLAKE2b of 8 bytes.

    Sorted by their UTF-8 bytes, as Rust sorts strings; code points sort the same.
    """
    return blake2b("\0".join(sorted(set(actions))).encode(), digest_size=8).hexdigest()


def choose_order(graphs: Iterable[PlacedGraph], previous: LearnedActionOrder | None) -> OrderChoice:
    """The newest good order; a validated one is kept against unvalidated ones over the same actions.

    `previous` is the stored model's order, taken as older than any record. Only error-free records with a usable order
    are candidates, so bad ones change nothing.
    """
    accepted = 0
    refused: dict[str, int] = {}
    chosen = previous
    for graph in sorted(graphs, key=lambda one: (one.inferred_at_ms, one.batch_no, one.index)):
        order = order_of(graph)
        if isinstance(order, str):
            refused[order] = refused.get(order, 0) + 1
            continue
        accepted += 1
        if not _outranks(chosen, order):
            chosen = order
    changed = chosen is not None and not same_order(chosen, previous)
    return OrderChoice(order=chosen if changed else previous, changed=changed, accepted=accepted, refused=refused)


def order_of(graph: PlacedGraph) -> LearnedActionOrder | str:
    """The order that the record gives, or why it gives none (a reason of `OrderChoice.refused`)."""
    record = graph.record
    if record.error is not None:
        return "error"
    if not record.discover_order and not record.not_discover_order:
        return "empty"
    actions = {*record.available_actions, *record.discover_order, *record.not_discover_order}
    if len(actions) > MOST_ACTIONS or not all(map(countable, actions)):
        return "too_many_actions"
    order = LearnedActionOrder.new(record.discover_order, record.not_discover_order, record.available_actions)
    if order.is_empty:
        return "unknown_actions"
    return LearnedActionOrder(
        discover=order.discover,
        not_discover=order.not_discover,
        action_set_hash=order.action_set_hash,
        missing=order.missing,
        lora=None if record.lora is None else LoraConfig(id=record.lora),
        inferred_at_ms=graph.inferred_at_ms,
    )


def same_order(one: LearnedActionOrder, other: LearnedActionOrder | None) -> bool:
    """Whether both say the same of the same actions."""
    return other is not None and (one.discover, one.not_discover, one.action_set_hash) == (
        other.discover,
        other.not_discover,
        other.action_set_hash,
    )


def _outranks(older: LearnedActionOrder | None, newer: LearnedActionOrder) -> bool:
    return (
        older is not None
        and older.validated_accuracy is not None
        and newer.validated_accuracy is None
        and older.action_set_hash == newer.action_set_hash
    )


class LearnedDependencyProvider:
    """Serves the stored order; for another set of actions it answers nothing and the caller asks the LLM."""

    def __init__(self, order: LearnedActionOrder | None) -> None:
        self._order = order

    def provide(self, actions: Iterable[str]) -> LearnedActionOrder | None:
        """The order, where it is about exactly these actions."""
        if self._order is not None and self._order.is_exact_match(actions):
            return self._order
        return None
