"""Security checklist S10 to S12: no SQL built from data, nothing that can run code, no model that was changed."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import json
import pickle
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.no_pickle import CodeLoadedError
from tests.unit.training_world import World, given_input, opened, scripted, worker_over, write_input
from worker.client.models import ModelFile
from worker.errors import ApplyFailed
from worker.learning.offline_model import ModelUnreadable
from worker.models.applicators.files import FilesApplicator
from worker.store.port import Model
from worker.training.child import Died
from worker.wire.codec import decode_batch
from worker.wire.commands import decode_command
from worker.wire.reasons import Rejection

_WORKER = Path(__file__).parents[2] / "worker"
_SOURCES = sorted(_WORKER.rglob("*.py"))


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """Every node of every source file, with where it stands."""
    for path in _SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            yield f"{path.relative_to(_WORKER)}:{getattr(node, 'lineno', 0)}", node


# ---------------------------------------------------------------- S10

_SQL = re.compile(r"\b(SELECT|INSERT\s+INTO|UPDATE|DELETE\s+FROM|DROP|CREATE|ALTER|ATTACH|VALUES|WHERE|PRAGMA)\b")
#: Where SQL may have a part put in, each a constant of the code: checked by hand.
_CONSTANT_PARTS = {"store/sqlite/connection.py", "store/sqlite/migrate.py", "client/spool.py"}


def _texts(node: ast.AST) -> str:
    return " ".join(one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str))


def _puts_together(node: ast.AST) -> bool:
    match node:
        case ast.JoinedStr():
            return any(isinstance(part, ast.FormattedValue) for part in node.values)
        case ast.BinOp(op=ast.Mod() | ast.Add()):
            return True
        case ast.Call(func=ast.Attribute(attr="format" | "format_map" | "join" | "replace")):
            return True
        case _:
            return False


def test_s10_no_sql_is_put_together_from_parts() -> None:
    """Values are bound. What is written with upper-case SQL words is SQL, as in all of our files."""
    found = [place for place, node in nodes() if _puts_together(node) and _SQL.search(_texts(node))]
    unknown = [place for place in found if place.partition(":")[0] not in _CONSTANT_PARTS]
    assert unknown == []


def test_s10_the_search_for_sql_finds_it() -> None:
    for text in (
        'f"SELECT * FROM {table}"', '"SELECT * FROM " + table', '"DELETE FROM t WHERE a = %s" % a',
        '"UPDATE t SET a = {}".format(a)', '" ".join(["SELECT", a])',
    ):  # fmt: skip
        (statement,) = ast.parse(text).body
        assert isinstance(statement, ast.Expr)
        assert _puts_together(statement.value)
        assert _SQL.search(_texts(statement.value))


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
async def test_s10_names_that_look_like_sql_are_stored_and_read_back(tmp_path: Path, kind: Any) -> None:
    names = ["'; DROP TABLE record; --", "%s", "?", ":scenario", "{0}", '"', "a' OR '1'='1", "\\", "$1", "%(x)s", "`"]
    async with opened(tmp_path, kind) as store:
        world = worker_over(store, tmp_path)
        await world.feed(3, scenario="S")
        for name in names:
            assert await store.trigger_state(name) == type(await store.trigger_state(name))(scenario=name)
            assert await store.models(name) == []
            assert await store.quarantine_list(name) == []
        assert await store.scenarios() == ["S"]


# ---------------------------------------------------------------- S11

_FORBIDDEN_IMPORTS = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "jsonpickle", "joblib", "shelve", "marshal", "yaml", "torch",
    "numpy", "aio_pika.patterns", "multiprocessing", "code", "codeop", "imp", "runpy", "xmlrpc", "xml",
}  # fmt: skip
#: Where adapters are trained, in a child process, there is no way without them; see the test of what they load.
_TENSORS = {"torch", "numpy"}
_FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "Unpickler", "literal_eval"}


def test_s11_no_module_that_runs_what_it_reads_is_imported() -> None:
    found = []
    for place, node in nodes():
        match node:
            case ast.Import():
                named = [alias.name for alias in node.names]
            case ast.ImportFrom(module=str(module)):
                named = [module, *(f"{module}.{alias.name}" for alias in node.names)]
            case _:
                continue
        forbidden = _FORBIDDEN_IMPORTS - _TENSORS if place.startswith("training/lora/") else _FORBIDDEN_IMPORTS
        found += [f"{place} {name}" for name in named for bad in forbidden if f"{name}.".startswith(f"{bad}.")]
    assert found == []


def test_s11_tensors_come_out_of_safetensors_and_models_bring_no_code() -> None:
    """`torch.load` and its like unpickle, and a hub's model may name code of its own."""
    found = []
    for place, node in nodes():
        match node:
            case ast.Attribute(value=ast.Name(id="torch" | "np" | "numpy"), attr="load" | "hub" | "jit"):
                found.append(f"{place} {node.attr}")
            case ast.keyword(arg="trust_remote_code", value=ast.Constant(value=False)):
                pass  # said, so that nobody is asked
            case ast.keyword(arg="trust_remote_code" | "allow_pickle"):
                found.append(f"{place} {node.arg}")
            case ast.keyword(arg="use_safetensors", value=ast.Constant(value=value)) if value is not True:
                found.append(f"{place} use_safetensors")
    assert found == []


def test_s11_nothing_runs_text() -> None:
    """Nor a shell."""
    found = []
    for place, node in nodes():
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in _FORBIDDEN_CALLS:
                found.append(f"{place} {function.id}")
            # `re.compile` is another thing.
            if isinstance(function, ast.Attribute) and function.attr in _FORBIDDEN_CALLS - {"compile"}:
                # Without an argument it is a model's, which ends training mode.
                found += [f"{place} {function.attr}"] if node.args or function.attr != "eval" else []
            if any(word.arg == "shell" for word in node.keywords):
                found.append(f"{place} shell=")
    assert found == []


def test_s11_during_all_tests_worker_code_that_unpickles_fails() -> None:
    """The guard itself: it strikes where a module of ours asks, also through another, and nowhere else."""
    text = pickle.dumps({"a": 1})
    assert pickle.loads(text) == {"a": 1}  # noqa: S301 - our own
    ours: dict[str, Any] = {"__name__": "worker.fake", "pickle": pickle, "data": text}
    for attempt in ("pickle.loads(data)", "(lambda: [pickle.loads(one) for one in [data]])()"):
        with pytest.raises(CodeLoadedError, match=r"worker\.fake"):
            eval(attempt, ours)  # noqa: S307 - code of a test


async def a_model(world: World) -> Model:
    """Trained on what was fed."""
    async with world.running(), asyncio.timeout(30):
        await world.runs.wait(await world.command("c1"))
    (model,) = await world.store.models("S")
    return model


class Bomb:
    """What runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


async def test_s11_a_pickle_bomb_does_not_go_off(tmp_path: Path) -> None:
    """As a record, a command, a model file of ours, one that is served, a trainer's input and a trainer's result."""
    marker = tmp_path / "went-off"
    bomb = pickle.dumps(Bomb(marker))
    assert isinstance(decode_batch(bomb, scenario="S"), Rejection)
    assert isinstance(decode_batch(bomb, scenario="S", content_encoding="gzip"), Rejection)
    assert isinstance(decode_command(bomb), Rejection)

    served = ModelFile(tmp_path, "S")
    served.path.parent.mkdir()
    served.path.write_bytes(bomb)
    with pytest.raises(ModelUnreadable):
        served.current()
    assert await FilesApplicator(tmp_path).served("S") == "unreadable"

    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        await world.feed(60)
        model = await a_model(world)
        (world.files.directory("S", 1) / "model.json").write_bytes(bomb)
        with pytest.raises(ApplyFailed, match="SHA-256 differs"):
            await world.registry.read(model)

    run_dir = tmp_path / "run"
    write_input(run_dir, given_input(run_id="r"))
    script = f"import pathlib, sys; (pathlib.Path(sys.argv[1]) / 'result.json').write_bytes({bomb!r})"
    end = await scripted(script).run(run_dir, lambda *_: None)
    assert isinstance(end, Died)
    assert end.reason.startswith("bad_output")
    assert not marker.exists()
    pickle.loads(bomb)  # noqa: S301 - our own
    assert marker.exists(), "the bomb is one"


# ---------------------------------------------------------------- S12


async def test_s12_a_model_with_one_byte_changed_is_neither_applied_nor_used(tmp_path: Path) -> None:
    """Its row has its SHA-256; the file that nodes read carries it too."""
    chance = random.Random(12)
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, applicator=FilesApplicator(tmp_path))
        await world.feed(60)
        model = await a_model(world)
        path = world.files.directory("S", 1) / "model.json"
        good = path.read_bytes()
        assert hashlib.sha256(good).hexdigest() == model.sha256

        for place in [0, len(good) - 1, *chance.sample(range(len(good)), 10)]:
            path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            with pytest.raises(ApplyFailed, match="SHA-256 differs"):
                await world.applier.apply_now(model, by="test", forced=True)
        for changed in (good[:-1], good + b" ", b""):
            path.write_bytes(changed)
            with pytest.raises(ApplyFailed):
                await world.applier.apply_now(model, by="test", forced=True)
        node = ModelFile(tmp_path, "S")
        assert node.current() is None
        assert "champion" not in await store.aliases("S")

        path.write_bytes(good)
        await world.applier.apply_now(model, by="test", forced=True)
        current = node.current()
        assert current is not None
        assert current.model_id == model.model_id

        document = node.path.read_bytes()
        inside = document.index(b'"model":') + 8
        for place in chance.sample(range(inside, len(document) - 1), 10):
            if document[place : place + 1].isdigit():  # still JSON, and another model
                digit = b"7" if document[place : place + 1] != b"7" else b"8"
                node.path.write_bytes(document[:place] + digit + document[place + 1 :])
                with pytest.raises(ModelUnreadable):
                    ModelFile(tmp_path, "S").current()
        assert json.loads(document)["sha256"] == model.sha256
        # At the next start the worker sees that another model is served, and serves the live one again.
        node.path.write_bytes(document.replace(b'"lo":1', b'"lo":7', 1))
        await world.applier.reconcile("S", "offline")
        assert node.path.read_bytes() == document
