"""What looks at each statement of a connection before it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, event


@contextmanager
def watched_statements(connection: Connection, look: Callable[..., None]) -> Iterator[None]:
    """Have `look` called before each statement, as SQLAlchemy's `before_cursor_execute` is."""
    event.listen(connection, "before_cursor_execute", look)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", look)
