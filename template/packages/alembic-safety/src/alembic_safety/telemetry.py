"""Spans of OpenTelemetry: the migrations, their revisions and statements.

They are made where the process has a tracer provider; the extra `otel` installs the API. A
statement belongs to the span that it runs under, and is not traced under none.

No span holds a parameter, a literal or the message of an error: all of them may be personal data.
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
    return HAS_API and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


@contextmanager
def span(name: str) -> Iterator[None]:
    """Make a span of the block. An error that leaves it is recorded: its class and its place."""
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

    def _start(self, name: str, **attributes: str) -> "Span":
        if not trace.get_current_span().get_span_context().is_valid:
            return trace.INVALID_SPAN
        return trace.get_tracer("alembic_safety").start_span(
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


def _mark_failed(current: "Span", error: BaseException) -> None:
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
