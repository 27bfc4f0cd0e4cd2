"""Logs: one event a line on stderr, as JSON for machines or in colour for a terminal. Never tokens, never bodies."""

import logging
import sys
from contextlib import suppress
from typing import Any, Final, TextIO

import structlog
from structlog.typing import Processor

from sprat_server.observe import tracing

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_TRACEBACKS: Final = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)  # locals may be secrets
_NOISY: Final = ("alembic", "procrastinate", "httpx", "asyncio", "uvicorn", "securesystemslib", "tuf", "urllib3")


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the time: who captures it replaces it, and closes what was there."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # the standard library's lastResort does the same
        return sys.stderr

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        """Say what went wrong with a record, if anybody can be told: no request fails for want of a log."""
        with suppress(ValueError, OSError):
            if not self.stream.closed:
                super().handleError(record)


def configure(*, log_format: str, log_level: str, **context: Any) -> None:
    """Send structlog's and the standard library's records to stderr in one form.

    Args:
        log_format: `json`, `console`, or `auto` (console on a terminal).
        log_level: `debug`, `info`, `warning` or `error`.
        context: stands in every line of this process, e.g. `process="worker"`.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        tracing.in_log,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [
            structlog.processors.ExceptionRenderer(_TRACEBACKS),
            structlog.processors.JSONRenderer(sort_keys=True, default=str),
        ]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,  # first: an idle poll's line is of no level that is wanted
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = _ToStderr()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(_LEVELS[log_level])
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(_LEVELS[log_level], logging.WARNING))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], name != "uvicorn.access"  # our own line says more
    structlog.contextvars.clear_contextvars()
    if context:
        structlog.contextvars.bind_contextvars(**context)
