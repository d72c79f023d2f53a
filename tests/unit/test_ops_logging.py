"""Logs: events with fields, without secrets, one line each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Literal

import orjson
import pytest
import structlog

from worker.ops.logging import configure_logging
from worker.redaction import MASK, redact


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_a_log_line_is_one_json_object_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    structlog.get_logger("worker.test").info("batch_stored", records=3, where="a\nb")
    line = orjson.loads(capsys.readouterr().err)
    assert (line["event"], line["records"], line["where"], line["level"]) == ("batch_stored", 3, "a\nb", "info")


@pytest.mark.parametrize("form", ["json", "console"])
def test_s14_a_hostile_name_stays_on_its_line_and_moves_no_cursor(
    capsys: pytest.CaptureFixture[str], form: Literal["json", "console"]
) -> None:
    """Newline, escape, the one-byte escape of C1, backspace, line separators, text that runs backwards."""
    hostile = 'a\nb\r\x1b[2J\x9b31m\x08\x85\u2028\u2029\u202e[red]"'
    configure_logging("debug", form)
    structlog.get_logger("worker.test").info("took", name=hostile, names=[hostile], by={hostile: hostile})
    logging.getLogger("library").warning("got %s", hostile)
    written = capsys.readouterr().err
    assert written.count("\n") == 2
    assert all(each.isprintable() or each == "\n" for each in written), written
    assert "[red]" in written


def test_s14_a_traceback_keeps_its_lines_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", "console")
    try:
        int("\x1b[2J")
    except ValueError:
        structlog.get_logger("worker.test").exception("broke")
    written = capsys.readouterr().err
    assert "Traceback" in written
    assert written.count("\n") > 2
    assert "\x1b[2J" not in written


def test_a_password_that_holds_an_at_sign_is_masked_whole() -> None:
    assert redact("amqp://ada:can@ary@host/v refused") == f"amqp://{MASK}@host/v refused"


def test_a_secret_in_the_query_of_a_url_is_masked_and_the_rest_stays() -> None:
    assert redact("at postgresql://h/db?sslmode=require&password=canary&x=1 now") == (
        f"at postgresql://h/db?sslmode=require&password={MASK}&x=1 now"
    )


def test_a_secret_that_is_known_is_masked_wherever_it_turns_up(capsys: pytest.CaptureFixture[str]) -> None:
    """In a library's own words, under an innocent name, inside another word; one too short to tell is left alone."""
    configure_logging("debug", "json", secrets=["canary-1", "canary-12", "no", ""])
    logging.getLogger("library").warning("sent %r", {"frame": b"xxcanary-12yy"})
    structlog.get_logger("worker.test").info("said", what=["canary-1", "no word"])
    first, second = map(orjson.loads, capsys.readouterr().err.splitlines())
    assert first["event"] == f"sent {{'frame': b'xx{MASK}yy'}}"
    assert second["what"] == [MASK, "no word"]


def refuse() -> None:
    raise ConnectionError("amqp://ada:canary@host/ refused")


def test_credentials_of_a_url_never_reach_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither as a value, nor inside an exception, nor from a foreign logger."""
    configure_logging("debug", "json")
    log = structlog.get_logger("worker.test")
    log.info("connecting", url="amqp://ada:canary@host/", nested={"urls": ["postgresql://x:canary@db/"]})
    try:
        refuse()
    except ConnectionError:
        log.exception("failed")
    logging.getLogger("somebody").warning("to %s", "amqp://ada:canary@host/")
    written = capsys.readouterr().err
    assert len(written.splitlines()) == 3
    assert "canary" not in written
    assert "host/ refused" in written


def test_a_lost_connection_leaves_no_stack_of_the_client_library(capsys: pytest.CaptureFixture[str]) -> None:
    """It warns with one for each of our connections whenever the broker goes; an error keeps its own."""
    configure_logging("info", "json")
    try:
        refuse()
    except ConnectionError as error:
        logging.getLogger("aiormq.connection").warning("reader exited", exc_info=error)
        logging.getLogger("aiormq.connection").log(logging.ERROR, "broken", exc_info=error)
    lost, broken = map(orjson.loads, capsys.readouterr().err.splitlines())
    assert (lost["event"], "exception" in lost) == ("reader exited", False)
    assert "Traceback" in broken["exception"]


@pytest.mark.parametrize("key", ["password", "control_key", "x-swarm-signature", "Authorization", "api_key"])
def test_whatever_stands_under_a_secrets_name_is_masked(key: str) -> None:
    assert redact({"a": {key: "canary"}}) == {"a": {key: MASK}}


def test_the_amqp_library_never_logs_frames(capsys: pytest.CaptureFixture[str]) -> None:
    """At debug it would log whole frames, signatures included (security checklist S13)."""
    configure_logging("debug", "json")
    logging.getLogger("aiormq.connection").debug("frame with a canary")
    logging.getLogger("aio_pika.queue").info("headers with a canary")
    assert capsys.readouterr().err == ""
