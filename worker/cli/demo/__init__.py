"""`swarm-worker demo`: the main job with real agents, from nothing to a model that the agents follow."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING
from uuid import uuid4

import click

from worker.cli.common import console, json_option, print_json, settings_options
from worker.errors import ConfigurationError
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.cli.demo.outcome import Outcome
    from worker.cli.demo.performance import Performance

_FAILED, _INTERRUPTED, _TERMINATED = 1, 128 + signal.SIGINT, 128 + signal.SIGTERM
#: Longest that ending the players, their queues and files takes, in s.
_CLEAN_UP_SECONDS = 30.0


@click.command()
@click.option("--seconds", type=click.FloatRange(5, 600), default=75, show_default=True, help="how long to play")
@click.option("--seed", type=int, help="dice of the agents; default: other ones each time")
@click.option("--keep", is_flag=True, help="leave store, models and logs in .swarm/demo")
@json_option
@settings_options("amqp_url", "amqp_ca_file", "amqp_allow_plaintext", "control_key", "log_level")
def demo(*, settings: Settings, seconds: float, seed: int | None, keep: bool, as_json: bool) -> None:
    """Let agents play and show what the model changed.

    Three swarm nodes play gymnasium's FrozenLake, Blackjack and Taxi, choose by UCB1, publish every action, and two of
    them follow the model that a worker trains and applies meanwhile. Needs a broker: `make demo` brings one.
    """
    missing = [name for name in ("gymnasium", "plotext") if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"the demo needs {' and '.join(missing)}; use `make demo`, or install the extra `demo` of swarm-worker"
        )
    # Only here: every other command does without the extra.
    from worker.cli.demo.performance import Performance, Plan  # noqa: PLC0415
    from worker.cli.demo.screen import screen_for  # noqa: PLC0415

    dice = random.SystemRandom().randrange(2**31) if seed is None else seed
    plan = Plan(seconds=seconds, seed=dice, keep=keep, run_id=uuid4().hex[:6])
    screen = screen_for(as_json=as_json)
    performance = Performance(settings, plan, screen)
    try:
        with screen:
            outcome = asyncio.run(_until_terminated(performance))
    except (KeyboardInterrupt, asyncio.CancelledError) as end:
        performance.remove_directory()
        click.echo("the demo was interrupted; its processes, queues and files are gone", err=True)
        sys.exit(_INTERRUPTED if isinstance(end, KeyboardInterrupt) else _TERMINATED)
    _tell(outcome, performance, plan.seed, as_json=as_json)
    if outcome.complaints:
        click.echo(
            f"the demo failed: {'; '.join(outcome.complaints)} (logs: {performance.directory / 'logs'})", err=True
        )
        sys.exit(_FAILED)


async def _until_terminated(performance: Performance) -> Outcome:
    """Perform, or be interrupted.

    Up to Python 3.11 `wait_for` inside the client library may swallow a cancellation (python/cpython#86296), and the
    demo played on; so one without effect is repeated, after any clean-up had its time.
    """
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    work = asyncio.create_task(performance.perform())
    try:
        await asyncio.wait({work})
    except asyncio.CancelledError:
        while not work.done():
            work.cancel()
            await asyncio.wait({work}, timeout=_CLEAN_UP_SECONDS)
        raise
    return work.result()


def _tell(outcome: Outcome, performance: Performance, seed: int, *, as_json: bool) -> None:
    from worker.cli.demo.outcome import LEGEND, result_table  # noqa: PLC0415  see above
    from worker.cli.demo.outcome import as_json as document  # noqa: PLC0415
    from worker.cli.demo.plot import LEGEND as PLOT_LEGEND  # noqa: PLC0415
    from worker.cli.demo.plot import plots  # noqa: PLC0415

    if as_json:
        print_json({**document(outcome), "seed": seed})
        return
    out = console()
    state = performance.state
    drawn = plots(list(state.courses.values()), began_ms=state.began_ms, seconds=outcome.seconds, columns=out.width)
    out.print()
    out.print(drawn, markup=False, no_wrap=True, crop=False)
    out.print(PLOT_LEGEND, markup=False)
    out.print()
    out.print(result_table(outcome.scenarios))
    out.print(LEGEND, markup=False)
    out.print()
    out.print(outcome.stored_line, markup=False)
    out.print(f"{outcome.seconds:g} s of play, seed {seed}", markup=False)
