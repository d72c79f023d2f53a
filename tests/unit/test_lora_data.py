"""Training data of adapters: each text once, sides that share no task, no producer too loud, and a manifest."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from tests.unit.told_building import BAD, GOOD, RULES, models_of, project, task, tell
from tests.unit.training_world import opened
from worker.durable import make_private_directory
from worker.episodes.cut import holdout, holdout_key
from worker.episodes.episode import Episode
from worker.episodes.model import EpisodeContext
from worker.episodes.training_data import TrainingData
from worker.episodes.worker_decision_sequence import WorkerDecisionSequenceLearn
from worker.store.port import Store
from worker.training.lora import data
from worker.training.lora.data import write_training_data
from worker.training.lora.inputs import HELD_OUT_FILE, MANIFEST_FILE, TRAIN_FILE, LoraConfig, LoraExample, read_examples
from worker.training.lora.manifest import LoraManifest
from worker.wire.records import DependencyGraphRecord, Failure, LearnStatsRecord, Success

SFT = LoraConfig(base_model="base", holdout=0.3)
DPO = msgspec.structs.replace(SFT, objective="dpo")
SEQUENCE = "worker_decision_sequence"


async def written(
    store: Store, directory: Path, config: LoraConfig = SFT, models: Any = models_of
) -> tuple[list[LoraExample], list[LoraExample], LoraManifest]:
    """Both sides' rows and the manifest, as they stand in the files."""
    make_private_directory(directory)
    manifest, _ = await write_training_data(store, "S", directory, config=config, models_of=models, rules=RULES)
    assert msgspec.json.decode((directory / MANIFEST_FILE).read_bytes(), type=LoraManifest) == manifest
    of_files = sum(len(file.episodes) + file.capped_episodes for file in manifest.files.values())
    left_out = sum((manifest.passed_over | manifest.excluded).values())
    assert manifest.episodes == of_files + left_out, "an episode is untold"
    return read_examples(directory / TRAIN_FILE), read_examples(directory / HELD_OUT_FILE), manifest


def is_out(name: str) -> bool:
    """Whether a session, task or group of this name is held out."""
    return holdout(holdout_key("S", name), RULES.holdout)


async def test_each_text_stands_once_with_the_episodes_that_lived_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for n in range(30):
            await tell(store, task(f"t{n}", target="db"), seq=n)
        await project(store)
        train, held_out, manifest = await written(store, tmp_path / "data")
        assert [
            (row.learn_model, row.chosen, row.actions) for row in sorted(train, key=lambda row: row.learn_model)
        ] == [
            (SEQUENCE, "look -> open -> done", list(GOOD)),
            ("worker_task", "look -> open -> done", list(GOOD)),
        ]
        taught = [n for n in range(30) if not is_out(f"t{n}")]
        assert {row.times for row in train} == {len(taught)}
        assert manifest.files[TRAIN_FILE].examples == 2
        assert manifest.files[TRAIN_FILE].lived == 2 * len(taught)
        assert manifest.files[TRAIN_FILE].episodes == sorted(
            f"{model}:t{n}:{worker}:0" for model, worker in ((SEQUENCE, 0), ("worker_task", "-")) for n in taught
        )
        assert all(row.episodes == sorted(row.episodes) and len(row.episodes) == 20 for row in train)
        assert [row.seen for row in held_out] == [True, True]
        assert manifest.seen == 2


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
async def test_all_attempts_at_one_task_lie_on_one_side_whatever_their_sessions(tmp_path: Path, kind: Any) -> None:
    """As with tau-bench: each trial is a session, and what is asked differs from trial to trial."""
    async with opened(tmp_path, kind) as store:
        for n in range(60):
            records = task(f"t{n}", GOOD if n % 2 else BAD, group_id=f"g{n // 4}", session_id=f"s{n}")
            graph = DependencyGraphRecord(f"order of t{n}", "look, open", [], ["look"], ["open"], "m", "e", 1)
            graph.session_id = f"s{n}"
            # As some swarms do it, the end alone names the group of what was inferred at the start.
            end = LearnStatsRecord(f"s{n}", Raw(b"{}"), Success(1.0) if n % 2 else Failure("no"), 3, 3)
            end.group_id = f"g{n // 4}"
            await tell(store, [graph, *records, end], seq=n)
        await project(store)
        for config in (SFT, DPO):
            train, held_out, manifest = await written(store, tmp_path / config.objective, config)
            for rows, out in ((train, False), (held_out, True)):
                groups = {f"g{int(row.prompt.split()[-1 if 'order' in row.prompt else 1][1:]) // 4}" for row in rows}
                assert groups == {f"g{n}" for n in range(15) if is_out(f"g{n}") is out}
            assert manifest.files[TRAIN_FILE].tasks + manifest.files[HELD_OUT_FILE].tasks == 15
            assert any("order" in row.prompt for row in held_out) is (config is SFT)
            assert manifest.seen == 0


async def test_of_two_tasks_one_is_held_out_and_of_one_none(tmp_path: Path) -> None:
    inside = [f"g{n}" for n in range(99) if not is_out(f"g{n}")][:2]
    for number, names in enumerate((inside[:1], inside)):
        make_private_directory(tmp_path / str(number))
        async with opened(tmp_path / str(number)) as store:
            for seq, name in enumerate(name for name in names for _ in range(4)):
                await tell(store, task(f"t{seq}", group_id=name, session_id=f"s{seq}"), seq=seq)
            await project(store)
            train, held_out, manifest = await written(store, tmp_path / str(number) / "data")
            assert [file.tasks for file in manifest.files.values()] == [1, number]
            assert (len(train), len(held_out)) == (8, 8 * number)


async def test_a_session_lies_on_one_side_and_what_it_alone_says_was_not_seen(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for n in range(40):
            await tell(store, task(f"t{n}", session_id=f"s{n // 2}"), seq=n)
        await project(store)
        train, held_out, _ = await written(store, tmp_path / "data")
        assert {name for row in train for name in row.episodes}.isdisjoint(
            name for row in held_out for name in row.episodes
        )
        sides = [{int(row.prompt.split()[1][1:]) // 2 for row in rows} for rows in (train, held_out)]
        assert sides[0] == {n for n in range(20) if not is_out(f"s{n}")}
        assert sides[1] == {n for n in range(20) if is_out(f"s{n}")}
        assert not any(row.seen for row in held_out)


async def test_a_held_out_prompt_that_is_trained_on_too_was_seen_whatever_its_answer(tmp_path: Path) -> None:
    """Attempts at one task begin alike, and each action is judged: the second of two is no news."""
    async with opened(tmp_path) as store:
        out = next(f"s{n}" for n in range(99) if is_out(f"s{n}"))
        other = next(f"s{n}" for n in range(99) if not is_out(f"s{n}"))
        await tell(store, task("t1", target="db", session_id=other))
        await tell(store, task("t2", ("look", "close", "done"), target="db", session_id=out), seq=1)
        await tell(store, task("t3", target="web", session_id=out), seq=2)
        await project(store)
        _, held_out, manifest = await written(store, tmp_path / "data")
        assert {(row.episodes[0].split(":")[1], row.seen) for row in held_out} == {("t2", True), ("t3", False)}
        assert manifest.seen == 2


async def test_only_successes_are_taught_and_the_rest_is_told(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await tell(store, [*task("t1"), *task("t2", BAD), *task("t3", ("look", "open", "finish"))])
        await project(store)
        train, held_out, manifest = await written(store, tmp_path / "data")
        assert {row.actions[-1] for row in train + held_out} == {"done", "finish"}
        assert manifest.passed_over == {f"{SEQUENCE}: no success": 1, "worker_task: no success": 1}
        assert manifest.objective == "sft"
        assert manifest.learn_models == [SEQUENCE, "worker_task", "dependency_graph"]


async def test_preferences_are_split_by_group_since_attempts_of_one_share_the_prompt(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for n in range(60):
            await tell(
                store,
                task(f"t{n}", GOOD if n % 2 else BAD, target=f"g{n // 4}", group_id=f"g{n // 4}", session_id=f"s{n}"),
                seq=n,
            )
        await project(store)
        train, held_out, manifest = await written(store, tmp_path / "data", DPO)
        for rows, out in ((train, False), (held_out, True)):
            groups = {row.prompt.splitlines()[0].removeprefix("Target: ") for row in rows}
            assert groups == {f"g{n}" for n in range(15) if is_out(f"g{n}") is out}
            assert {(row.chosen, row.rejected) for row in rows} == {
                ("look -> open -> done", "guess -> open -> give_up")
            }
            assert {row.times for row in rows} == {2}
        assert manifest.learn_models == ["dpo"]


async def test_the_same_records_in_any_order_give_the_same_files(tmp_path: Path) -> None:
    batches = [task(f"t{n}", GOOD if n % 3 else BAD, target=f"x{n % 7}", group_id=f"g{n % 5}") for n in range(40)]
    found = []
    for attempt in range(3):
        order = list(enumerate(batches))
        random.Random(attempt).shuffle(order)
        (tmp_path / str(attempt)).mkdir()
        async with opened(tmp_path / str(attempt)) as store:
            for place, (seq, records) in enumerate(order):
                await tell(store, records, seq=seq, at_ms=1_000 + place)
                if place % 7 == 0:
                    await project(store)
            await project(store)
            for config in (SFT, DPO):
                directory = tmp_path / str(attempt) / config.objective
                await written(store, directory, config)
                found.append(
                    (config.objective, *((directory / name).read_bytes() for name in (TRAIN_FILE, MANIFEST_FILE)))
                )
    assert len(set(found)) == 2


async def test_the_newest_by_their_own_time_are_the_same_in_any_order(tmp_path: Path) -> None:
    """Some of one millisecond, and some that come in twice."""
    batches = [task(f"t{n}", target=f"x{n}", timestamp_ms=1_000 + n // 4) for n in range(40)]
    config = msgspec.structs.replace(SFT, max_episodes=10)
    found = []
    for attempt in range(3):
        order = list(enumerate([*batches, *batches[:20]]))
        random.Random(attempt).shuffle(order)
        directory = tmp_path / str(attempt)
        make_private_directory(directory)
        async with opened(directory) as store:
            for place, (seq, records) in enumerate(order):
                await tell(store, records, seq=seq, at_ms=2_000 + place)
            await project(store)
            train, held_out, _ = await written(store, directory / "data", config)
            assert {int(row.prompt.split()[1][1:]) for row in train + held_out} <= set(range(28, 40))
            found.append([(directory / "data" / name).read_bytes() for name in (TRAIN_FILE, MANIFEST_FILE)])
    assert found[0] == found[1] == found[2]


async def test_one_producer_does_not_decide_what_is_taught(tmp_path: Path) -> None:
    """Rows that it alone tells are cut to its share, and what it repeats counts once."""
    async with opened(tmp_path) as store:
        for number, producer in enumerate(("a", "b", "c", "d")):
            await tell(
                store, [one for n in range(150) for one in task(f"{producer}{n}")], producer=producer, seq=number
            )
        flood = [one for n in range(900) for one in task(f"f{n}", ("lie", "open", "done"))]
        await tell(store, flood, producer="flood")
        await tell(store, [one for n in range(300) for one in task(f"same{n}", target="same")], producer="flood", seq=1)
        await project(store)
        config = msgspec.structs.replace(SFT, producer_share=0.3)
        train, _, manifest = await written(store, tmp_path / "data", config)
        lies = sum(row.actions[0] == "lie" for row in train)
        assert lies <= 0.3 * len(train) + 2  # and the two rows that it repeated
        assert manifest.files[TRAIN_FILE].capped["flood"] > 0
        assert set(manifest.files[TRAIN_FILE].capped) == {"flood"}
        assert sum("same" in row.prompt for row in train) <= 2
        all_of_it, _, _ = await written(store, tmp_path / "data", SFT)
        assert sum(row.actions[0] == "lie" for row in all_of_it) > 0.5 * len(all_of_it)


async def test_one_producer_does_not_decide_what_is_unlearnt(tmp_path: Path) -> None:
    """The failed attempts of all groups are its own; those that succeeded are of others."""
    async with opened(tmp_path) as store:
        for number, producer in enumerate("abcd"):
            names = [f"{producer}{n}" for n in range(100)]
            good = [one for name in names for one in task(name, target=name, group_id=name)]
            bad = [one for name in names for one in task(f"f{name}", BAD, target=name, group_id=name)]
            await tell(store, good, producer=producer, seq=number)
            await tell(store, bad, producer="flood", seq=number)
        await project(store)
        whole, _, before = await written(store, tmp_path / "whole", DPO)
        config = msgspec.structs.replace(DPO, producer_share=0.3)
        train, _, manifest = await written(store, tmp_path / "data", config)
        assert len(whole) > 200
        assert 99 <= len(train) <= 100  # as many as anybody may bring; the weight is rounded down
        assert manifest.files[TRAIN_FILE].capped == {"flood": len(whole) - len(train)}
        assert len(manifest.files[TRAIN_FILE].episodes) == 2 * len(train)
        assert len(before.files[TRAIN_FILE].episodes) == 2 * len(whole)


async def test_the_newest_episodes_are_taken_and_the_older_ones_are_told_of(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for n in range(20):
            await tell(store, task(f"t{n:02}"), seq=n, at_ms=1_000 * (n + 1))
        await project(store)
        config = msgspec.structs.replace(SFT, max_episodes=5)
        train, held_out, manifest = await written(store, tmp_path / "data", config)
        assert {row.prompt.split()[1] for row in train + held_out} == {f"t{n}" for n in range(15, 20)}
        assert manifest.passed_over == {
            f"{SEQUENCE}: beyond the newest 5, by turns of producers and tasks": 15,
            "worker_task: beyond the newest 5, by turns of producers and tasks": 15,
        }


async def test_a_flood_does_not_displace_what_others_lived_before_it(tmp_path: Path) -> None:
    """By its producer, and of failures at one task: pairs are of as many tasks as there are."""
    async with opened(tmp_path) as store:
        for n in range(10):
            fields: dict[str, Any] = {"target": f"g{n}", "group_id": f"g{n}"}
            both = [*task(f"good{n}", **fields), *task(f"bad{n}", BAD, **fields)]
            await tell(store, both, producer="honest", seq=n, at_ms=n + 1)
        flood = [one for n in range(60) for one in task(f"f{n}", ("lie", "open", "done"), group_id=f"f{n}")]
        await tell(store, flood, producer="flood", at_ms=1_000)
        failures = [one for n in range(60) for one in task(f"no{n}", BAD, target="g0", group_id="g0")]
        await tell(store, failures, producer="honest", seq=10, at_ms=2_000)
        await project(store)
        few = msgspec.structs.replace(SFT, max_episodes=40)
        train, held_out, _ = await written(store, tmp_path / "sft", few)
        honest = {row.prompt.split()[1] for row in train + held_out if row.actions[0] != "lie"}
        assert honest == {f"g{n}" for n in range(10)}
        pairs = msgspec.structs.replace(few, objective="dpo")
        train, held_out, _ = await written(store, tmp_path / "dpo", pairs)
        assert {row.prompt.split()[1] for row in train + held_out} == {f"g{n}" for n in range(10)}


async def test_what_is_compared_together_has_a_bound_of_actions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is in hand at once; the newest are taken."""
    monkeypatch.setattr(data, "_MOST_AT_ONCE", 12)
    async with opened(tmp_path) as store:
        for n in range(20):
            actions = GOOD if n % 2 else BAD
            await tell(store, task(f"t{n}", actions, target=f"g{n // 2}", group_id=f"g{n // 2}"), seq=n, at_ms=n + 1)
        await project(store)
        train, held_out, manifest = await written(store, tmp_path / "data", DPO)
        assert {row.prompt.splitlines()[0] for row in train + held_out} == {"Target: g8", "Target: g9"}
        assert manifest.passed_over == {"dpo: beyond the newest 4, by turns of producers and tasks": 16}


async def test_one_task_without_end_leaves_room_for_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_MOST_AT_ONCE", 40)
    monkeypatch.setattr(data, "_MOST_OF_ONE", 20)
    async with opened(tmp_path) as store:
        for n in range(6):
            actions = GOOD if n % 2 else BAD
            await tell(store, task(f"t{n}", actions, target=f"g{n // 2}", group_id=f"g{n // 2}"), seq=n, at_ms=n + 1)
        await tell(store, task("long", ["look"] * 39 + ["done"], group_id="g0"), seq=9, at_ms=99)
        await project(store)
        train, held_out, manifest = await written(store, tmp_path / "data", DPO)
        assert {row.prompt.splitlines()[0] for row in train + held_out} == {f"Target: g{n}" for n in range(3)}
        assert manifest.passed_over == {"dpo: of more than 1000 actions": 1}


async def test_what_does_not_fit_is_the_text_of_whoever_is_loud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_MOST_TEXT", 20_000)
    monkeypatch.setattr(data, "_IN_A_ROW", 4)
    async with opened(tmp_path) as store:
        for n in range(10):
            await tell(store, task(f"z{n}"), producer="honest", seq=n, at_ms=n + 1)
        flood = [one for n in range(99) for one in task(f"a{n}", target=f"{n} " + 900 * "x")]
        await tell(store, flood, producer="flood", at_ms=1_000)
        await project(store)
        sequences = models_of("S", ())[:1]
        train, held_out, manifest = await written(store, tmp_path / "data", models=lambda *_: sequences)
        assert {row.prompt.split()[1] for row in train + held_out} >= {f"z{n}" for n in range(10)}
        assert manifest.passed_over["beyond 0 MB of text"] > 50


async def test_a_learn_model_that_fails_loses_its_own_episode_and_no_other(tmp_path: Path) -> None:
    class Careless(WorkerDecisionSequenceLearn):
        def convert(self, episode: Episode, context: EpisodeContext) -> TrainingData:
            if episode.task_id == "t3":
                raise KeyError("no such thing")
            return super().convert(episode, context)

    async with opened(tmp_path) as store:
        for n in range(8):
            await tell(store, task(f"t{n}"), seq=n)
        await project(store)
        train, held_out, manifest = await written(store, tmp_path / "data", models=lambda *_: [Careless(rules=RULES)])
        assert {row.prompt.split()[1] for row in train + held_out} == {f"t{n}" for n in range(8) if n != 3}
        assert manifest.excluded == {"the learn model failed": 1}
        assert [one.episode_id for one in manifest.excluded_episodes] == [f"{SEQUENCE}:t3:0:0"]


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
async def test_a_scenario_without_episodes_gives_empty_files(tmp_path: Path, kind: Any) -> None:
    async with opened(tmp_path, kind) as store:
        train, held_out, manifest = await written(store, tmp_path / "data")
        assert (train, held_out) == ([], [])
        assert manifest.files[HELD_OUT_FILE].examples == 0
