"""Logs: events with fields, JSON for machines and colour for people, and no secret in either."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, MutableMapping
from typing import Any, Literal

import orjson
import structlog

from worker.ops.printable import printable
from worker.redaction import MASK, Redactor, is_secret_name

_WRITTEN_OUT_BY_JSON = "".join(map(chr, range(32)))


def _redaction(secrets: Iterable[str]) -> structlog.typing.Processor:
    redact = Redactor(secrets)

    def redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for key in list(event):
            event[key] = MASK if is_secret_name(key) else redact(event[key])
        return event

    return redact_event


def _printable_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """No id of somebody's moves the cursor of whoever reads the log, or begins a line of its own."""
    for key, value in event.items():
        event[key] = _printable(value, keep="\n\t" if key == "exception" else "")
    return event


def _json_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """As above, but for what JSON writes out by itself."""
    for key, value in event.items():
        event[key] = _printable(value, keep=_WRITTEN_OUT_BY_JSON)
    return event


def _printable(value: Any, *, keep: str) -> Any:
    if isinstance(value, str):
        return printable(value, keep=keep)
    if isinstance(value, dict):
        return {_printable(key, keep=keep): _printable(item, keep=keep) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item, keep=keep) for item in value]
    return value


def _without_library_traces(record: logging.LogRecord) -> bool:
    """A connection that is lost is no fault of the code: the client library's stack says nothing, three times over.

    That none could be made is logged by our own session, which knows the address and which attempt it was.
    """
    if record.name == "aiormq.connection" and str(record.msg).startswith("error when creating transport"):
        return False
    if record.levelno < logging.ERROR and record.name.startswith(("aiormq", "aio_pika")):
        record.exc_info = None
    return True


def _to_json(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=repr).decode()


def configure_logging(
    level: str, log_format: Literal["auto", "json", "console"], *, secrets: Iterable[str] = ()
) -> None:
    """Set up structlog and the standard library's loggers to write the same lines to standard error.

    `secrets` are masked by value, wherever they turn up.
    """
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    # Tracebacks become text before redaction, so that a URL inside an exception is masked too.
    finish: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        _redaction(secrets),
        _printable_event if console else _json_event,
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if console
        else structlog.processors.JSONRenderer(serializer=_to_json),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_without_library_traces)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=finish))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # At debug these log whole frames, headers and signatures included.
    for name in ("aio_pika", "aiormq", "asyncio", "aiohttp"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
