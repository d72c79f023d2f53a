"""What each command does. Knows the parts it moves; nothing of messages, signatures or replies (`control`)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from worker.broker.dead import DeadLetters
from worker.clock import Clock
from worker.episodes.rules import Rules
from worker.errors import CommandFailed, WorkerError
from worker.intake import Intake
from worker.models.applier import Applier, ApplyResult, ApplySkipped
from worker.models.deployer import Applied
from worker.models.registry import Registry
from worker.projector.projector import Projector
from worker.sink.producers import Producers
from worker.sink.replay import replay_quarantine
from worker.store.port import Model, ModelKind, Run, Store
from worker.training.endings import has_news
from worker.training.runs import RunManager
from worker.training.trigger_book import TriggerBook
from worker.wire.commands import (
    Apply,
    Command,
    ListDead,
    Pause,
    Rebuild,
    ReplayDead,
    ReplayQuarantine,
    Resume,
    Rollback,
    Shutdown,
    Status,
    TrainNow,
)

#: Who holds the intake when an operator paused it.
OPERATOR = "operator"
#: How long a training by command waits for the projector, in s.
_CATCH_UP_SECONDS = 30.0
#: Entries that an error names; its result has them all.
_NAMED = 10


class CommandRefused(WorkerError):
    """The command cannot be carried out as things are; the message says what would have to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Carries out good commands; see `carry_out`."""

    scenarios: Sequence[str]
    store: Store
    clock: Clock
    runs: RunManager
    book: TriggerBook
    applier: Applier
    registry: Registry
    projector: Projector
    intake: Intake
    rules_of: Callable[[str], Rules]
    producers: Producers | None
    dead: DeadLetters
    status: Callable[[], Awaitable[dict[str, Any]]]
    stop_and_drain: Callable[[str], Awaitable[bool]]
    #: What an apply or rollback reads before it stands in the applier's own queue is read by one after the other, so
    #: that who came first stands there first: after a start all that were interrupted come at once. By scenario.
    _before_turns: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock), init=False)
    #: One after the other too: of a pause of all scenarios and the release of one, the later has the last word on it.
    _pausing: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def carry_out(self, command: Command, received_at_ms: int | None = None) -> dict[str, Any]:
        """Do it and say what came of it. Raises `CommandRefused`, `CommandFailed`, or another `WorkerError`.

        `received_at_ms`: when it came, Unix ms, maybe to an earlier life; None for just now.
        """
        by = f"command {command.command_id}"
        args = command.args
        match args:
            case TrainNow():
                return await self._train_now(_scenario(command), args, command.command_id)
            case Apply():
                return await self._apply(_scenario(command), args, by, received_at_ms)
            case Rollback():
                return await self._rollback(_scenario(command), args, by, received_at_ms)
            case Rebuild():
                await self.store.rebuild(_scenario(command))
                return {"projected": await self.projector.catch_up()}
            case ReplayQuarantine():
                return await self._replay(_scenario(command), args)
            case ListDead() | ReplayDead():
                return await self._dead_letters(_scenario(command), args)
            case Pause(what=what) | Resume(what=what):
                async with self._pausing:
                    return await self._pause(command.scenario, what, paused=isinstance(args, Pause))
            case Status():
                return await self.status()
            case Shutdown():
                return {"drained": await self.stop_and_drain(by)}

    async def _train_now(self, scenario: str, args: TrainNow, command_id: str) -> dict[str, Any]:
        """The answer is that of the run; where two kinds are trained, it is theirs by kind."""
        kinds = self.runs.kinds if args.kind is None else [args.kind]
        if unable := [kind for kind in kinds if kind not in self.runs.kinds]:
            raise CommandRefused(
                f"this worker trains {' and '.join(self.runs.kinds)} models only; set SWARM_PROCESSOR_MODE to "
                f"{unable[0]} or full and start it again, or say --kind {self.runs.kinds[0]}"
            )
        if args.dry_run:
            return _of_kinds({kind: await self._dry_run(scenario, kind) for kind in kinds})
        # Episodes of what was stored until now belong into the training that was asked for now; beside heavy ingest
        # there is no end to them, and a training of most is better than none.
        await self.projector.catch_up(within=_CATCH_UP_SECONDS)
        requested = [
            await self.runs.request(
                scenario,
                kind=kind,
                trigger={"kind": "command", "values": {"force": args.force}, "by": f"command {command_id}"},
                apply=args.apply,
                nonce=command_id,
            )
            for kind in kinds
        ]
        told: dict[ModelKind, dict[str, Any]] = {}
        for run in requested:
            ended = await self.runs.wait(run.run_id)
            if ended is None:
                raise WorkerError(f"run {run.run_id} is gone from the store; was the store replaced?")
            told[run.kind] = await self._told(ended)
        if failed := [
            f"the {kind} training failed: {one['reason']}" for kind, one in told.items() if one["state"] == "failed"
        ]:
            raise CommandFailed("; ".join(failed), _of_kinds(told))
        return _of_kinds(told)

    async def _told(self, run: Run) -> dict[str, Any]:
        result: dict[str, Any] = {
            "run_id": run.run_id,
            "scenario": run.scenario,
            "kind": run.kind,
            "state": run.state,
            "reason": run.reason,
            "window": [run.window_lo, run.window_hi],
        }
        if run.model_id is not None:
            model = await self.registry.get(run.model_id)
            result |= {
                "model_id": model.model_id,
                "model_version": model.version,
                "gate": {"verdict": model.gate_verdict, "reasons": model.gate_reasons},
                "applied": _applied(self.runs.applied(run.run_id)),
            }
        return result

    async def _dry_run(self, scenario: str, kind: ModelKind) -> dict[str, Any]:
        facts = await self.store.facts(scenario)
        state = await self.book.read(scenario, kind)
        return {
            "would_train": has_news(state, facts),
            "window": [(state.trained_upto or 0) + 1, facts.last_batch_no],
            "new_episodes": max(0, facts.episodes - state.trained_episodes),
            "new_sessions": max(0, facts.counted_sessions - state.trained_sessions),
        }

    async def _apply(self, scenario: str, args: Apply, by: str, asked_at_ms: int | None) -> dict[str, Any]:
        async with self._before_turns[scenario]:
            begun = await self.applier.begun_by(scenario, by)
            if begun is None:
                name = args.model_id or (None if args.version is None else str(args.version))
                model = await (
                    self.registry.candidate(scenario, args.kind) if name is None else self.registry.find(scenario, name)
                )
                _is_of(args.kind, model)
        if begun is not None:
            return plain(await self.applier.end_of(*begun, by=by))
        result = await self.applier.apply_now(model, by=by, forced=args.force, asked_at_ms=asked_at_ms)
        if isinstance(result, ApplySkipped):
            raise CommandRefused(result.reason)
        return plain(result)

    async def _rollback(self, scenario: str, args: Rollback, by: str, asked_at_ms: int | None) -> dict[str, Any]:
        async with self._before_turns[scenario]:
            begun = await self.applier.begun_by(scenario, by)
            to = None if args.model_id is None else await self.registry.find(scenario, args.model_id)
            if to is not None:
                _is_of(args.kind, to)
            kind = args.kind or (await self.applier.changed_last(scenario) if to is None else to.kind)
        if begun is not None:
            return plain(await self.applier.end_of(*begun, by=by))
        return plain(await self.applier.rollback(scenario, by=by, kind=kind, to=to, asked_at_ms=asked_at_ms))

    async def _replay(self, scenario: str, args: ReplayQuarantine) -> dict[str, Any]:
        counts = await replay_quarantine(
            self.store,
            self.clock,
            self.rules_of,
            scenario=scenario,
            reason=args.reason,
            entry_ids=args.entry_ids,
            limit=args.limit,
            producers=self.producers,
        )
        self.projector.wake()
        if counts.missing:
            raise CommandFailed(
                f"the quarantine of {scenario} has no entry {', '.join(map(str, counts.missing[:_NAMED]))}; "
                "list what it has with: swarm-worker quarantine list",
                plain(counts),
            )
        return plain(counts)

    async def _dead_letters(self, scenario: str, args: ListDead | ReplayDead) -> dict[str, Any]:
        if isinstance(args, ListDead):
            return plain(await self.dead.look(scenario, args.limit))
        return plain(await self.dead.replay(scenario, args.limit))

    async def _pause(self, scenario: str | None, what: str, *, paused: bool) -> dict[str, Any]:
        chosen = [scenario] if scenario else list(self.scenarios)
        for name in chosen:
            if what in ("ingest", "all"):
                if paused:
                    self.intake.hold(OPERATOR, "paused by command", name)
                else:
                    self.intake.release(OPERATOR, name)
            if what in ("training", "all"):
                await self.book.pause(name, paused=paused)
        return {"scenarios": chosen, "what": what, "paused": paused}


def _is_of(kind: ModelKind | None, model: Model) -> None:
    if kind not in (None, model.kind):
        raise CommandRefused(f"model {model.model_id} is of kind {model.kind}; leave out --kind, or name another model")


def _scenario(command: Command) -> str:
    if command.scenario is None:
        raise CommandRefused(f"{command.command} needs a scenario")
    return command.scenario


def _applied(result: ApplyResult | WorkerError | None) -> dict[str, Any] | None:
    match result:
        case None:
            return None
        case Applied():
            return {"applied": True, "previous_model_id": result.previous_model_id}
        case ApplySkipped(reason=reason):
            return {"applied": False, "reason": reason}
        case _:
            return {"applied": False, "reason": str(result)}


def _of_kinds(told: Mapping[ModelKind, dict[str, Any]]) -> dict[str, Any]:
    """By kind; what is told of one kind alone as it is."""
    return next(iter(told.values())) if len(told) == 1 else {str(kind): one for kind, one in told.items()}


def plain(value: Any) -> dict[str, Any]:
    """A struct or dataclass as JSON values."""
    built: dict[str, Any] = msgspec.to_builtins(value)
    return built
