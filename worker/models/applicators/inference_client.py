"""HTTP to an inference server: what llama-server and vLLM answer alike, and errors that name server and cure."""

from __future__ import annotations

from typing import Any, TypeVar

import aiohttp
import msgspec
from msgspec import Struct
from pydantic import SecretStr
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from worker.errors import ApplyFailed
from worker.redaction import redact

#: Most bytes of an answer that are read; a router with a hundred sections lists itself in a tenth of that.
_ANSWER_LIMIT = 4 << 20
#: Most characters of a refusal that are passed on.
_REASON_LENGTH = 300
#: Seconds for a completion: it may wait for a slot while every one is generating.
_COMPLETION_SECONDS = 120.0

T = TypeVar("T")


class ServerUnreachable(ApplyFailed):
    """The inference server did not answer."""


class ServerRefused(ApplyFailed):
    """The inference server answered with an error."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Problem(Struct):
    message: str = ""


class _Refusal(Struct):
    error: _Problem


class _Choice(Struct):
    text: str


class _Completion(Struct):
    choices: list[_Choice]


class InferenceClient:
    """One server; an instance belongs to one event loop."""

    def __init__(self, url: str, api_key: SecretStr | None, *, setting: str, seconds: float = 10.0) -> None:
        """`setting` is what names the server, for errors; `seconds` bound a request that generates nothing."""
        self.url = url.rstrip("/")
        self.shown = redact(self.url)  # without credentials, for people
        self._api_key = api_key
        self._setting = setting
        self._seconds = seconds
        self._session: aiohttp.ClientSession | None = None

    async def healthy(self) -> bool:
        """Whether the server says that it can serve: no (503) while a llama-server loads its model."""
        try:
            await self.ask("GET", "/health", attempts=1)
        except ApplyFailed:
            return False
        return True

    async def complete(self, model: str | None, prompt: str, *, max_tokens: int) -> str:
        """What greedy decoding adds to `prompt`; `model` None: the only one there is. Raises `ApplyFailed`.

        The server puts the opening mark before it where its tokenizer has one, as probes expect of it.
        """
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "seed": 0}
        if model is not None:
            body["model"] = model
        text = await self.ask("POST", "/v1/completions", body, seconds=_COMPLETION_SECONDS)
        choices = self.parse(text, _Completion).choices
        if not choices:
            raise ApplyFailed(f"{self.shown} answered a completion without any choice")
        return choices[0].text

    async def ask(
        self, method: str, path: str, body: Any = None, *, seconds: float | None = None, attempts: int = 4
    ) -> bytes:
        """The body of a 2xx answer. Raises `ServerUnreachable`, or `ServerRefused` for any other status.

        Only a connection that could not be made is tried again: then nothing was asked yet.
        """
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(aiohttp.ClientConnectorError),
                stop=stop_after_attempt(attempts),
                wait=wait_exponential(multiplier=0.25, max=2),
                reraise=True,
            ):
                with attempt:
                    return await self._ask_once(method, path, body, self._seconds if seconds is None else seconds)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ServerUnreachable(
                f"{self.shown} did not answer {method} {path.partition('?')[0]}: {type(error).__name__}; "
                f"is the server running, and is {self._setting} its address?"
            ) from None  # the cause's own text would show the whole URL
        raise AssertionError("unreachable: the last try either returns or raises")

    def parse(self, text: bytes, kind: type[T]) -> T:
        """An answer as JSON of a known form. Raises `ApplyFailed`."""
        try:
            return msgspec.json.decode(text, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # the last: nested without end
            raise ApplyFailed(f"{self.shown} answers what we do not understand: {error}") from error

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _ask_once(self, method: str, path: str, body: Any, seconds: float) -> bytes:
        headers = {}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key.get_secret_value()}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = msgspec.json.encode(body)
        if self._session is None:
            self._session = aiohttp.ClientSession()
        # No redirects: they would carry the key to a place nobody configured.
        async with self._session.request(
            method, self.url + path, data=data, headers=headers, allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=seconds),
        ) as response:  # fmt: skip
            text = await self._read(response.content)
            if not response.ok or response.status >= 300:  # noqa: PLR2004 - 3xx, which `ok` lets through
                raise self._refused(method, path, response.status, text)
            return text

    async def _read(self, content: aiohttp.StreamReader) -> bytes:
        text = bytearray()
        while chunk := await content.read(65_536):
            text += chunk
            if len(text) > _ANSWER_LIMIT:
                raise ApplyFailed(f"{self.shown} answers with more than {_ANSWER_LIMIT} bytes")
        return bytes(text)

    def _refused(self, method: str, path: str, status: int, text: bytes) -> ServerRefused:
        try:
            reason = msgspec.json.decode(text, type=_Refusal).error.message
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            reason = text.decode(errors="replace")
        said = f": {redact(reason[:_REASON_LENGTH])}" if reason else ""
        return ServerRefused(f"{self.shown} refused {method} {path.partition('?')[0]} with HTTP {status}{said}", status)
