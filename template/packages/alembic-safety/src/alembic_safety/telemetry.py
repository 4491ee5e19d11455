"""OpenTelemetry spans of migrations, their revisions and statements.

Spans need a tracer provider in the process; the extra `otel` installs the API. A statement is
traced only inside another span.

Spans contain no parameters, literals or error messages, which may be personal data.
"""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError

try:
    from opentelemetry import trace
    from opentelemetry.trace import SpanKind, StatusCode
except ImportError:
    HAS_API = False
else:
    HAS_API = True

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# Quoted and $$-quoted literals are replaced. Comments and quoted names are matched so that a quote
# in them does not start a literal.
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
    """Return whether the process has a tracer provider."""
    return HAS_API and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


@contextmanager
def span(name: str) -> Iterator[None]:
    """Trace the block as a span, with the class and stack trace of an error that it raises."""
    if not HAS_API:
        yield
        return
    with trace.get_tracer("alembic_safety").start_as_current_span(
        name, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except BaseException as error:
            _mark_failed(current, error)
            raise


def add_event(name: str, **attributes: float) -> None:
    """Add an event to the current span."""
    if HAS_API:
        trace.get_current_span().add_event(name, attributes)


def trace_statements(engine: Engine, *, database: str) -> None:
    """Trace the connections and statements of an engine."""
    if is_on():
        spans = _DatabaseSpans(database)
        event.listen(engine, "do_connect", spans.connect, named=True)
        event.listen(engine, "before_cursor_execute", spans.begin, named=True)
        event.listen(engine, "after_cursor_execute", spans.end, named=True)
        event.listen(engine, "handle_error", spans.fail)


class _DatabaseSpans:
    """Spans that follow the semantic conventions for PostgreSQL.

    https://opentelemetry.io/docs/specs/semconv/db/postgresql/
    """

    def __init__(self, database: str) -> None:
        self._common = {"db.system.name": "postgresql", "db.namespace": database}

    def _start(self, name: str, **attributes: str) -> "Span":
        if not trace.get_current_span().get_span_context().is_valid:
            return trace.INVALID_SPAN
        return trace.get_tracer("alembic_safety").start_span(
            name, kind=SpanKind.CLIENT, attributes={**self._common, **attributes}
        )

    def connect(self, *, dialect: Any, cargs: Any, cparams: Any, **_: Any) -> Any:
        """Connect, in place of SQLAlchemy."""
        current = self._start("CONNECT")
        try:
            return dialect.connect(*cargs, **cparams)
        except BaseException as error:
            _mark_failed(current, error.__cause__ or error)  # the cause of the unavailability
            raise
        finally:
            current.end()

    def begin(self, *, statement: str, context: Any, **_: Any) -> None:
        """Begin the span of a statement, and store it in SQLAlchemy's execution context."""
        if context is not None:
            name = _operation(statement)
            known = {"db.query.summary": name, "db.query.text": without_literals(statement)}
            context.span = self._start(name, **known)

    def end(self, *, context: Any, **_: Any) -> None:
        """End the span of a statement."""
        getattr(context, "span", trace.INVALID_SPAN).end()

    def fail(self, problem: ExceptionContext) -> None:
        """End the span of a failed statement."""
        current: Span = getattr(problem.execution_context, "span", trace.INVALID_SPAN)
        if current.is_recording():  # false if the statement succeeded and reading its rows failed
            _mark_failed(current, problem.original_exception)
            current.end()


def without_literals(statement: str) -> str:
    """Return a statement with `?` in place of its quoted literals."""
    return _LITERAL.sub(lambda match: match["kept"] or "?", statement)


def _operation(statement: str) -> str:
    """Return the first word of a statement, or the first two of DDL: `SELECT`, `CREATE TABLE`."""
    words = re.findall(r"\w+", statement[:100].upper()) or ["SQL"]
    return " ".join(words[: 2 if words[0] in {"ALTER", "CREATE", "DROP"} else 1])


def _mark_failed(current: "Span", error: BaseException) -> None:
    # Omit source lines, because those of a revision may contain literals.
    frames = traceback.StackSummary.extract(
        traceback.walk_tb(error.__traceback__), lookup_lines=False
    )
    places = [f'File "{at.filename}", line {at.lineno}, in {at.name}' for at in frames]
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig  # unwrap SQLAlchemy; the cause below unwraps its asyncpg dialect
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
