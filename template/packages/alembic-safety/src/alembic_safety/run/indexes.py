"""Resumption of concurrent index builds that an earlier run left unfinished.

A build that fails leaves an invalid index. The server may still finish a build whose client was
killed, and leave a valid index of a revision that is not recorded.
https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY
"""

import logging
import re
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from alembic_safety.errors import MigrationError
from alembic_safety.sql import IDENTIFIER, LEADING, QUALIFIED, SQLState, get_sqlstate

logger = logging.getLogger(__name__)

_CREATE = re.compile(
    rf"{LEADING}CREATE\s+(?P<unique>UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+"
    rf"(?P<if_not_exists>IF\s+NOT\s+EXISTS\s+)?(?:(?P<name>{IDENTIFIER})\s+)?"
    rf"ON\s+(?:ONLY\s+)?(?P<table>{QUALIFIED})(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)

# An index of a partitioned table is invalid until every partition has one, so it is not listed.
_FROM_INVALID = """
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE NOT i.indisvalid AND c.relkind = 'i'
      AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = c.oid)
"""
_INVALID = text(f"SELECT c.oid::regclass::text {_FROM_INVALID} ORDER BY 1")
COUNT_INVALID = f"SELECT count(*) {_FROM_INVALID}"
"""Query for the number of invalid indexes that no session is building."""
_LEFT_BY_REINDEX = text(
    f"SELECT c.oid::regclass::text {_FROM_INVALID} AND c.relname ~ '_cc(new|old)[0-9]*$'"  # noqa: S608
    " AND (cast(:relation AS text) IS NULL OR i.indrelid = to_regclass(:relation)"
    " OR i.indrelid = (SELECT indrelid FROM pg_index WHERE indexrelid = to_regclass(:relation)))"
    " ORDER BY 1"
)
_DESCRIBE = """
    SELECT c.oid::regclass::text AS name, t.oid::regclass::text AS "table", i.indisvalid AS valid,
           CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END
           || substr(d.definition, strpos(d.definition, ' USING ') + 7) AS definition
    FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_class t ON t.oid = i.indrelid,
    LATERAL (SELECT pg_get_indexdef(i.indexrelid) AS definition) d
"""
_FIND = text(
    f"{_DESCRIBE} WHERE c.relnamespace = (SELECT relnamespace FROM pg_class"  # noqa: S608
    " WHERE oid = to_regclass(:table)) AND c.relname = (parse_ident(:index))[1]"
)
_TABLE = text(
    "SELECT oid::regclass::text AS name, quote_ident(relname) AS short FROM pg_class"
    " WHERE oid = to_regclass(:table)"
)
_DESCRIBE_TRIAL = text(
    f"{_DESCRIBE} WHERE c.relnamespace = pg_my_temp_schema()"
    " AND t.relname = (parse_ident(:table))[1]"
)


class InvalidIndexError(MigrationError):
    """A revision left an invalid index, which PostgreSQL does not use."""


class ConflictingObjectError(MigrationError):
    """An object of the same name exists and differs from the one that the revision creates."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """Description of an index by PostgreSQL."""

    name: str
    table: str
    valid: bool
    definition: str
    """Uniqueness, method, columns, operator classes and predicate: `UNIQUE btree (lower(email))`."""


@dataclass(frozen=True, kw_only=True)
class ConcurrentBuild:
    """A CREATE INDEX CONCURRENTLY statement."""

    table: str
    name: str | None
    """None if PostgreSQL chooses the name."""
    unique: bool
    if_not_exists: bool
    rest: str
    """SQL after the name of the table."""

    @classmethod
    def parse(cls, statement: str) -> "ConcurrentBuild | None":
        """Parse a statement; return None for any other statement."""
        match = _CREATE.match(statement)
        if match is None:
            return None
        return cls(
            table=match["table"],
            name=match["name"],
            unique=match["unique"] is not None,
            if_not_exists=match["if_not_exists"] is not None,
            rest=match["rest"],
        )

    def describe(self, connection: Connection) -> Index | None:
        """Build the index on an empty temporary copy of its table; return the description.

        The copy is rolled back. Return None if the table does not exist.

        Raises:
            DBAPIError: PostgreSQL rejects the definition, or the role may not create temporary
                tables.
        """
        table = connection.execute(_TABLE, {"table": self.table}).one_or_none()
        if table is None:
            return None
        unique, name = "UNIQUE " if self.unique else "", f"{self.name} " if self.name else ""
        connection.exec_driver_sql("BEGIN")
        try:
            connection.exec_driver_sql(f"CREATE TEMPORARY TABLE {table.short} (LIKE {table.name})")
            connection.exec_driver_sql(
                f"CREATE {unique}INDEX {name}ON pg_temp.{table.short}{self.rest}"
            )
            row = connection.execute(_DESCRIBE_TRIAL, {"table": table.short}).one()
        finally:
            connection.exec_driver_sql("ROLLBACK")
        return Index(
            name=self.name or row.name,
            table=table.name,
            valid=True,
            definition=row.definition,
        )


class ConcurrentIndexes:
    """Indexes that the running revision builds concurrently."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._built: list[tuple[str, str]] = []

    def clear(self) -> None:
        """Forget the indexes of the previous revision."""
        self._built.clear()

    def prepare(self, build: ConcurrentBuild) -> Index | None:
        """Drop an invalid index that an earlier run left; return a valid one, to skip the build.

        Raises:
            ConflictingObjectError: an index of the same name has another definition.
        """
        if build.name is None:
            return self._prepare_unnamed(build)
        self._built.append((build.name, build.table))
        found = self._find(build.name, build.table)
        if found is None:
            return None
        table = self._connection.scalar(_TABLE, {"table": build.table})
        if not found.valid and found.table == table:
            self._drop(found)
            return None
        planned = self._describe(build, found)
        if planned is None or (found.table, found.definition) != (
            planned.table,
            planned.definition,
        ):
            self._handle_conflict(build, found, planned)
            return None
        return None if build.if_not_exists else found

    def _prepare_unnamed(self, build: ConcurrentBuild) -> Index | None:
        try:
            planned = build.describe(self._connection)
        except DBAPIError as error:
            if get_sqlstate(error) == SQLState.LOCK_NOT_AVAILABLE:
                raise
            return None  # the statement itself fails in the same way
        found = self._find(planned.name, build.table) if planned else None
        if planned is None or found is None or found.definition != planned.definition:
            return None
        if found.valid:
            return found
        self._drop(found)
        return None

    def _drop(self, index: Index) -> None:
        logger.warning("dropping the invalid index %s of an earlier run", index.name)
        self._connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {index.name}")

    def check(self) -> None:
        """Check that the indexes of the revision are valid.

        Raises:
            InvalidIndexError: an index is invalid, so the revision must not be recorded.
        """
        for name, table in self._built:
            index = self._find(name, table)
            if index is not None and not index.valid:
                raise InvalidIndexError(
                    f"the index {index.name} of {index.table} is invalid, so the revision is not "
                    "recorded. Run this command again: it drops and rebuilds the index."
                )

    def drop_left_by_reindex(self, relation: str | None) -> None:
        """Drop the invalid copies that an interrupted REINDEX CONCURRENTLY left.

        https://www.postgresql.org/docs/current/sql-reindex.html#SQL-REINDEX-CONCURRENTLY

        Args:
            relation: the table or index to reindex; None for the whole database.
        """
        for name in list(self._connection.scalars(_LEFT_BY_REINDEX, {"relation": relation})):
            logger.warning("dropping the invalid index %s of an earlier REINDEX", name)
            self._connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {name}")

    def _describe(self, build: ConcurrentBuild, found: Index) -> Index | None:
        try:
            return build.describe(self._connection)
        except DBAPIError as error:
            if get_sqlstate(error) == SQLState.LOCK_NOT_AVAILABLE:
                raise
            if build.if_not_exists:
                return found  # PostgreSQL keeps the existing index, whatever its definition
            raise ConflictingObjectError(
                f"the index {found.name} of {found.table} exists and can't be compared with the "
                f"one that the revision builds: {error.orig}"
            ) from error

    def _handle_conflict(self, build: ConcurrentBuild, found: Index, planned: Index | None) -> None:
        wanted = f"{planned.definition} on {planned.table}" if planned else "one of another table"
        difference = (
            f"the index {found.name} exists with another definition: it is {found.definition} on "
            f"{found.table}, the revision builds {wanted}"
        )
        if build.if_not_exists:
            logger.warning("%s; IF NOT EXISTS keeps the existing one", difference)
            return
        raise ConflictingObjectError(
            f"{difference}. Rename one of them, or drop the existing one "
            f"(DROP INDEX CONCURRENTLY {found.name}), and run this command again."
        )

    def _find(self, name: str, table: str) -> Index | None:
        row = self._connection.execute(_FIND, {"index": name, "table": table}).one_or_none()
        return Index(**row._mapping) if row else None  # noqa: SLF001 - documented API


def invalid_indexes(connection: Connection) -> list[str]:
    """Return the names of all invalid indexes that no session is building."""
    return list(connection.scalars(_INVALID))
