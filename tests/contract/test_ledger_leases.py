"""Contract of `RunLedger`, on every store: the leases that own runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

from worker.store.port import Store

Reopen: TypeAlias = Callable[[Store], AbstractAsyncContextManager[Store]]

NOW = 1_700_000_000_000
TTL = 15_000


async def lease(store: Store, owner: str = "a", *, now_ms: int = NOW) -> int:
    """Take the lease, which must be free for this owner."""
    epoch = await store.acquire_lease("train.S", owner, now_ms=now_ms, ttl_ms=TTL)
    assert epoch is not None
    return epoch


async def test_a_lease_is_refused_to_others_while_it_is_valid(store: Store) -> None:
    assert await lease(store, "a") == 1
    assert await store.acquire_lease("train.S", "b", now_ms=NOW + TTL, ttl_ms=TTL) is None


async def test_a_holder_that_acquires_again_keeps_its_epoch_and_prolongs(store: Store) -> None:
    """Otherwise asking twice would fence one's own run."""
    await lease(store, "a")
    assert await lease(store, "a", now_ms=NOW + 10_000) == 1
    assert await store.acquire_lease("train.S", "b", now_ms=NOW + 20_000, ttl_ms=TTL) is None


async def test_a_take_over_after_expiry_bumps_the_epoch(store: Store) -> None:
    await lease(store, "a")
    assert await lease(store, "b", now_ms=NOW + TTL + 1) == 2
    assert not await store.renew_lease("train.S", "a", 1, now_ms=NOW + TTL + 1, ttl_ms=TTL)


async def test_a_holder_that_let_its_lease_expire_gets_a_new_epoch(store: Store) -> None:
    await lease(store, "a")
    assert not await store.renew_lease("train.S", "a", 1, now_ms=NOW + TTL + 1, ttl_ms=TTL)
    assert await lease(store, "a", now_ms=NOW + TTL + 1) == 2


async def test_a_renewed_lease_lasts_from_the_renewal(store: Store) -> None:
    await lease(store, "a")
    assert await store.renew_lease("train.S", "a", 1, now_ms=NOW + 10_000, ttl_ms=TTL)
    assert await store.acquire_lease("train.S", "b", now_ms=NOW + TTL + 1, ttl_ms=TTL) is None
    assert await lease(store, "b", now_ms=NOW + 10_000 + TTL + 1) == 2


async def test_a_released_lease_is_free_at_once_and_never_repeats_an_epoch(store: Store) -> None:
    await lease(store, "a")
    await store.release_lease("train.S", "a", 1)
    assert not await store.renew_lease("train.S", "a", 1, now_ms=NOW, ttl_ms=TTL)
    assert await lease(store, "b") == 2
    await store.release_lease("train.S", "b", 2)
    assert await lease(store, "b") == 3


async def test_a_zombie_cannot_release_the_lease_of_its_successor(store: Store) -> None:
    await lease(store, "a")
    await lease(store, "b", now_ms=NOW + TTL + 1)
    await store.release_lease("train.S", "a", 1)
    assert await store.renew_lease("train.S", "b", 2, now_ms=NOW + TTL + 2, ttl_ms=TTL)


async def test_leases_of_different_names_are_apart(store: Store) -> None:
    assert await store.acquire_lease("train.S", "a", now_ms=NOW, ttl_ms=TTL) == 1
    assert await store.acquire_lease("train.T", "b", now_ms=NOW, ttl_ms=TTL) == 1


async def test_a_clock_that_stepped_back_holds_no_lease_for_longer_than_it_was_granted(store: Store) -> None:
    """A lease of the future would be nobody's to take until the clock is there again."""
    await lease(store, "a", now_ms=NOW + 3_600_000)
    assert await lease(store, "b", now_ms=NOW) == 2


async def test_a_clock_that_stepped_back_a_little_takes_no_lease_away(store: Store) -> None:
    await lease(store, "a")
    assert await store.acquire_lease("train.S", "b", now_ms=NOW - TTL, ttl_ms=TTL) is None
    assert await store.renew_lease("train.S", "a", 1, now_ms=NOW - TTL, ttl_ms=TTL)


async def test_epochs_survive_reopening(store: Store, reopen: Reopen) -> None:
    await lease(store, "a")
    async with reopen(store) as again:
        assert await again.acquire_lease("train.S", "b", now_ms=NOW, ttl_ms=TTL) is None
        assert await lease(again, "b", now_ms=NOW + TTL + 1) == 2


async def test_whoever_opens_a_store_that_is_his_alone_waits_for_no_dead_holder(store: Store, reopen: Reopen) -> None:
    """After kill -9 of a worker the next one takes its run over at once, not when the lease has run out."""
    await lease(store, "a.boot1")
    async with reopen(store) as again:
        assert await again.end_leases_of_the_dead("a.boot2") == 1
        assert await lease(again, "a.boot2") == 2
        assert await again.end_leases_of_the_dead("a.boot2") == 0, "one's own goes on"
        assert await again.renew_lease("train.S", "a.boot2", 2, now_ms=NOW, ttl_ms=TTL)


async def test_a_lease_that_was_ended_for_the_dead_still_fences_them(store: Store, reopen: Reopen) -> None:
    """The epoch grows as if it had run out: whoever held it can neither renew it nor release its successor's."""
    epoch = await lease(store, "a")
    async with reopen(store) as again:
        await again.end_leases_of_the_dead("b")
        assert not await again.renew_lease("train.S", "a", epoch, now_ms=NOW, ttl_ms=TTL)
        assert await lease(again, "b") == epoch + 1
        await again.release_lease("train.S", "a", epoch)
        assert await again.renew_lease("train.S", "b", epoch + 1, now_ms=NOW, ttl_ms=TTL)
