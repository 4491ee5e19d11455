"""OpenTelemetry: requests, statements and revisions are spans, where `OTEL_*` variables ask for it.

The spans of requests are FastAPI's own. Those of statements are made here, and belong to the span
they run under: a request's, a revision's, or one that `span()` makes around a job. What runs under
none, such as the health check's question, is not traced.

No span holds a parameter, a literal or the message of an error: all of them may be somebody's data.

Where nothing asks, the tracer is the one that does nothing, and the SDK is not imported.
"""

import logging
import os
import re
import threading
import traceback
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from starlette.datastructures import URL

LONGEST_FLUSH = 2.0
"""Seconds that the end of a process waits for the collector."""

logger = logging.getLogger(__name__)

_tracer = trace.get_tracer("core.tracing")
_NOT_TRACED = "/health/,/metrics"
# What is quoted, with $$ too, is replaced. Comments and "names" are matched only so that a quote in
# them begins nothing.
_LITERAL = re.compile(
    r"""
    (?P<kept> --[^\n]* | /\*.*?\*/ | "[^"]*" )
    | \b[eE]'(?:[^'\\]|\\.|'')*'
    | '(?:[^']|'')*'
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$
    """,
    re.VERBOSE | re.DOTALL,
)


def is_on() -> bool:
    """Return whether anything is traced."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def start() -> None:
    """Trace from now on, if the environment asks for it.

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
    """Send what was not sent yet; give up after `LONGEST_FLUSH` seconds."""
    if force_flush := getattr(trace.get_tracer_provider(), "force_flush", None):
        # It does not keep to a timeout of its own: to a collector that is away it talks for long.
        flushing = threading.Thread(target=force_flush, daemon=True)
        flushing.start()
        flushing.join(LONGEST_FLUSH)
        if flushing.is_alive():
            logging.getLogger("core.trace_export").warning("no answer in %g s", LONGEST_FLUSH)


@contextmanager
def span(name: str) -> Iterator[None]:
    """Make a span of the block. An error that leaves it is recorded: its class and where it rose."""
    with _tracer.start_as_current_span(
        name, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except BaseException as error:
            _mark_failed(current, error)
            raise


def add_event(name: str, **attributes: float) -> None:
    """Note in the current span that something happened."""
    trace.get_current_span().add_event(name, attributes)


def set_attribute(name: str, value: list[str]) -> None:
    """Note something about the current span."""
    trace.get_current_span().set_attribute(name, value)


def trace_id() -> str | None:
    """Return the id of the trace that goes on, as collectors show it."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None


def is_excluded(scope: MutableMapping[str, Any]) -> bool:
    """Return whether a request is not traced; FastAPI asks this, where anything is."""
    url = str(URL(scope=scope).replace(query=""))
    return any(pattern.search(url) for pattern in excluded_urls())


@cache
def excluded_urls() -> list[re.Pattern[str]]:
    """Return the patterns of the addresses that are not traced; they are read once."""
    # The variables that OpenTelemetry's own instrumentation of FastAPI reads.
    given = os.environ.get("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS")
    if given is None:
        given = os.environ.get("OTEL_PYTHON_EXCLUDED_URLS", _NOT_TRACED)
    return [re.compile(pattern.strip()) for pattern in given.split(",") if pattern.strip()]


def trace_statements(engine: Engine, *, database: str) -> None:
    """Make spans of what `engine` does from now on: its connections, its statements."""
    if is_on():
        spans = _DatabaseSpans(database)
        event.listen(engine, "do_connect", spans.connect, named=True)
        event.listen(engine, "before_cursor_execute", spans.begin, named=True)
        event.listen(engine, "after_cursor_execute", spans.end, named=True)
        event.listen(engine, "handle_error", spans.fail)


class _DatabaseSpans:
    """Spans as the conventions want them.

    https://opentelemetry.io/docs/specs/semconv/db/postgresql/
    """

    def __init__(self, database: str) -> None:
        self._common = {"db.system.name": "postgresql", "db.namespace": database}

    def _start(self, name: str, **attributes: str) -> Span:
        if not trace.get_current_span().get_span_context().is_valid:
            return trace.INVALID_SPAN
        return _tracer.start_span(
            name, kind=SpanKind.CLIENT, attributes={**self._common, **attributes}
        )

    def connect(self, *, dialect: Any, cargs: Any, cparams: Any, **_: Any) -> Any:
        """Connect in SQLAlchemy's place."""
        current = self._start("CONNECT")
        try:
            return dialect.connect(*cargs, **cparams)
        except BaseException as error:
            _mark_failed(current, error.__cause__ or error)  # the reason why it is unavailable
            raise
        finally:
            current.end()

    def begin(self, *, statement: str, context: Any, **_: Any) -> None:
        """Begin the span of a statement; it stays with SQLAlchemy's context of the execution."""
        if context is not None:
            name = _operation(statement)
            known = {"db.query.summary": name, "db.query.text": without_literals(statement)}
            context.span = self._start(name, **known)

    def end(self, *, context: Any, **_: Any) -> None:
        """End it."""
        getattr(context, "span", trace.INVALID_SPAN).end()

    def fail(self, problem: ExceptionContext) -> None:
        """Mark it as failed, and end it."""
        current: Span = getattr(problem.execution_context, "span", trace.INVALID_SPAN)
        if current.is_recording():  # and not one that ended well, before its rows were read
            _mark_failed(current, problem.original_exception)
            current.end()


def without_literals(statement: str) -> str:
    """Return a statement with `?` for all that it has in quotes."""
    return _LITERAL.sub(lambda match: match["kept"] or "?", statement)


def _operation(statement: str) -> str:
    """Return a statement's first word, or two of DDL: `SELECT`, `CREATE TABLE`."""
    words = re.findall(r"\w+", statement[:100].upper()) or ["SQL"]
    return " ".join(words[: 2 if words[0] in {"ALTER", "CREATE", "DROP"} else 1])


def _mark_failed(current: Span, error: BaseException) -> None:
    # Places without their lines: a revision's may hold what is in no trace otherwise.
    frames = traceback.StackSummary.extract(
        traceback.walk_tb(error.__traceback__), lookup_lines=False
    )
    places = [f'File "{at.filename}", line {at.lineno}, in {at.name}' for at in frames]
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig  # what SQLAlchemy wrapped, which wraps asyncpg's own
    sqlstate = getattr(error, "sqlstate", None)
    cause = (sqlstate and error.__cause__) or error
    kind = f"{type(cause).__module__}.{type(cause).__qualname__}".removeprefix("builtins.")
    current.add_event(
        "exception", {"exception.type": kind, "exception.stacktrace": "\n".join(places)}
    )
    current.set_attribute("error.type", kind)
    if sqlstate:
        current.set_attribute("db.response.status_code", sqlstate)
    current.set_status(StatusCode.ERROR, type(cause).__name__)
