"""What every applicator of adapters does, whatever it serves them by: looked at from a node's side."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.contract.adapter_building import register
from tests.contract.adapter_worlds import SECRET, WORLDS, AdapterWorld, Kind
from worker.errors import ApplyFailed
from worker.models.adapter import adapter_directory
from worker.models.applicators.port import Applicator
from worker.models.before import BEFORE_FILE


def only(trait: str) -> pytest.MarkDecorator:
    """For tests that are about some of them."""
    return pytest.mark.parametrize(
        "kind", [name for name, kind in WORLDS.items() if getattr(kind, trait)], indirect=True
    )


#: Steps of an apply that a worker may die in; more than any applicator has.
_STEPS = 24


@pytest.fixture(params=WORLDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Which applicator this run is about."""
    return WORLDS[request.param]


@pytest.fixture
async def world(kind: Kind, tmp_path: Path) -> AsyncIterator[AdapterWorld]:
    """One way to serve adapters."""
    async with kind.make(tmp_path) as made:
        yield made


@pytest.fixture
async def applicator(world: AdapterWorld) -> AsyncIterator[Applicator]:
    """The worker's, until it restarts."""
    made = world.applicator()
    yield made
    await made.close()


async def test_nothing_is_served_before_the_first_apply(world: AdapterWorld, applicator: Applicator) -> None:
    assert await applicator.served("S") is None
    assert await world.answer("S") is None


async def test_an_applied_adapter_is_what_nodes_get(
    world: AdapterWorld, applicator: Applicator, tmp_path: Path
) -> None:
    one = register(tmp_path, 1)
    await applicator.apply(one.model, one.content)
    assert await applicator.served("S") == one.model.sha256
    assert await world.answer("S") == one.answer


async def test_applying_twice_changes_nothing(world: AdapterWorld, applicator: Applicator, tmp_path: Path) -> None:
    """What a crash interrupted is applied again at the next start."""
    one = register(tmp_path, 1)
    for _ in range(2):
        await applicator.apply(one.model, one.content)
        assert await applicator.served("S") == one.model.sha256
        assert await world.answer("S") == one.answer


async def test_a_swap_takes_the_place_of_the_adapter_before_and_goes_back(
    world: AdapterWorld, applicator: Applicator, tmp_path: Path
) -> None:
    one, two, three = (register(tmp_path, version) for version in (1, 2, 3))
    for each in (one, two, three, two, one, three):
        await applicator.apply(each.model, each.content)
        assert await applicator.served("S") == each.model.sha256
        assert await world.answer("S") == each.answer


async def test_a_withdrawn_adapter_is_served_no_more(
    world: AdapterWorld, applicator: Applicator, tmp_path: Path
) -> None:
    """And withdrawing what is not there is no error: it is the way back from a failed first apply."""
    await applicator.withdraw("S")
    one = register(tmp_path, 1)
    await applicator.apply(one.model, one.content)
    for _ in range(2):
        await applicator.withdraw("S")
        assert await applicator.served("S") is None
        assert await world.answer("S") is None
    await applicator.apply(one.model, one.content)
    assert await world.answer("S") == one.answer


async def test_what_is_served_is_found_after_the_workers_restart(
    kind: Kind, world: AdapterWorld, applicator: Applicator, tmp_path: Path
) -> None:
    """Where it does not outlive the worker, that is seen too, and it can be brought again."""
    one = register(tmp_path, 1)
    await applicator.apply(one.model, one.content)
    again = world.applicator()
    try:
        assert await again.served("S") == (one.model.sha256 if kind.outlives else None)
        await again.apply(one.model, one.content)
        assert await again.served("S") == one.model.sha256
        assert await world.answer("S") == one.answer
    finally:
        await again.close()


async def test_a_server_that_forgot_is_seen_and_given_the_adapter_again(
    world: AdapterWorld, applicator: Applicator, tmp_path: Path
) -> None:
    """At the worker's next start, or by whoever applies: what the last apply left behind is no proof."""
    one = register(tmp_path, 1)
    await applicator.apply(one.model, one.content)
    await world.restart_server()
    told = await applicator.served("S")
    assert (told == one.model.sha256) == (await world.answer("S") == one.answer)
    await applicator.apply(one.model, one.content)
    assert await applicator.served("S") == one.model.sha256
    assert await world.answer("S") == one.answer


@only("fails")
async def test_a_failed_apply_leaves_the_adapter_before_it_in_force(
    world: AdapterWorld, applicator: Applicator, tmp_path: Path
) -> None:
    """The error names the cure and no secret; and the next try goes through."""
    one, two = register(tmp_path, 1), register(tmp_path, 2)
    world.trouble(on=True)
    with pytest.raises(ApplyFailed) as first:
        await applicator.apply(one.model, one.content)
    assert await world.answer("S") is None
    world.trouble(on=False)
    await applicator.apply(one.model, one.content)
    world.trouble(on=True)
    with pytest.raises(ApplyFailed) as second:
        await applicator.apply(two.model, two.content)
    assert await applicator.served("S") == one.model.sha256
    assert await world.answer("S") == one.answer
    world.trouble(on=False)
    await applicator.apply(two.model, two.content)
    assert await world.answer("S") == two.answer
    assert SECRET not in f"{first.value} {second.value} {applicator.target('S')}"


@only("probes")
async def test_an_adapter_that_does_not_answer_as_it_should_is_refused(
    kind: Kind, world: AdapterWorld, applicator: Applicator, tmp_path: Path
) -> None:
    """The server loads it and says 200; what it answers says otherwise."""
    one, two = register(tmp_path, 1), register(tmp_path, 2, expected="stay where you are")
    await applicator.apply(one.model, one.content)
    with pytest.raises(ApplyFailed, match="answer"):
        await applicator.apply(two.model, two.content)
    if not kind.keeps:
        await applicator.apply(one.model, one.content)  # as the applier does
    assert await applicator.served("S") == one.model.sha256
    assert await world.answer("S") == one.answer


@only("probes")
async def test_a_server_that_goes_on_serving_the_adapter_before_under_the_new_name_is_found_out(
    kind: Kind, world: AdapterWorld, applicator: Applicator, tmp_path: Path
) -> None:
    """Its answer begins as the new one's, in another way than the base's: only beside the old one's it tells."""
    one = register(tmp_path, 1, answer="go up")
    two = register(tmp_path, 2, answer="go down", before=one)
    await applicator.apply(one.model, one.content)
    world.go_on_answering(one.answer)
    with pytest.raises(ApplyFailed, match="0 of 1 as with it, 1 as with another adapter"):
        await applicator.apply(two.model, two.content)
    if not kind.keeps:
        await applicator.apply(one.model, one.content)  # as the applier does
    assert await applicator.served("S") == one.model.sha256
    assert await world.answer("S") == one.answer
    world.go_on_answering(None)
    told = "1 of 1 as with it, 0 as with another adapter"
    assert told in str(await applicator.apply(two.model, two.content))
    assert await applicator.served("S") == two.model.sha256
    back = str(await applicator.apply(one.model, one.content))  # by what the other one recorded
    assert f"{told} (sha256 {two.model.sha256[:12]})" in back


@only("probes")
@pytest.mark.parametrize(
    "content", [None, b"", b'{"before":{},"sha256":"0"}', b"[" * 100_000], ids=["gone", "empty", "wrong", "deep"]
)
async def test_where_what_tells_it_from_the_one_before_is_lost_or_damaged_it_is_told_from_its_base(
    applicator: Applicator, tmp_path: Path, content: bytes | None
) -> None:
    """Only model.json and what it names are vouched for."""
    one = register(tmp_path, 1)
    two = register(tmp_path, 2, before=one)
    file = adapter_directory(two.model).parent / BEFORE_FILE
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    await applicator.apply(one.model, one.content)
    detail = str(await applicator.apply(two.model, two.content))
    assert detail.startswith("1 of 1 probes answered as with the adapter, 0 as without it; no probe was recorded")
    assert await applicator.served("S") == two.model.sha256


@pytest.mark.parametrize("lost", [False, True], ids=["older document", "no document"])
async def test_a_version_number_that_is_given_again_is_served_with_the_weights_that_it_has_now(
    world: AdapterWorld, applicator: Applicator, tmp_path: Path, lost: bool
) -> None:
    """The store was restored while the server lived on; and the new answer begins as the old one, so no probe tells."""
    old = register(tmp_path, 1, answer="go up")
    await applicator.apply(old.model, old.content)
    new = register(tmp_path, 1, answer="go up again")
    if lost:
        shutil.rmtree(tmp_path / "current", ignore_errors=True)
    await applicator.apply(new.model, new.content)
    assert await world.answer("S") == new.answer
    assert await applicator.served("S") == new.model.sha256


async def test_an_adapter_without_probes_is_applied(
    world: AdapterWorld, applicator: Applicator, tmp_path: Path
) -> None:
    """It changed no answer that was tried, so only its being there can be looked at."""
    one = register(tmp_path, 1, probes=False)
    await applicator.apply(one.model, one.content)
    assert await applicator.served("S") == one.model.sha256


@only("many_scenarios")
async def test_two_scenarios_do_not_disturb_each_other(
    world: AdapterWorld, applicator: Applicator, tmp_path: Path
) -> None:
    mine, yours = register(tmp_path, 1), register(tmp_path, 1, scenario="S2", answer="wait here")
    newer = register(tmp_path, 2)
    await applicator.apply(mine.model, mine.content)
    await applicator.apply(yours.model, yours.content)
    await applicator.apply(newer.model, newer.content)
    assert await applicator.served("S") == newer.model.sha256
    assert await applicator.served("S2") == yours.model.sha256
    assert await world.answer("S2") == yours.answer
    await applicator.withdraw("S")
    assert await world.answer("S") is None
    assert await world.answer("S2") == yours.answer


@only("seamless")
async def test_a_node_that_asks_all_the_while_is_answered_each_time(
    world: AdapterWorld, applicator: Applicator, tmp_path: Path
) -> None:
    """Ten swaps, and no moment in which whoever goes by what it was left is turned away."""
    adapters = [register(tmp_path, version) for version in (1, 2, 3)]
    await applicator.apply(adapters[0].model, adapters[0].content)
    answers: list[str | None] = []
    swapped = asyncio.Event()

    async def node() -> None:
        while not swapped.is_set():
            answers.append(await world.answer("S"))
            await asyncio.sleep(0)

    asking = asyncio.create_task(node())
    for number in range(1, 11):
        each = adapters[number % 3]
        await applicator.apply(each.model, each.content)
    swapped.set()
    await asking
    assert set(answers) <= {each.answer for each in adapters}
    assert len(answers) > 10


@only("seamless")
async def test_whatever_step_a_worker_dies_in_the_next_one_knows_what_is_served(
    kind: Kind, world: AdapterWorld, applicator: Applicator, tmp_path: Path
) -> None:
    """What it is told to be served is what nodes get; and applying again ends it.

    Where one takes the other's place before nodes are told, it may be told besides that neither is served as it should.
    """
    one, two = register(tmp_path, 1), register(tmp_path, 2)
    answers = {one.answer: one.model.sha256, two.answer: two.model.sha256}
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    for step in range(1, _STEPS + 1):
        await applicator.apply(one.model, one.content)
        died = await _die_at(world, step, two.model, two.content)
        told, seen = await applicator.served("S"), await world.answer("S")
        assert seen is not None, f"nodes get nothing after a death at step {step}"
        in_between = not kind.keeps and told not in answers.values()
        assert told == answers[seen] or in_between, f"a death at step {step} is not seen"
        await applicator.apply(two.model, two.content)
        assert await applicator.served("S") == two.model.sha256
        assert await world.answer("S") == two.answer
        if not died:
            break
    else:
        pytest.fail(f"an apply has more than {_STEPS} steps: raise the bound")


async def _die_at(world: AdapterWorld, step: int, *applied: object) -> bool:
    """Apply with a worker that dies when the server hears its `step`th call; False where it has fewer."""
    arrived = asyncio.Event()
    calls = 0

    async def hook(_: str) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            arrived.set()

    world.on_call(hook)
    dying = world.applicator()
    work = asyncio.create_task(dying.apply(*applied))  # type: ignore[arg-type]
    stop = asyncio.create_task(arrived.wait())
    await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
    world.on_call(None)
    stop.cancel()
    died = not work.done()
    work.cancel()
    await asyncio.wait((work,))
    await asyncio.to_thread(
        int
    )  # behind what it had begun in the only thread: a process that died goes on with nothing
    await dying.close()
    return died
