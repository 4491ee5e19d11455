"""OpenTelemetry spans of requests, statements and revisions, if `OTEL_*` variables ask for them.

The spans of requests are FastAPI's own. Those of statements are made here, and belong to the span
they run under: a request's, a revision's, or one that `span()` makes around a job. What runs under
none, such as the health check's question, is not traced.

No span holds a parameter, a literal or the message of an error: all of them may be somebody's data.
"""

import logging
import os
import re
import threading
from collections.abc import MutableMapping
from functools import cache
from typing import Any

from opentelemetry import trace
from starlette.datastructures import URL

from alembic_safety.telemetry import add_event, is_on, span, trace_statements

__all__ = [
    "add_event", "excluded_urls", "flush", "is_excluded", "is_on", "set_attribute", "span", "start",
    "trace_id", "trace_statements",
]  # fmt: skip

LONGEST_FLUSH = 2.0
"""Seconds that a process waits for the collector at exit."""

logger = logging.getLogger(__name__)

_NOT_TRACED = "/health/,/metrics"


def start() -> None:
    """Start tracing, if the environment asks for it.

    A program that has set OpenTelemetry up keeps what it made. What is missing or wrong is logged
    in a line, and nothing is traced.
    """
    if is_on() or not _is_wanted():
        return
    try:
        from core.trace_export import set_up  # noqa: PLC0415 - needs the extra, and takes its time
    except ImportError:
        logger.warning(
            "OTEL_* variables ask for traces, and what sends them is not installed: run "
            "`uv sync --extra otel`, or set OTEL_SDK_DISABLED=true. Nothing is traced."
        )
        return
    try:
        excluded_urls()
        set_up()
    except (ValueError, re.error) as error:
        logger.warning("an OTEL_* variable is wrong: %s. Nothing is traced.", error)


def _is_wanted() -> bool:
    # https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "")
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return exporter != "none" and bool(exporter or any(map(os.environ.get, endpoints)))


def flush() -> None:
    """Export pending spans, for at most `LONGEST_FLUSH` seconds."""
    if force_flush := getattr(trace.get_tracer_provider(), "force_flush", None):
        # force_flush() ignores its timeout while the collector is unreachable.
        flushing = threading.Thread(target=force_flush, daemon=True)
        flushing.start()
        flushing.join(LONGEST_FLUSH)
        if flushing.is_alive():
            logging.getLogger("core.trace_export").warning("no answer in %g s", LONGEST_FLUSH)


def set_attribute(name: str, value: list[str]) -> None:
    """Set attributes of the current span."""
    trace.get_current_span().set_attribute(name, value)


def trace_id() -> str | None:
    """Return the id of the current trace, as collectors show it."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None


def is_excluded(scope: MutableMapping[str, Any]) -> bool:
    """Return whether a request is excluded from tracing; FastAPI calls this."""
    url = str(URL(scope=scope).replace(query=""))
    return any(pattern.search(url) for pattern in excluded_urls())


@cache
def excluded_urls() -> list[re.Pattern[str]]:
    """Return the patterns of the excluded URLs, which are read once."""
    # The variables that OpenTelemetry's own instrumentation of FastAPI reads.
    given = os.environ.get("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS")
    if given is None:
        given = os.environ.get("OTEL_PYTHON_EXCLUDED_URLS", _NOT_TRACED)
    return [re.compile(pattern.strip()) for pattern in given.split(",") if pattern.strip()]
