"""Standard logging: readable lines in dev and test, one JSON object a line in prod."""

import logging
import logging.config
import sys
from typing import Any

import structlog

from core import tracing
from core.config import Environment, Settings
from core.request_id import request_id


def configure_logging(settings: Settings) -> None:
    """Set up logging, unless the caller has: a root logger with a handler is left alone."""
    if logging.getLogger().handlers:
        return
    if settings.environment is Environment.PROD:
        timestamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        rendering: list[Any] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
    else:
        timestamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        rendering = [structlog.dev.ConsoleRenderer(pad_event_to=0, colors=sys.stderr.isatty())]
    formatter = {
        "()": structlog.stdlib.ProcessorFormatter,
        "foreign_pre_chain": [
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            timestamp,
            _finish,
        ],
        "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
    }
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"default": formatter},
            "handlers": {
                "stderr": {"class": "logging.StreamHandler", "formatter": "default"},
            },
            "root": {"level": settings.log_level, "handlers": ["stderr"]},
            "loggers": {
                # Its lines come without a request id; core.request_id writes them instead.
                "uvicorn.access": {"level": "WARNING"},
                "uvicorn": {"handlers": [], "propagate": True},
                # Alembic prints these errors itself.
                "alembic.util.messaging": {"level": "CRITICAL"},
                # Names each plugin at each start.
                "alembic.runtime.plugins": {"level": "WARNING"},
            },
        }
    )


def _finish(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    event.pop("color_message", None)  # uvicorn's message again, in colour
    if (current := request_id()) is not None:
        event["request_id"] = current
    if (trace := tracing.trace_id()) is not None:
        event["trace_id"] = trace
    return event
