"""The current model from the shared file and from events, and what it recommends."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from msgspec import Raw

from worker.client.following import EventFollower, LiveModel
from worker.client.models import CurrentModel, ModelFile, load_model
from worker.errors import ConfigurationError
from worker.learning import offline_model
from worker.learning.action_order import LearnedActionOrder
from worker.learning.offline_model import (
    ActionStatistic,
    ModelUnreadable,
    OfflineModel,
    RecommendedPath,
    TransitionStatistic,
)
from worker.models.applicators.files import FilesApplicator
from worker.store.port import Model
from worker.wire.events import (
    Applied,
    Event,
    EventData,
    EventType,
    Gate,
    RolledBack,
    Trained,
    TrainedCounts,
    Trigger,
    Window,
    decode_event,
    embeddable,
    encode_event,
)


def learnt(*paths: str) -> OfflineModel:
    """A small model."""
    return OfflineModel(
        scenario="S",
        action_order=LearnedActionOrder.new(["look"], ["move"], ["look", "move"]),
        recommended_paths=[
            RecommendedPath(actions=list(paths), success_rate=1, occurrences=2, successes=2, low=0.3, high=1)
        ],
        actions=[
            ActionStatistic(
                action="move",
                visits=4,
                successes=3,
                failures=1,
                success_rate=0.75,
                low=0.3,
                high=0.9,
                mean_duration_ms=1,
            )
        ],
        transitions=[
            TransitionStatistic(
                previous="look", action="move", successes=1, failures=9, success_rate=0.1, low=0.01, high=0.4
            )
        ],
    )


def registered(content: bytes, version: int) -> Model:
    return Model(
        model_id=f"m{version}", scenario="S", version=version, kind="offline", run_id="r", created_at_ms=1, uri="file:///m",
        sha256=hashlib.sha256(content).hexdigest(), lineage={}, metrics={}, gate_verdict="blessed", gate_reasons=[],
    )  # fmt: skip


async def apply(directory: Path, version: int) -> None:
    content = offline_model.encode(learnt(f"v{version}"))
    await FilesApplicator(directory).apply(registered(content, version), content)


async def test_the_file_that_the_worker_writes_is_the_current_model(tmp_path: Path) -> None:
    """The applicator and this client are written apart; here they meet."""
    file = ModelFile(tmp_path, "S")
    assert file.current() is None
    await apply(tmp_path, 1)
    current = file.current()
    assert current is not None
    assert (current.scenario, current.model_id, current.version) == ("S", "m1", 1)
    assert current.model == learnt("v1")


async def test_the_file_is_read_again_only_when_it_was_replaced(tmp_path: Path) -> None:
    file = ModelFile(tmp_path, "S")
    await apply(tmp_path, 1)
    first = file.current()
    assert file.current() is first
    await apply(tmp_path, 2)
    second = file.current()
    assert second is not None
    assert second.version == 2
    os.unlink(file.path)  # noqa: PTH108  the applicator withdraws
    assert file.current() is None


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"scenario":"S"}', b"\xff"])
def test_a_damaged_file_is_named(tmp_path: Path, text: bytes) -> None:
    file = ModelFile(tmp_path, "S")
    file.path.parent.mkdir()
    file.path.write_bytes(text)
    with pytest.raises(ModelUnreadable, match=r"S\.json"):
        file.current()


async def test_a_model_that_is_not_what_was_served_is_refused(tmp_path: Path) -> None:
    await apply(tmp_path, 1)
    file = ModelFile(tmp_path, "S")
    file.path.write_bytes(file.path.read_bytes().replace(b'"v1"', b'"v9"'))
    with pytest.raises(ModelUnreadable, match="SHA-256"):
        file.current()


def test_a_scenario_that_is_no_name_reaches_no_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        ModelFile(tmp_path, "../other")


def test_a_model_answers_what_nodes_ask() -> None:
    model = CurrentModel(scenario="S", model_id="m", version=1, model=learnt("look", "move"))
    order = model.action_order(["move", "look"])
    assert order is not None
    assert order.discover == ["look"]
    assert model.action_order(["move", "look", "jump"]) is None
    assert [path.actions for path in model.recommended_paths] == [["look", "move"]]
    assert model.next_actions("look") == ["move"]
    assert model.next_actions("jump") == []
    assert model.scores(["move", "jump"], previous="look") == {"move": 0.1, "jump": 0.5}
    assert model.score("move") == 0.75


# ---------------------------------------------------------------- events


@dataclass
class FakeMessage:
    """An event's body."""

    body: bytes


class FakeFeed:
    """Messages given beforehand; remembers how many were settled."""

    def __init__(self, *bodies: bytes) -> None:
        self.messages = [FakeMessage(body) for body in bodies]
        self.settled = 0

    async def follow(self) -> AsyncIterator[FakeMessage]:
        """Each is settled when the next is asked for."""
        while self.settled < len(self.messages):
            yield self.messages[self.settled]
            self.settled += 1


def encoded(type_: EventType, subject: str, data: EventData) -> bytes:
    return encode_event(type_, subject_id=subject, scenario="S", data=data, source="/w", time_ms=5)[1]


def trained(version: int, *, scenario: str = "S", sha256: str | None = None, embed: bool = True) -> bytes:
    content = offline_model.encode(learnt(f"v{version}"))
    data = Trained(
        scenario=scenario, run_id=f"r{version}", model_id=f"m{version}", model_version=version, kind="offline",
        trigger=Trigger(kind="manual"), window=Window(lo=1, hi=2), metrics={},
        counts=TrainedCounts(records=1, episodes=1, sessions=1),
        gate=Gate(verdict="blessed"), uri="file:///m", sha256=sha256 or hashlib.sha256(content).hexdigest(),
        model=embeddable(content) if embed else msgspec.UNSET,
    )  # fmt: skip
    return encoded("learning.trained", f"r{version}", data)


def applied(version: int, *, verified: bool = True, scenario: str = "S") -> bytes:
    data = Applied(
        scenario=scenario, model_id=f"m{version}", model_version=version, previous_model_id=None, applicator="files",
        target="t", verified=verified, by="gate",
    )  # fmt: skip
    return encoded("learning.applied", f"d{version}", data)


def rolled_back(version: int) -> bytes:
    data = RolledBack(scenario="S", reason="rollback", details={"live_model_id": f"m{version}"})
    return encoded("learning.rolled_back", f"b{version}", data)


async def test_each_event_comes_once_however_often_it_was_sent() -> None:
    feed = FakeFeed(trained(1), trained(1), applied(1), b"no event", trained(1))
    follower = EventFollower(feed)
    assert [event.type async for event in follower] == ["learning.trained", "learning.applied"]
    assert (follower.duplicates, follower.unreadable, feed.settled) == (2, 1, 5)


async def take_one(follower: EventFollower) -> AsyncIterator[Event]:
    """The first event, whose consumer never asks for another."""
    async for event in follower:
        yield event
        return


async def test_an_event_whose_consumer_failed_is_new_when_it_comes_again() -> None:
    follower = EventFollower(FakeFeed(trained(1)))
    assert [event.type async for event in take_one(follower)] == ["learning.trained"]
    follower._feed = FakeFeed(trained(1))
    assert [event.type async for event in follower] == ["learning.trained"]


def event(body: bytes) -> Event:
    return decode_event(body)


def test_a_model_is_live_from_its_applied_event_on() -> None:
    live = LiveModel("S")
    assert not live.take(event(trained(1)))
    assert live.current is None
    assert live.take(event(applied(1)))
    assert live.current is not None
    assert live.current.model == learnt("v1")
    assert not live.take(event(applied(1)))


def test_a_rollback_brings_the_earlier_model_back() -> None:
    live = LiveModel("S")
    for body in (trained(1), applied(1), trained(2), applied(2), rolled_back(1)):
        live.take(event(body))
    assert live.current is not None
    assert (live.current.model_id, live.missing) == ("m1", None)


def test_a_live_model_that_no_event_brought_is_named() -> None:
    live = LiveModel("S")
    live.take(event(trained(1, embed=False)))
    assert not live.take(event(applied(1)))
    assert (live.current, live.missing) == (None, "m1")


def test_applied_may_overtake_trained() -> None:
    live = LiveModel("S")
    live.take(event(applied(1)))
    live.take(event(trained(1)))
    assert live.current is not None
    assert (live.current.model_id, live.missing) == ("m1", None)


@pytest.mark.parametrize(
    "bodies",
    [
        [trained(1, sha256="0" * 64), applied(1)],  # not what was trained
        [trained(1), applied(1, verified=False)],  # nobody saw it served
        [trained(1, scenario="T"), applied(1, scenario="T")],  # another scenario's
    ],
)
def test_what_is_not_this_scenarios_verified_model_is_never_current(bodies: list[bytes]) -> None:
    live = LiveModel("S")
    assert not any(live.take(event(body)) for body in bodies)
    assert live.current is None


def test_an_adapter_beside_it_leaves_the_live_model_where_it_is() -> None:
    """A scenario may have one of each kind; the adapter is no offline model, live or missing."""
    live = LiveModel("S")
    live.take(event(trained(1)))
    assert live.take(event(applied(1)))
    adapter = Applied(
        scenario="S", model_id="m2", model_version=2, previous_model_id=None, applicator="vllm", target="t",
        verified=True, by="anna", kind="lora",
    )  # fmt: skip
    back = RolledBack(scenario="S", reason="rollback", details={"live_model_id": "m3", "kind": "lora"})
    assert not live.take(event(encoded("learning.applied", "d2", adapter)))
    assert not live.take(event(encoded("learning.rolled_back", "d3", back)))
    assert live.current is not None
    assert (live.current.model_id, live.missing) == ("m1", None)


def test_the_model_in_an_event_is_its_file_to_the_byte() -> None:
    data = event(trained(3)).data
    assert isinstance(data, Trained)
    assert isinstance(data.model, Raw)
    assert hashlib.sha256(bytes(data.model)).hexdigest() == data.sha256


def test_the_schemas_example_carries_a_model_that_the_client_takes() -> None:
    """As it stands in the file: the hash is of exactly those bytes."""
    example = Path(__file__).parents[2] / "schemas/examples/learning.trained.v1.example.json"
    data = decode_event(example.read_bytes()).data
    assert isinstance(data, Trained)
    assert isinstance(data.model, Raw)
    model = load_model(
        bytes(data.model),
        scenario=data.scenario,
        model_id=data.model_id,
        version=data.model_version,
        sha256=data.sha256,
    )
    assert model.next_actions("ReadLogs") == ["Restart"]
