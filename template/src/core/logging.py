"""Logging: readable lines in dev and test, JSON lines in prod."""

import json
import logging
import logging.config
import re
import sys
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any

import structlog

from core import tracing
from core.config import Environment, Settings
from core.request_id import request_id


def configure_logging(settings: Settings) -> None:
    """Configure logging, unless the root logger already has a handler."""
    if logging.getLogger().handlers:
        return
    logging.captureWarnings(True)
    formatter: dict[str, Any]
    if settings.environment is Environment.PROD:
        formatter = {"()": JSONFormatter}
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
                # Its lines come without a request id; core.request_id writes them instead. With no
                # handler, uvicorn does not make them.
                "uvicorn.access": {"handlers": [], "propagate": False},
                "uvicorn": {"handlers": [], "propagate": True},
                # Alembic prints these errors itself.
                "alembic.util.messaging": {"level": "CRITICAL"},
                # Names each plugin at each start.
                "alembic.runtime.plugins": {"level": "WARNING"},
            },
        }
    )


class JSONFormatter(logging.Formatter):
    """Makes one JSON object of a record, without the rows that PostgreSQL's errors quote.

    structlog's formatter, which copies each record, takes a tenth of the time of a short request.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line = {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        line["event"] = _DETAIL.sub("", record.getMessage())
        line |= _context()
        line["level"], line["logger"] = record.levelname.lower(), record.name
        line["timestamp"] = f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        if record.exc_info:
            line["exception"] = _DETAIL.sub("", self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return _encode(line)


_encode = json.JSONEncoder(ensure_ascii=False, default=str).encode
# To the next part of the message: a row that is quoted may have lines of its own.
_DETAIL = re.compile(
    r"\n[ |]*DETAIL: .*?(?=\n[ |]*(HINT: |\[SQL: |\(Background on |\n[ |]*(The above|During) )|\Z)",
    re.DOTALL,
)
# color_message is uvicorn's message again.
_OF_EVERY_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}


def _finish(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    event.pop("color_message", None)
    return {**event, **_context()}


def _context() -> dict[str, str]:
    """Return the fields of a line that identify its request."""
    context = {"request_id": request_id(), "trace_id": tracing.trace_id()}
    return {name: value for name, value in context.items() if value is not None}
