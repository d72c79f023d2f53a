"""The offline model: what an offline analysis learnt, loaded by the next session, and its JSON form."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from worker.errors import WorkerError
from worker.learning.action_order import LearnedActionOrder

#: Its name in every directory that holds one. It stands here and not with the files of models: through those the
#: training process imported store and logs, and that was two thirds of its start (0.43 s became 0.13 s, measured).
MODEL_FILE = "model.json"

#: The document's version; raised when a reader of the old one would misunderstand the new one.
MODEL_VERSION = 1

#: Largest lists of a model, the best supported first; `omitted` says how many did not fit.
MOST_PATHS = 10
MOST_ACTIONS = 500
MOST_TRANSITIONS = 2_000

#: Largest model that is read, in bytes; the lists' own limits keep what is written far below.
LARGEST_MODEL = 8_000_000

Rate: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Weight: TypeAlias = Annotated[float, Meta(ge=0, le=1000)]
Number: TypeAlias = Annotated[int, Meta(ge=0)]


class OptimalParameters(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The original's exactly three parameters of exploration; its examples use 1.41."""

    ucb1_c: Weight = 1.41
    learning_weight: Weight = 0.3
    ngram_weight: Weight = 1.0


class StrategyConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the adaptive strategy: start with one, consider a switch after so many visits, at this error rate."""

    initial_strategy: str = "ucb1"
    maturity_threshold: Number = 5
    error_rate_threshold: Rate = 0.45


class RecommendedPath(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sequence that led to success; the figures are those of its weakest step. `low`, `high`: Wilson, 95 %."""

    actions: list[str]
    success_rate: Rate
    occurrences: Number  # successes and failures
    successes: Number
    low: Rate
    high: Rate


class ActionStatistic(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an action went by itself. Rate over `successes + failures`, 0.5 if never; durations in ms."""

    action: str
    visits: Number
    successes: Number
    failures: Number
    success_rate: Rate
    low: Rate
    high: Rate
    mean_duration_ms: float
    mean_kpi: float | None = None
    discoveries: Number = 0


class TransitionStatistic(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of `action` after `previous` (None: as the first action of an episode).

    `successes` and `failures` are of the episodes in which the step was taken, and so are the rate and its Wilson
    interval; `step_*` are of the action itself.
    """

    previous: str | None
    action: str
    successes: Number
    failures: Number
    success_rate: Rate
    low: Rate
    high: Rate
    step_successes: Number = 0
    step_failures: Number = 0


class Window(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the model was learnt from: batches `lo`..`hi` were new to it, and it is as of batch `hi`."""

    lo: Number = 0
    hi: Number = 0


class OfflineModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the next session may use. Equal evidence gives an equal model, to the byte."""

    version: Literal[1] = 1
    scenario: str
    parameters: OptimalParameters = OptimalParameters()
    recommended_paths: list[RecommendedPath] = []
    strategy_config: StrategyConfig = StrategyConfig()
    action_order: LearnedActionOrder | None = None
    actions: list[ActionStatistic] = []
    transitions: list[TransitionStatistic] = []
    #: Entries that were left out of a list because it was full, by the list's name.
    omitted: dict[str, int] = {}
    #: Whose counts the statistics are: the worker's own over the action log, or the swarm's learn stats.
    evidence: Literal["log", "stats", "none"] = "none"
    analyzed_sessions: Number = 0
    analyzed_episodes: Number = 0
    window: Window = Window()
    #: Unix ms up to which the evidence goes.
    updated_at_ms: Number = 0


class ModelUnreadable(WorkerError):
    """These bytes are no offline model that this version reads."""


class _Version(Struct):
    version: int


def encode(model: OfflineModel) -> bytes:
    """Canonical JSON: keys sorted, no spaces, every field written. Equal models give equal bytes."""
    return msgspec.json.encode(model, order="sorted")


def decode(text: bytes) -> OfflineModel:
    """The model; raises `ModelUnreadable` that names the place at fault."""
    if len(text) > LARGEST_MODEL:
        raise ModelUnreadable(f"the model has {len(text)} bytes; at most {LARGEST_MODEL} are read")
    try:
        version = msgspec.json.decode(text, type=_Version).version
        if version != MODEL_VERSION:
            raise ModelUnreadable(
                f"the model has version {version} and this program reads version {MODEL_VERSION}; "
                "use the release that wrote it, or train again"
            )
        return msgspec.json.decode(text, type=OfflineModel)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelUnreadable(f"these bytes are no offline model: {error}") from None
