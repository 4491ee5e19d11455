"""Resumption of a revision whose autocommit statements an interrupted run committed.

Statements in an autocommit block are committed before their revision is recorded. If the runner is
killed in between, the revision stays pending. The next run compares the object that each statement
creates with the existing one, and skips the statement if they are the same.
"""

import logging
import re
from contextlib import AbstractContextManager

from sqlalchemy import Connection, text

from alembic_safety.database.statements import rewritten_statements
from alembic_safety.run.indexes import ConcurrentBuild, ConcurrentIndexes, ConflictingObjectError
from alembic_safety.sql import LEADING, QUALIFIED

logger = logging.getLogger(__name__)

_LITERAL = r"'((?:[^']|'')*)'"


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(LEADING + text.replace(" ", r"\s+"), re.IGNORECASE | re.DOTALL)


_ADD_VALUE = _pattern(
    rf"ALTER TYPE (?P<type>{QUALIFIED}) ADD VALUE {_LITERAL}"
    rf"(?:\s*(?P<side>BEFORE|AFTER)\s*{_LITERAL})?\s*;?\s*$"
)
_DETACH = _pattern(
    rf"ALTER TABLE (?:IF EXISTS )?(?:ONLY )?(?P<table>{QUALIFIED})"
    rf" DETACH PARTITION (?P<partition>{QUALIFIED}) CONCURRENTLY\b"
)
_DROP_INDEX = _pattern(rf"DROP INDEX CONCURRENTLY (?!IF EXISTS )(?P<index>{QUALIFIED})")
_REINDEX = _pattern(
    r"REINDEX\s*(?:\([^)]*\)\s*)?(?P<kind>INDEX|TABLE|SCHEMA|DATABASE|SYSTEM)\b"
    rf"(?:\s+CONCURRENTLY\b)?\s*(?P<name>{QUALIFIED})?"
)

_LABELS = text(
    "SELECT enumlabel FROM pg_enum WHERE enumtypid = to_regtype(:type) ORDER BY enumsortorder"
)
_PARTITION = text(
    "SELECT c.relispartition, coalesce(i.inhdetachpending, false) AS pending,"
    " coalesce(i.inhparent = to_regclass(:table), false) AS of_the_table"
    " FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND c.relispartition"
    " WHERE c.oid = to_regclass(:partition)"
)
_EXISTS = text("SELECT to_regclass(:name) IS NOT NULL")


class Resumption:
    """Autocommit statements of a revision, skipped or rewritten if an earlier run executed them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.indexes = ConcurrentIndexes(connection)

    def active(self) -> AbstractContextManager[None]:
        """Rewrite the statements of the connection during the block."""
        return rewritten_statements(self._connection, self._rewrite)

    def _rewrite(self, statement: str) -> str | None:
        """Return the statement to run instead; None keeps the statement.

        Raises:
            ConflictingObjectError: the existing object differs from the one in the statement.
        """
        options = self._connection.get_execution_options()
        if options.get("isolation_level") != "AUTOCOMMIT":
            return None
        if build := ConcurrentBuild.parse(statement):
            index = self.indexes.prepare(build)
            return _skip(statement, f"the index {index.name} exists") if index else None
        if match := _ADD_VALUE.match(statement):
            return self._add_value(statement, match)
        if match := _DETACH.match(statement):
            return self._detach(statement, match)
        if match := _DROP_INDEX.match(statement):
            name = match["index"]
            gone = not self._connection.scalar(_EXISTS, {"name": name})
            return _skip(statement, f"the index {name} is dropped") if gone else None
        if (match := _REINDEX.match(statement)) and "CONCURRENTLY" in match[0].upper():
            self.indexes.drop_left_by_reindex(
                match["name"] if match["kind"].upper() in {"INDEX", "TABLE"} else None
            )
        return None

    def _add_value(self, statement: str, match: re.Match[str]) -> str | None:
        name, (label, neighbor) = match["type"], (_unquote(match[2]), _unquote(match[4]))
        labels = list(self._connection.scalars(_LABELS, {"type": name}))
        if label not in labels:
            return None
        if neighbor in labels:
            before = labels.index(label) < labels.index(neighbor)
            if before is not (match["side"].upper() == "BEFORE"):
                raise ConflictingObjectError(
                    f"the type {name} has the value '{label}' at another place: it has "
                    f"{', '.join(labels)}, the revision adds it {match['side'].lower()} "
                    f"'{neighbor}'. Change the revision to match the type, and run this command "
                    "again."
                )
        return _skip(statement, f"the type {name} has the value '{label}'")

    def _detach(self, statement: str, match: re.Match[str]) -> str | None:
        table, partition = match["table"], match["partition"]
        found = self._connection.execute(
            _PARTITION, {"table": table, "partition": partition}
        ).one_or_none()
        if found is None:
            return None
        if not found.relispartition:
            return _skip(statement, f"{partition} is detached from {table}")
        if found.pending and found.of_the_table:
            logger.warning("finishing the detachment of %s, which an earlier run began", partition)
            return f"ALTER TABLE {table} DETACH PARTITION {partition} FINALIZE"
        return None


def _skip(statement: str, reason: str) -> str:
    """Log the reason, and return a statement that does nothing."""
    line = " ".join(statement.split())
    logger.warning("%s already; skipping: %s", reason, line)
    return f"SELECT /* skipped: {line.replace('*/', '* /').replace('/*', '/ *')} */"


def _unquote(literal: str | None) -> str | None:
    return None if literal is None else literal.replace("''", "'")
