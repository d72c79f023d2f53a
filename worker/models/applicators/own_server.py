"""One llama-server that we start ourselves: with one adapter on one port, found again after our restart by its command.

Two traps (measured, b11434): on SIGTERM with requests under way it never ends, and those wait until they give up, so
SIGKILL follows soon; and it answers whatever name is asked for, so only its adapter's file and its answers tell what it
serves.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from pathlib import Path

import structlog
from msgspec import UNSET

from worker import crash
from worker.errors import ApplyFailed
from worker.models.adapter import decode
from worker.models.applicators.inference_client import ServerRefused, ServerUnreachable
from worker.models.applicators.llama_client import LlamaClient
from worker.models.applicators.port import OwnServerSilent
from worker.models.applicators.probe import ProbeResult, Probes, probe
from worker.models.applicators.server_command import ServerOptions, command_line, environment, option
from worker.models.applicators.server_process import ServerProcess
from worker.wire.served import ServedModel

log = structlog.get_logger(__name__)

#: Seconds between two looks at a server.
_LOOK_SECONDS = 0.05
#: Seconds for a connection on this machine.
_CONNECT_SECONDS = 2.0
#: Seconds until a large base is in memory; one that cannot load it ends at once, and that is seen.
_START_SECONDS = 600.0
#: Seconds after SIGTERM. One without requests ends in a tenth of that, one with requests never.
_STOP_SECONDS = 3.0
#: Addresses that stand for all of a machine's, and one at which the machine reaches itself.
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - to recognise them


class PortTaken(ApplyFailed):
    """Somebody answers where our server would, and it is not ours: nobody may be sent there."""


class OwnServer:
    """The server of one port: at most one process, at most one adapter."""

    def __init__(
        self, options: ServerOptions, *, port: int, process: ServerProcess, start_seconds: float = _START_SECONDS
    ) -> None:
        self._options = options
        self._port = port
        self._process = process
        self._start_seconds = start_seconds
        near = _url(_WILDCARDS.get(options.host, options.host), port)
        self.client = LlamaClient(near, options.api_key, setting="SWARM_LLAMA_PORT")
        self._stranger = LlamaClient(near, None, setting="SWARM_LLAMA_PORT")
        #: Where nodes reach it.
        self.url = _url(socket.gethostname() if options.host in _WILDCARDS else options.host, port)

    def command(self, name: str, adapter: Path) -> list[str]:
        """How it is started to serve the GGUF adapter as `name`. Raises `ApplyFailed` for what it cannot take."""
        return command_line(self._options, port=self._port, name=name, adapter=adapter)

    async def runs(self) -> list[str] | None:
        """The command of the process that runs. Raises `ApplyFailed` where it cannot be told."""
        running = await self._process.running()
        return None if running is None else running.command

    async def serves(self, command: list[str], probes: Probes) -> ProbeResult | None:
        """How the server of exactly this command answers the probes; None where that is not what serves.

        Raises `OwnServerSilent` where its process runs and says nothing.
        """
        if await self.runs() != command or not await self._healthy() or not await self._in_force(command):
            return None
        return await probe(self.client, probes, None)

    async def holds(self, command: list[str], probes: Probes) -> ProbeResult | None:
        """`serves`, for who would replace it: None too where it answers in another way, or hangs."""
        try:
            answers = await self.serves(command, probes)
        except (OwnServerSilent, ServerUnreachable, ServerRefused) as error:
            log.warning("server_does_not_answer", server=self.client.shown, error=str(error))
            return None
        return answers if answers is not None and answers.served else None

    async def bring(self, command: list[str], probes: Probes) -> ProbeResult:
        """Start it so, and see it answer as the adapter does. What ran must have been stopped.

        Raises `ApplyFailed`; then it may run.
        """
        await self._start(command)
        await self._until_ready(command)
        crash.point("adapter_loaded")
        answers = await probe(self.client, probes, None)
        if not answers.served:
            raise ApplyFailed(f"{self.client.shown} does not answer as the adapter does: {answers.detail}")
        crash.point("adapter_probed")
        return answers

    async def bring_back(self, command: list[str]) -> None:
        """Start what ran before, as it was. Another must have been stopped. Raises `ApplyFailed`."""
        await self._start(command)
        await self._until_ready(command)

    async def lost_to_another(self, document: ServedModel, adapter: Path) -> bool:
        """Whether it names this server, which is gone, and what answers in its place has another adapter than this."""
        if document.endpoint == UNSET or document.endpoint.url != self.url or await self.runs() is not None:
            return False
        try:
            return await self._port_answers() and not await self._in_force(
                self.command(document.endpoint.model, adapter)
            )
        except ApplyFailed:  # no llama-server, or the adapter's file is gone
            return True

    async def served(self, document: ServedModel | None, adapter: Path | None) -> str | None:
        """What an applicator's `served` says of the document that names this server; found by asking the server.

        `adapter` is where the file lies now that the document means: a copy that lies elsewhere may be another by now.
        """
        if document is None or document.endpoint == UNSET or document.endpoint.url != self.url:
            return None
        content = bytes(document.model)
        command = await self.runs()
        if command is None:
            return None
        if option(command, "--alias") != document.endpoint.model:
            return f"something else ({option(command, '--alias')})"
        if option(command, "--lora") != str(adapter):
            return f"something else ({option(command, '--lora')})"
        answers = await self.serves(command, Probes(decode(content).probes))
        if answers is None:
            return None
        return hashlib.sha256(content).hexdigest() if answers.served else f"something else ({answers.detail})"

    async def drain(self, seconds: float, *, quiet_seconds: float) -> None:
        """Wait until no request was there for `quiet_seconds`, at most `seconds`. Never raises."""
        clock = asyncio.get_running_loop().time
        end, quiet_since, newest = clock() + seconds, None, -1
        while (now := clock()) < end:
            try:
                slots = await self.client.slots()
            except ApplyFailed as error:  # it hangs, or is gone: nothing to wait for
                log.warning("server_not_drained", server=self.client.shown, error=str(error))
                return
            last = max((slot.id_task for slot in slots), default=-1)
            if any(slot.is_processing for slot in slots):
                quiet_since = None
            elif quiet_since is None or last != newest:  # a short request came and went between two looks
                quiet_since = now
            newest = last
            if quiet_since is not None and now - quiet_since >= quiet_seconds:
                return
            await asyncio.sleep(_LOOK_SECONDS)
        log.warning("server_still_in_use", server=self.client.shown, after_s=seconds)

    async def stop(self) -> None:
        """End the process, if there is one; requests that are under way are lost. Raises `ApplyFailed`."""
        await self._process.stop(grace=_STOP_SECONDS)

    async def close(self) -> None:
        """Release connections; the server goes on."""
        await self.client.close()
        await self._stranger.close()

    async def _start(self, command: list[str]) -> None:
        """Raises `ApplyFailed`; `PortTaken` where it would be in vain."""
        if await self._port_answers():
            raise PortTaken(
                f"port {self._port} answers at {self.client.shown} already, and it is no server of "
                f"{self._process.pid_file}: another program has it, or that file was removed while our server ran; "
                f"find it with: ss -ltnp 'sport = :{self._port}', and stop it, or choose another port"
            )
        try:
            await self._process.start(command, environment(self._options))
        except OSError as error:  # no descriptor, process or memory is left for it
            raise ApplyFailed(
                f"{command[0]} (SWARM_LLAMA_SERVER_PATH) cannot be started: {error}; see what the worker may use in "
                "/proc/<its pid>/limits, and raise its limits of open files and processes"
            ) from error

    async def _port_answers(self) -> bool:
        host = _WILDCARDS.get(self._options.host, self._options.host)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(host, self._port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    async def _until_ready(self, command: list[str]) -> None:
        """Raises `ApplyFailed` where it ends or takes too long."""
        try:
            async with asyncio.timeout(self._start_seconds):
                while not await self.client.healthy() or not await self._in_force(command):
                    if await self.runs() is None:  # and what answers, if something does, is another program
                        said = await asyncio.to_thread(self._process.said)
                        raise ApplyFailed(
                            f"llama-server ended at its start: {said}; its log is {self._process.log_file}. "
                            f"Is {self._options.base} the base of the adapter, and port {self._port} free?"
                        )
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            raise ApplyFailed(
                f"{self.client.shown} was not ready within {self._start_seconds:g} s; see {self._process.log_file}"
            ) from None

    async def _healthy(self) -> bool:
        """As the client's, but silence is no answer: a machine that is suspended or swaps pauses its processes."""
        try:
            await self.client.ask("GET", "/health", attempts=1)
        except ServerRefused:  # it loads its model
            return False
        except ServerUnreachable as error:
            raise OwnServerSilent(str(error)) from error
        return True

    async def _in_force(self, command: list[str]) -> bool:
        """Whether what answers has this adapter alone, and nobody has scaled it down by POST /lora-adapters.

        Nor does it where it lets everybody in though there is a key: it was started before that was set.
        """
        try:
            loaded = await self.client.adapters()
        except ServerRefused:  # no llama-server, or one with another key
            return False
        if [(each.path, each.scale) for each in loaded] != [(option(command, "--lora"), 1.0)]:
            return False
        return not self._options.api_key or not await self._lets_everybody_in()

    async def _lets_everybody_in(self) -> bool:
        try:
            await self._stranger.adapters()
        except ServerRefused:
            return False
        return True


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
