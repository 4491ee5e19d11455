"""Invalid indexes: what CREATE INDEX CONCURRENTLY leaves behind where it fails.

PostgreSQL keeps such an index, and `IF NOT EXISTS` takes it for the one that is wanted.
https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY
"""

import logging
import re
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, text

from core.migrations.errors import MigrationError
from core.migrations.statements import watched_statements

logger = logging.getLogger(__name__)

_IDENTIFIER = r'(?:"(?:[^"]|"")+"|[\w$]+)'
_CREATE = re.compile(
    rf"\s*CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?"
    rf"(?P<index>{_IDENTIFIER})\s+ON\s+(?:ONLY\s+)?(?P<table>{_IDENTIFIER}(?:\.{_IDENTIFIER})?)",
    re.IGNORECASE,
)
# An index of a partitioned table is invalid until each partition has its own: that is no failure.
_FROM_INVALID = """
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE NOT i.indisvalid AND c.relkind = 'i'
      AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = c.oid)
"""
_INVALID = text(f"SELECT c.oid::regclass::text {_FROM_INVALID} ORDER BY 1")
COUNT_INVALID = f"SELECT count(*) {_FROM_INVALID}"
"""How many indexes are invalid that nobody is building, as a query for a larger one."""
_FIND = text(
    """
    SELECT c.oid::regclass::text
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE NOT i.indisvalid AND c.relkind = 'i' AND i.indrelid = to_regclass(:table)
      AND c.relname = (parse_ident(:index))[1]
    """
)


class InvalidIndexError(MigrationError):
    """A revision left an index that PostgreSQL does not use."""


class ConcurrentIndexes:
    """The indexes that the running revision builds concurrently."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._built: list[tuple[str, str]] = []

    def watched(self) -> AbstractContextManager[None]:
        """Watch the connection's statements; before an index is built, drop an invalid one of its name."""
        return watched_statements(self._connection, self._before)

    def forget(self) -> None:
        """Begin with another revision."""
        self._built.clear()

    def check(self) -> None:
        """Check what the revision built.

        Raises:
            InvalidIndexError: one of its indexes is invalid: it must not be stamped.
        """
        for index, table in self._built:
            if (name := self._find(index, table)) is not None:
                raise InvalidIndexError(
                    f"the index {name} of {table} is invalid: the revision is not recorded. "
                    "Run it again: it will be dropped and built anew."
                )

    def _before(self, _connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        match = _CREATE.match(statement)
        if match is None:
            return
        index, table = match["index"], match["table"]
        self._built.append((index, table))
        if (name := self._find(index, table)) is not None:
            logger.warning("dropping the invalid index %s, which an earlier try left", name)
            self._connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {name}")

    def _find(self, index: str, table: str) -> str | None:
        parameters = {"index": index, "table": table}
        name: str | None = self._connection.scalar(_FIND, parameters)
        return name


def invalid_indexes(connection: Connection) -> list[str]:
    """Return the names of all invalid indexes that nobody is building."""
    return list(connection.scalars(_INVALID))
