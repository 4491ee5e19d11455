"""Hooks on the statements of one connection."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, event


@contextmanager
def watched_statements(connection: Connection, look: Callable[..., None]) -> Iterator[None]:
    """Call `look` before each statement, as SQLAlchemy's `before_cursor_execute` is called."""
    event.listen(connection, "before_cursor_execute", look)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", look)


@contextmanager
def rewritten_statements(
    connection: Connection, rewrite: Callable[[str], str | None]
) -> Iterator[None]:
    """Replace each statement by what `rewrite` returns for it; None keeps the statement.

    Statements that `rewrite` executes itself are passed through.
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
