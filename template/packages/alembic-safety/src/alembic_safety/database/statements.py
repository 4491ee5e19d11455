"""Hooks on the statements of a connection."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, event


@contextmanager
def watched_statements(connection: Connection, before: Callable[..., None]) -> Iterator[None]:
    """Call `before` before each statement, with the arguments of `before_cursor_execute`.

    https://docs.sqlalchemy.org/en/latest/core/events.html#sqlalchemy.events.ConnectionEvents.before_cursor_execute
    """
    event.listen(connection, "before_cursor_execute", before)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", before)


@contextmanager
def rewritten_statements(
    connection: Connection, rewrite: Callable[[str], str | None]
) -> Iterator[None]:
    """Replace each statement with the result of `rewrite`; None keeps the statement.

    Statements that `rewrite` itself executes are not rewritten.
    """
    rewriting = False

    def before(
        _connection: Connection, _cursor: Any, statement: str, parameters: Any, *_rest: Any
    ) -> tuple[str, Any]:
        nonlocal rewriting
        if rewriting:
            return statement, parameters
        rewriting = True
        try:
            return rewrite(statement) or statement, parameters
        finally:
            rewriting = False

    event.listen(connection, "before_cursor_execute", before, retval=True)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", before)
