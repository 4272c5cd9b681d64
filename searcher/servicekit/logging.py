"""Events with fields: coloured lines for people, JSON lines for collectors."""

import logging
import sys
from typing import TextIO, cast

import structlog

from searcher.servicekit.settings import SharedSettings


class CurrentStderr:
    """Whatever `sys.stderr` is now: loggers are kept for good, and what it was may have been replaced and closed."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def configure_logging(settings: SharedSettings) -> None:
    """Route structlog and the standard library's loggers to stderr in one form."""
    level = logging.getLevelNamesMapping().get(settings.log_level.upper(), logging.INFO)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    trailing: list[structlog.typing.Processor] = [structlog.processors.format_exc_info] if settings.log_json else []
    structlog.configure(
        processors=[*shared, *trailing, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", CurrentStderr())),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
