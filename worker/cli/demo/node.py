"""A swarm node: plays games as scenarios, publishes what it does, and follows the model that is applied.

    python -m worker.cli.demo.node --name node-1 --data-dir DIR --state-dir DIR

The broker is SWARM_AMQP_URL. `--data-dir` is the worker's, where the `files` applicator keeps the current models. The
node plays until SIGTERM, then ends its games and sessions, flushes, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from zlib import crc32

import click
import msgspec

from worker.cli.common import settings_options
from worker.cli.demo.games import GAMES, Game
from worker.cli.demo.playing import Played, Player
from worker.cli.demo.policy import SELECTION_LOGIC
from worker.cli.demo.reports import Report, Result
from worker.client.connect import connect_publisher
from worker.client.models import ModelFile
from worker.client.publisher import RecordPublisher
from worker.clock import sleep_unless
from worker.settings import Settings
from worker.wire.records import Unknown
from worker.wire.stats import LearnStats, SelectionPerformance, StrategyStats

#: Seconds between two reports.
_REPORT_EVERY = 0.5
#: An agent that fell behind its pace makes up for this many seconds at most.
_LONGEST_DEBT = 1.0


class Agent:
    """One node's play of one game: session after session."""

    def __init__(
        self, game: Game, publisher: RecordPublisher, models: ModelFile | None, *, node: str, number: int, seed: int
    ) -> None:
        """`models`: where the live model is; None for a node that goes without."""
        self._game = game
        self._publisher = publisher
        self._models = models
        # A life of its own in the names of tasks and sessions: after a restart they are numbered anew.
        self._name = f"{node}-{game.name}-{time.time_ns() // 1_000_000:x}"
        # By node and game, so that no two agents play the same games.
        chance = crc32(f"{seed} {node} {game.name}".encode())
        self._player = Player(game, agent=self._name, worker_id=number, seed=chance)
        self._sessions = 0
        self._games = 0
        self._results: defaultdict[int | None, list[int]] = defaultdict(lambda: [0, 0])

    async def play(self, stopping: asyncio.Event) -> None:
        """Play until told to stop; the session that is under way then ends with the games it has."""
        while not stopping.is_set():
            await self._session(stopping)

    def report(self, *, last: bool = False) -> Report:
        """What happened since the report before."""
        results = [Result(version, games, won) for version, (games, won) in self._results.items()]
        self._results.clear()
        stats = self._publisher.stats
        return Report(
            game=self._game.name, at_ms=time.time_ns() // 1_000_000, results=results, records=stats.records,
            sessions=self._sessions, games=self._games, last=last, unconfirmed=stats.unconfirmed,
        )  # fmt: skip

    async def _session(self, stopping: asyncio.Event) -> None:
        session_id = f"{self._name}-s{self._sessions}"
        due = time.monotonic()
        played: list[Played] = []
        while len(played) < self._game.session_games and not stopping.is_set():
            if self._models is not None:
                self._player.policy.follow(self._models.current())
            game = self._player.play(session_id)
            for event in game.events:
                await self._publisher.publish(event)
            played.append(game)
            self._note(game)
            due = max(due + len(game.events) / self._game.pace, time.monotonic() - _LONGEST_DEBT)
            await sleep_unless(stopping, max(0.0, due - time.monotonic()))
        steps = sum(len(game.events) for game in played)
        # The outcome of a session would stand for that of each of its games, which were won or lost one by one.
        await self._publisher.end_session(
            session_id, outcome=Unknown(), total_ticks=steps, total_actions=steps, stats=_statistics(played)
        )
        self._sessions += 1

    def _note(self, game: Played) -> None:
        self._games += 1
        tally = self._results[game.version]
        tally[0] += 1
        tally[1] += game.won


def _statistics(played: list[Played]) -> LearnStats:
    """What a session says of its selection strategy. The worker counts the actions itself, from their records."""
    visits = sum(len(game.events) - 1 for game in played)
    won = sum(game.won for game in played)
    stats = StrategyStats(visits=visits, successes=visits, episodes_success=won, episodes_failure=len(played) - won)
    performance = SelectionPerformance(strategy_stats={SELECTION_LOGIC: stats}, current_strategy=SELECTION_LOGIC)
    return LearnStats(selection_performance=performance)


async def _run(
    settings: Settings, *, name: str, number: int, suffix: str, state_dir: Path, alone: bool, seed: int
) -> None:
    stopping = asyncio.Event()
    for caught in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(caught, stopping.set)
    async with contextlib.AsyncExitStack() as stack:
        agents: list[Agent] = []
        publishers: list[RecordPublisher] = []
        for game in GAMES.values():
            scenario = game.name + suffix
            publisher = await stack.enter_async_context(
                connect_publisher(
                    settings.amqp_url.get_secret_value(),
                    scenario=scenario,
                    producer_id=name,
                    state_dir=state_dir,
                    ca_file=settings.amqp_ca_file,
                    cert_file=settings.amqp_cert_file,
                    key_file=settings.amqp_key_file,
                    allow_plaintext=settings.amqp_allow_plaintext,
                )
            )
            models = None if alone else ModelFile(settings.data_dir, scenario)
            publishers.append(publisher)
            agents.append(Agent(game, publisher, models, node=name, number=number, seed=seed))
        async with asyncio.TaskGroup() as group:
            reporting = group.create_task(_report(agents))
            players = [group.create_task(agent.play(stopping)) for agent in agents]
            await asyncio.wait(players)
            reporting.cancel()
        for agent in agents:
            _say(agent.report(last=True))


async def _report(agents: list[Agent]) -> None:
    while True:
        for agent in agents:
            _say(agent.report())
        await asyncio.sleep(_REPORT_EVERY)


def _say(report: Report) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


@click.command()
@click.option("--name", required=True, help="this node's name, for ever its own")
@click.option("--number", type=click.IntRange(0, 65_535), default=0, help="its worker id")
@click.option("--suffix", default="", help="added to the games' names to make the scenarios'")
@click.option("--state-dir", type=click.Path(path_type=Path), required=True, help="batch counters and unsent batches")
@click.option(
    "--alone", is_flag=True, help="never take a model: what it reaches shows what experience alone would give"
)
@click.option("--seed", type=int, default=0, show_default=True)
@settings_options("amqp_url", "amqp_ca_file", "amqp_allow_plaintext", "data_dir", "log_level")
def main(*, settings: Settings, name: str, number: int, suffix: str, state_dir: Path, alone: bool, seed: int) -> None:
    """Play until SIGTERM."""
    asyncio.run(_run(settings, name=name, number=number, suffix=suffix, state_dir=state_dir, alone=alone, seed=seed))


if __name__ == "__main__":
    main()
