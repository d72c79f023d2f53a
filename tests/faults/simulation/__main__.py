"""`python -m tests.faults.simulation SEED [LAST]`: fly one seed and show everything, or a range and show what fails."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback

import structlog

from tests.faults.simulation.pilot import a_flight


def main() -> int:
    """Returns how many flights failed, at most 100."""
    parser = argparse.ArgumentParser(prog="tests.faults.simulation", description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int, nargs="?")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--log", action="store_true", help="with what the worker logs")
    options = parser.parse_args()
    if not options.log:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    one = options.last is None
    failed = 0
    for seed in range(options.first, (options.first if one else options.last) + 1):
        with a_flight(seed) as flight:
            try:
                flight.fly(options.steps)
            except AssertionError as error:
                failed += 1
                sys.stdout.write(f"seed {seed} failed: {error}\n")
                if one:
                    traceback.print_exc()
            if one:
                world = flight.world
                sys.stdout.write("\n".join([*world.trace, f"{world.faults.fired}", world.digest(), ""]))
    return min(failed, 100)


if __name__ == "__main__":
    sys.exit(main())
