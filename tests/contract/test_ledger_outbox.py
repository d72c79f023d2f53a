"""Contract of `Outbox`, on every store."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

from msgspec.structs import replace

from worker.store.port import OutboxEvent, Store

Reopen: TypeAlias = Callable[[Store], AbstractAsyncContextManager[Store]]

NOW = 1_700_000_000_000


def event(event_id: str, **fields: Any) -> OutboxEvent:
    """An event that was not sent yet."""
    one = OutboxEvent(
        event_id=event_id,
        type="learning.failed",
        scenario="S",
        routing_key="learning.failed.S",
        body=b'{"reason": "\xc3\xbc"}\x00\xff',
        created_at_ms=NOW,
    )
    return replace(one, **fields)


async def ids(store: Store, limit: int = 100) -> list[str]:
    """What waits to be sent."""
    return [one.event_id for one in await store.unsent_events(limit)]


async def test_events_wait_in_the_order_they_came_whatever_the_clock_says(store: Store, reopen: Reopen) -> None:
    """The clock may step back between two events; subscribers must see cause before effect."""
    await store.add_events([event("z", created_at_ms=NOW + 5), event("a", created_at_ms=NOW - 5)])
    await store.add_events([event("m")])
    async with reopen(store) as again:
        assert await ids(again) == ["z", "a", "m"]
        assert await ids(again, limit=2) == ["z", "a"]


async def test_an_event_comes_back_byte_for_byte(store: Store, reopen: Reopen) -> None:
    await store.add_events([event("e")])
    async with reopen(store) as again:
        assert await again.unsent_events(1) == [event("e")]


async def test_an_event_with_the_same_id_is_stored_once(store: Store) -> None:
    await store.add_events([event("e"), event("e", body=b"other"), event("f")])
    await store.add_events([event("e", body=b"third")])
    assert await store.unsent_events(10) == [event("e"), event("f")]


async def test_an_event_that_was_sent_is_not_queued_again(store: Store) -> None:
    await store.add_events([event("e")])
    await store.mark_sent(["e"], NOW + 1)
    await store.add_events([event("e")])
    assert await ids(store) == []


async def test_marking_as_sent_twice_keeps_the_first_time(store: Store, reopen: Reopen) -> None:
    await store.add_events([event("e"), event("f")])
    await store.mark_sent(["e", "e"], NOW + 1)
    await store.mark_sent(["e", "unknown"], NOW + 2)
    async with reopen(store) as again:
        assert await ids(again) == ["f"]
        assert await again.events() == [event("f"), event("e", sent_at_ms=NOW + 1)]


async def test_no_event_was_sent_before_it_was_made(store: Store) -> None:
    await store.add_events([event("e")])
    await store.mark_sent(["e"], NOW - 60_000)
    assert [one.sent_at_ms for one in await store.events()] == [NOW]


async def test_attempts_are_counted_and_the_event_waits_on(store: Store) -> None:
    await store.add_events([event("e")])
    await store.mark_attempt("e")
    await store.mark_attempt("e")
    assert await store.unsent_events(10) == [event("e", attempts=2)]


async def test_events_are_listed_newest_first_sent_or_not(store: Store) -> None:
    await store.add_events([event("a"), event("b", scenario="T"), event("c")])
    await store.mark_sent(["a"], NOW)
    assert [one.event_id for one in await store.events()] == ["c", "b", "a"]
    assert [one.event_id for one in await store.events("S")] == ["c", "a"]
    assert [one.event_id for one in await store.events("S", limit=1)] == ["c"]


async def test_no_events_are_no_change(store: Store) -> None:
    await store.add_events([])
    await store.mark_sent([], NOW)
    assert await store.events() == []


async def test_what_was_sent_long_ago_is_forgotten_oldest_first_and_nothing_else(store: Store, reopen: Reopen) -> None:
    await store.add_events([event(name) for name in ("old", "older", "young", "waiting")])
    await store.mark_sent(["old", "older"], NOW + 10)
    await store.mark_sent(["young"], NOW + 20)
    assert await store.forget_sent_events(NOW + 10, 5) == 0
    assert await store.forget_sent_events(NOW + 20, 1) == 1
    assert [one.event_id for one in await store.events()] == ["waiting", "young", "older"]
    assert await store.forget_sent_events(NOW + 20, 5) == 1
    async with reopen(store) as again:
        assert [one.event_id for one in await again.events()] == ["waiting", "young"]
        assert await ids(again) == ["waiting"]
