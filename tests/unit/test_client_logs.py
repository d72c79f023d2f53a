"""The client's logs are the program's own business: its standard output stays clean."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import structlog
from worker.client.logs import follow_the_programs_logging
{before}
follow_the_programs_logging()
log = structlog.get_logger("worker.test")
log.info("connected", role="publish")
log.warning("lost", role="publish")
"""


def run(before: str = "") -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(before=before)], capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout, done.stderr


def test_only_warnings_show_and_not_on_standard_output() -> None:
    assert run() == ("", "event=lost role=publish\n")


def test_the_programs_logging_decides() -> None:
    out, err = run("import logging; logging.basicConfig(level='INFO')")
    assert (out, err.splitlines()[0]) == ("", "INFO:worker.test:event=connected role=publish")


def test_a_program_that_configured_structlog_itself_keeps_its_way() -> None:
    out, _ = run("structlog.configure(processors=[structlog.processors.JSONRenderer()])")
    assert out.count("{") == 2
