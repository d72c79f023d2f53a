"""Logs of the client inside a program that is not ours: its `logging` decides, and by default only warnings show."""

from __future__ import annotations

import structlog


def follow_the_programs_logging() -> None:
    """Hand our events to the standard library's loggers (`worker...`), unless the program configured structlog itself.

    structlog's own default prints every event to standard output, where a program's results belong.
    """
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["event"]),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
