"""Contract of `CommandLedger`, on every store."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import pytest
from msgspec.structs import replace

from worker.errors import DataRefused, NotFound
from worker.store import ledger_rules
from worker.store.port import Store, StoredCommand

Reopen: TypeAlias = Callable[[Store], AbstractAsyncContextManager[Store]]

NOW = 1_700_000_000_000


def command(command_id: str = "c1", **fields: Any) -> StoredCommand:
    """A command as it came."""
    one = StoredCommand(
        command_id=command_id,
        command="train-now",
        scenario="S",
        body=b'{"command": "train-now"}\xff',
        received_at_ms=NOW,
        reply_to="swarm.reply.ops",
        correlation_id="k",
    )
    return replace(one, **fields)


async def test_a_new_command_is_accepted(store: Store, reopen: Reopen) -> None:
    assert await store.accept_command(command()) is None
    async with reopen(store) as again:
        assert await again.unfinished_commands() == [command()]


async def test_the_same_id_again_returns_what_is_stored(store: Store, reopen: Reopen) -> None:
    await store.accept_command(command())
    assert await store.accept_command(command(command="shutdown", body=b"other")) == command()
    done = await store.finish_command("c1", status="done", result={"run_id": "r1"}, error=None, now_ms=NOW + 5)
    async with reopen(store) as again:
        assert await again.accept_command(command()) == done


async def test_a_command_ends_with_its_result(store: Store) -> None:
    await store.accept_command(command())
    result = {"run_id": "r1", "deep": {"list": [1, 2.5, None, "ü"]}}
    done = await store.finish_command("c1", status="done", result=result, error=None, now_ms=NOW + 5)
    assert done == command(status="done", result=result, ended_at_ms=NOW + 5)
    assert await store.unfinished_commands() == []


async def test_only_the_first_end_counts(store: Store) -> None:
    """Its answer may have been sent."""
    await store.accept_command(command())
    first = await store.finish_command("c1", status="refused", result={}, error="paused", now_ms=NOW + 5)
    assert await store.finish_command("c1", status="done", result={"a": 1}, error=None, now_ms=NOW + 9) == first


async def test_a_command_may_be_stored_as_refused_at_once(store: Store) -> None:
    refused = command(status="refused", error="expired", ended_at_ms=NOW)
    assert await store.accept_command(refused) is None
    assert await store.unfinished_commands() == []
    assert await store.accept_command(command()) == refused


async def test_a_command_that_never_came_cannot_end(store: Store) -> None:
    with pytest.raises(NotFound, match="c9"):
        await store.finish_command("c9", status="done", result={}, error=None, now_ms=NOW)


async def test_no_command_ends_before_it_came(store: Store) -> None:
    await store.accept_command(command())
    done = await store.finish_command("c1", status="done", result={}, error=None, now_ms=NOW - 60_000)
    assert done.ended_at_ms == NOW


async def test_a_result_that_is_no_json_is_refused_and_the_command_stays_open(store: Store) -> None:
    await store.accept_command(command())
    with pytest.raises(DataRefused, match="result"):
        await store.finish_command("c1", status="done", result={"odd": {1}}, error=None, now_ms=NOW)
    assert await store.unfinished_commands() == [command()]


async def test_unfinished_commands_are_listed_in_the_order_they_came(store: Store) -> None:
    for command_id in ("z", "a", "m"):
        await store.accept_command(command(command_id, received_at_ms=NOW - ord(command_id)))
    await store.finish_command("a", status="failed", result={}, error="no", now_ms=NOW)
    assert [one.command_id for one in await store.unfinished_commands()] == ["z", "m"]


async def test_ended_commands_make_way_once_they_are_old_and_many(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S7: a flood leaves no more than it may; what is unfinished, or could still come again, stays."""
    monkeypatch.setattr(ledger_rules, "COMMANDS_KEPT", 3)
    later = NOW + ledger_rules.COMMANDS_KEPT_MS + 1
    for name in ("open", "old1", "old2", "young"):
        await store.accept_command(command(name, received_at_ms=later if name == "young" else NOW))
        if name != "open":
            await store.finish_command(name, status="done", result={}, error=None, now_ms=NOW)
    for name in ("n1", "n2"):
        await store.accept_command(command(name, received_at_ms=later))
    known = {
        name
        for name in ("open", "old1", "old2", "young", "n1", "n2")
        if await store.accept_command(command(name, status="failed", received_at_ms=NOW)) is not None
    }
    assert known == {"open", "young", "n1", "n2"}
