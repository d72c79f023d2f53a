"""A llama-server in router mode as far as adapters go: the routes, answers and traps of tools/server/server-models.cpp.

b11434's traps are in it: an unload says success at once and is over later, and breaks the requests that are still
there; a reload stops a running section that changed or went; a load over --models-max stops somebody else's idle
model; a process that cannot load is only seen as an exit code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from tests.contract.adapter_building import BASE_ANSWER
from tests.contract.fake_server import FakeServer, refusal

#: Seconds that a process takes to start and to stop.
_STEP = 0.02


@dataclass
class Instance:
    """A section, and its process where it has one."""

    options: dict[str, str]
    status: str = "unloaded"
    exit_code: int = 0
    answer: str = ""
    stopping: bool = False
    last_used: int = 0
    running: dict[str, str] = field(default_factory=dict)  # the options of its process
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    requests: set[asyncio.Task[object]] = field(default_factory=set)

    async def become(self, status: str) -> None:
        """The next state."""
        async with self.changed:
            self.status = status
            self.changed.notify_all()

    async def until(self, *statuses: str) -> None:
        """Wait for one of these states."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.status in statuses)


class FakeLlamaRouter(FakeServer):
    """Serves what the sections of a preset file name; what it runs is gone with `restart`."""

    def __init__(self, preset: Path, *, api_key: str | None = None, models_max: int = 4, autoload: bool = True) -> None:
        super().__init__(api_key=api_key)
        self.preset = preset
        self.models_max = models_max
        self.autoload = autoload
        self.slots = True
        self.refuse_loads = False
        self.refuse_unloads = False
        #: Completions that arrived are answered once this is set.
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.models: dict[str, Instance] = {}
        self._uses = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health", self._health),
            web.get("/props", self._props),
            web.get("/models", self._list),
            web.post("/models/load", self._load),
            web.post("/models/unload", self._unload),
            web.get("/slots", self._slots),
            web.post("/v1/completions", self._complete),
        ]

    async def start(self) -> None:
        """Refuses to without the preset file, as the real one does."""
        self.restart()
        await super().start()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await super().stop()

    def restart(self) -> None:
        """Nothing runs any more."""
        self.models = {name: Instance(options) for name, options in self._sections().items()}

    def loaded(self) -> list[str]:
        """Which sections have a process."""
        return sorted(name for name, each in self.models.items() if each.status != "unloaded")

    def _sections(self) -> dict[str, dict[str, str]]:
        sections: dict[str, dict[str, str]] = {"": {}}
        name = ""
        for line in self.preset.read_text().splitlines():
            text = line.partition("#")[0].partition(";")[0].strip()
            if text.startswith("["):
                name = text.strip("[] ")
                sections[name] = {}
            elif text:
                key, _, value = text.partition("=")
                sections[name][key.strip()] = value.strip()
        shared = sections.pop("*", {})
        del sections[""]
        return {name: {**shared, **options} for name, options in sections.items()}

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _props(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "role": "router",
                "max_instances": self.models_max,
                "models_autoload": self.autoload,
                "build_info": "b11434",
            }
        )

    async def _list(self, request: web.Request) -> web.Response:
        if request.query.get("reload"):
            await self._reload()
        return web.json_response({"object": "list", "data": [_row(*each) for each in self.models.items()]})

    async def _reload(self) -> None:
        sections = self._sections()
        for name, each in list(self.models.items()):
            if each.status != "unloaded" and each.running != sections.get(name):
                self._stop(name)
                await each.until("unloaded")
            if name not in sections:
                del self.models[name]
            elif each.status == "unloaded":
                each.options, each.exit_code = sections[name], 0
        for name, options in sections.items():
            self.models.setdefault(name, Instance(options))

    async def _load(self, request: web.Request) -> web.Response:
        name = (await request.json())["model"]
        if name not in self.models:
            return refusal(404, "model is not found")
        if self.models[name].status != "unloaded":
            return refusal(400, "model is already running")
        return web.json_response({"success": True}) if await self._spawn(name) else refusal(500, "model limit reached")

    async def _spawn(self, name: str) -> bool:
        running = [other for other in self.models if self.models[other].status != "unloaded"]
        if 0 < self.models_max <= len(running):
            idle = [each for each in running if self.models[each].status == "loaded" and not self.models[each].requests]
            if not idle:
                return False
            victim = min(idle, key=lambda each: self.models[each].last_used)
            self._stop(victim)
            await self.models[victim].until("unloaded")
        instance = self.models[name]
        instance.status, instance.running = "loading", dict(instance.options)
        instance.exit_code = 1 if self.refuse_loads else 0
        self._later(self._come_up(instance))
        return True

    async def _come_up(self, instance: Instance) -> None:
        await asyncio.sleep(_STEP)
        file = instance.running.get("lora")
        try:
            instance.answer = BASE_ANSWER if file is None else self.answer_with(Path(file))
        except (OSError, ValueError):
            instance.exit_code = 1
        await instance.become("unloaded" if instance.exit_code else "loaded")

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["model"]
        if name not in self.models:
            return refusal(400, "model is not found")
        if self.models[name].status == "unloaded":
            return refusal(400, "model is not running")
        if self.refuse_unloads:
            return refusal(500, "out of luck")
        self._stop(name)
        return web.json_response({"success": True})

    def _stop(self, name: str) -> None:
        instance = self.models[name]
        if not instance.stopping:
            instance.stopping = True
            self._later(self._go_down(instance))

    async def _go_down(self, instance: Instance) -> None:
        await asyncio.sleep(_STEP)
        for task in instance.requests:
            task.cancel()
        instance.stopping = False
        await instance.become("unloaded")

    def _later(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _slots(self, request: web.Request) -> web.Response:
        instance = self.models.get(request.query.get("model", ""))
        if instance is None or (request.query.get("autoload") == "0" and instance.status == "unloaded"):
            return refusal(400, "model is not loaded")
        if not self.slots:
            return refusal(501, "This server does not support slots endpoint. Start it with `--slots`")
        busy = len(instance.requests)
        return web.json_response([{"id": slot, "is_processing": slot < busy} for slot in range(4)])

    async def _complete(self, request: web.Request) -> web.Response:
        name = (await request.json()).get("model", "")
        instance = self.models.get(name)
        if instance is None:
            return refusal(400, f"model '{name}' not found")
        if not self.autoload and instance.status == "unloaded":
            return refusal(400, "model is not loaded")
        if instance.stopping:
            await instance.until("unloaded")
        if instance.status == "unloaded":
            await self._spawn(name)
        await instance.until("loaded", "unloaded")
        if instance.status == "unloaded":
            return refusal(500, f"model name={name} failed to load")
        self._uses += 1
        instance.last_used = self._uses
        work: asyncio.Task[object] = asyncio.create_task(self.go_on.wait())
        instance.requests.add(work)
        try:
            await asyncio.wait((work,))
        finally:
            instance.requests.discard(work)
        if work.cancelled():
            return web.Response(status=500, text="proxy error: Failed to read connection")
        return web.json_response({"choices": [{"index": 0, "text": instance.answer, "finish_reason": "stop"}]})


def _row(name: str, instance: Instance) -> dict[str, object]:
    options = instance.options if instance.status == "unloaded" else instance.running
    args = ["llama-server", *(part for key, value in options.items() for part in (f"--{key}", value))]
    status: dict[str, object] = {"value": instance.status, "args": [*args, "--alias", name]}
    if instance.status == "unloaded" and instance.exit_code:
        status |= {"failed": True, "exit_code": instance.exit_code}
    return {"id": name, "object": "model", "owned_by": "llamacpp", "status": status, "source": "preset"}
