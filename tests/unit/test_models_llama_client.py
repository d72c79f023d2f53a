"""What we make of an inference server's answers, odd ones too: every error names the server, and none a secret."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from pydantic import SecretStr

from worker.errors import ApplyFailed
from worker.models.applicators.inference_client import ServerRefused, ServerUnreachable
from worker.models.applicators.llama_client import ListedModel, LlamaClient, ModelStatus

KEY = "canary-key"


class Server:
    """Answers every path with the next of `answers`, the last one again and again."""

    def __init__(self) -> None:
        self.answers: list[web.Response] = []
        self.seen: list[tuple[str, str, str]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.seen.append((request.method, request.path_qs, await request.text()))
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer.__class__(body=answer.body, status=answer.status, headers=answer.headers)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """Someone who answers."""
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}"
    yield server
    await runner.cleanup()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[LlamaClient]:
    """A client of it, with a key and a password that nobody may see."""
    client = LlamaClient(server.url.replace("//", "//user:canary-password@") + "/", SecretStr(KEY))
    client._seconds = 2
    yield client
    await client.close()


def says(text: str, status: int = 200) -> web.Response:
    """An answer."""
    return web.Response(body=text.encode(), status=status)


async def test_a_completion_is_asked_for_greedily(server: Server, client: LlamaClient) -> None:
    client.url = server.url
    server.answers = [says('{"choices": [{"index": 0, "text": " up", "logprobs": null}]}')]
    assert await client.complete("S@1", "where?", max_tokens=7) == " up"
    method, path, body = server.seen[0]
    assert (method, path) == ("POST", "/v1/completions")
    assert '"model":"S@1"' in body
    assert '"temperature":0' in body
    await client.complete(None, "where?", max_tokens=7)
    assert "model" not in server.seen[1][2]


Call = Callable[[LlamaClient], Awaitable[object]]


@pytest.mark.parametrize(
    ("call", "answer", "said"),
    [
        (lambda c: c.complete("m", "p", max_tokens=1), "<html>", "answers what we do not understand"),
        (lambda c: c.complete("m", "p", max_tokens=1), '{"choices": []}', "without any choice"),
        (lambda c: c.models(), '{"data": [{"name": 1}]}', "answers what we do not understand"),
        (lambda c: c.adapters(), "{}", "answers what we do not understand"),
        (lambda c: c.adapters(), " " * 5_000_000, "answers with more than 4194304 bytes"),
        (lambda c: c.props(), '{"total_slots": 1}', "is no llama-server in router mode; start it without -m"),
    ],
    ids=["no JSON", "no choice", "another list", "no list", "too much", "no router"],
)
async def test_an_answer_of_another_form_is_an_error_that_names_the_server(
    server: Server, client: LlamaClient, call: Call, answer: str, said: str
) -> None:
    client.url = server.url
    server.answers = [says(answer)]
    with pytest.raises(ApplyFailed, match=said) as error:
        await call(client)
    assert f"http://***@{server.url[7:]}" in str(error.value)
    assert "canary" not in str(error.value)


@pytest.mark.parametrize("text", ['{"error": {"code": 500, "message": "out of memory"}}', "out of memory"])
async def test_a_refusal_is_told_with_its_reason_and_not_repeated(
    server: Server, client: LlamaClient, text: str
) -> None:
    client.url = server.url
    server.answers = [says(text, 500)]
    with pytest.raises(ServerRefused, match=r"refused POST /models/load with HTTP 500: out of memory$") as error:
        await client.load("S@1")
    assert error.value.status == 500
    assert len(server.seen) == 1


async def test_no_redirect_takes_the_key_elsewhere(server: Server, client: LlamaClient) -> None:
    client.url = server.url
    server.answers = [web.Response(status=307, headers={"Location": "/elsewhere"})]
    with pytest.raises(ServerRefused, match="HTTP 307"):
        await client.models()
    assert len(server.seen) == 1


async def test_what_is_done_already_is_no_error(server: Server, client: LlamaClient) -> None:
    client.url = server.url
    server.answers = [says('{"error": {"message": "model is already running"}}', 400)]
    await client.load("S@1")
    server.answers = [says('{"error": {"message": "model is not running"}}', 400)]
    await client.unload("S@1")
    server.answers = [says('{"error": {"message": "model is not found"}}', 404)]
    with pytest.raises(ServerRefused, match="model is not found"):
        await client.load("S@1")


async def test_a_section_is_looked_at_without_being_loaded(server: Server, client: LlamaClient) -> None:
    client.url = server.url
    server.answers = [
        says('[{"id": 0, "is_processing": false}, {"id": 1, "is_processing": true}]'),
        says('[{"id": 0, "is_processing": false}]'),
        says('{"error": {"message": "model is not loaded"}}', 400),
        says('{"error": {"message": "does not support slots endpoint"}}', 501),
        says('{"error": {"message": "oh"}}', 500),
    ]
    assert [await client.busy("S@1") for _ in range(4)] == [True, False, False, None]
    with pytest.raises(ServerRefused):
        await client.busy("S@1")
    assert {path for _, path, _ in server.seen} == {"/slots?model=S@1&autoload=0"}


async def test_a_server_is_healthy_once_it_says_so(server: Server, client: LlamaClient) -> None:
    client.url = server.url
    server.answers = [says('{"error": {"message": "Loading model"}}', 503), says('{"status": "ok"}')]
    assert [await client.healthy(), await client.healthy()] == [False, True]


async def test_nobody_there_is_told_with_the_setting_and_without_the_secret(client: LlamaClient) -> None:
    client.url = "http://127.0.0.1:9"
    assert not await client.healthy()
    with pytest.raises(ServerUnreachable, match=r"did not answer GET /models: .*SWARM_LLAMA_URL") as error:
        await client.models()
    assert "canary" not in str(error.value)


def test_an_option_is_found_among_a_processs_arguments() -> None:
    row = ListedModel("S@1", ModelStatus("loaded", args=["llama-server", "--lora", "/a.gguf", "--model", "/b.gguf"]))
    assert (row.option("--lora"), row.option("--model"), row.option("--port")) == ("/a.gguf", "/b.gguf", None)
    assert ListedModel("gpt").option("--lora") is None


@pytest.mark.parametrize(
    ("value", "running", "ready"),
    [("unloaded", False, False), ("loading", True, False), ("loaded", True, True), ("sleeping", True, True)],
)
def test_a_section_that_loads_runs_and_one_that_sleeps_is_ready(value: str, running: bool, ready: bool) -> None:
    row = ListedModel("S@1", ModelStatus(value))
    assert (row.running, row.ready) == (running, ready)
    assert not ListedModel("a model of a server that is no router").running


async def test_an_answer_that_is_nested_without_end_is_a_bad_answer(server: Server, client: LlamaClient) -> None:
    """It was a fault of ours, and left an apply open that went live a minute later."""
    client.url = server.url
    server.answers = [says('{"x":' + "[" * 100_000)]
    with pytest.raises(ApplyFailed, match="answers what we do not understand"):
        await client.models()
    server.answers = [says('{"x":' + "[" * 100_000, 500)]
    with pytest.raises(ServerRefused):
        await client.models()
