"""Migration history: a table with one row per revision, backup, failure and rollout.

The row of a revision is committed in the transaction of that revision. The library creates the
table on first use, and autogenerate ignores it.
"""

import getpass
import os
import socket
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from alembic_safety.database.statements import watched_statements
from alembic_safety.sql import SQLState, get_sqlstate

TABLE = "alembic_version_history"

_CREATE = f"""
    CREATE TABLE {TABLE} (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        revision text NOT NULL,
        direction text NOT NULL,
        started_at timestamptz NOT NULL,
        duration interval NOT NULL,
        who text NOT NULL,
        host text NOT NULL,
        code_version text NOT NULL,
        backup text,
        error text
    )
"""
# Tables created by release 1.0 do not have this column.
_ADD_ERROR = f"ALTER TABLE {TABLE} ADD COLUMN error text"
_COLUMNS = text(
    "SELECT to_regclass(:table) IS NOT NULL AS there, EXISTS (SELECT FROM pg_attribute"
    " WHERE attrelid = to_regclass(:table) AND attname = 'error') AS with_error"
)
_INSERT = text(
    f"INSERT INTO {TABLE}"  # noqa: S608
    " (revision, direction, started_at, duration, who, host, code_version, backup, error)"
    " VALUES (:revision, :direction, clock_timestamp() - make_interval(secs => :seconds),"
    " make_interval(secs => :seconds), :who, :host, :code_version, :backup, :error)"
    # Saves a round trip: the runner checks whether the revision changed its timeouts.
    " RETURNING current_setting('lock_timeout'), current_setting('statement_timeout')"
)
_SELECT = text(
    "SELECT revision, direction, started_at, extract(epoch FROM duration) AS seconds,"  # noqa: S608
    " who, host, code_version, backup, to_jsonb(history) ->> 'error' AS error"
    f" FROM {TABLE} history ORDER BY id"
)


class Direction(StrEnum):
    """Kind of a history row."""

    UPGRADE = "upgrade"
    DOWNGRADE = "downgrade"
    STAMP = "stamp"
    BACKUP = "backup"
    ROLLOUT = "rollout"
    """A code version was deployed; no revision ran."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A revision that was applied, reverted, stamped or that failed; a backup; or a rollout."""

    revision: str
    """For a backup or a rollout, the revision of the database at that time."""
    direction: Direction
    code_version: str
    seconds: float = 0.0
    backup: str | None = None
    error: str | None = None
    """Cause of the failure; None on success."""


@dataclass(frozen=True, kw_only=True)
class Entry(Event):
    """A stored row of the history."""

    started_at: datetime
    who: str
    host: str


def write(connection: Connection, event: Event) -> None:
    """Write a row in the open transaction; create the table if it is missing."""
    History(connection).write(event)


class History:
    """Writer of many rows that checks the table only once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.is_ready = False
        """True once the table is committed with all of its columns."""

    def watched(self) -> AbstractContextManager[None]:
        """Check the table again after a statement that names it, which may alter or drop it."""
        return watched_statements(self._connection, self._before)

    def write(self, event: Event) -> tuple[str, str]:
        """Write a row in the open transaction; return the session's lock and statement timeouts."""
        if not self.is_ready:
            table = self._connection.execute(_COLUMNS, {"table": TABLE}).one()
            if not table.there:
                self._connection.execute(text(_CREATE))
            elif not table.with_error:
                self._connection.execute(text(_ADD_ERROR))
        values = {**asdict(event), "who": _who(), "host": socket.gethostname()}
        lock_timeout, statement_timeout = self._connection.execute(_INSERT, values).one()
        return lock_timeout, statement_timeout

    def _before(self, _connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        if TABLE in statement.lower():
            self.is_ready = False


def read(connection: Connection) -> list[Entry]:
    """Return all rows, oldest first; an empty list if the table does not exist."""
    try:
        rows = connection.execute(_SELECT).mappings().all()
    except DBAPIError as error:
        if get_sqlstate(error) != SQLState.UNDEFINED_TABLE:
            raise
        connection.rollback()
        return []
    return [
        Entry(**{**row, "seconds": float(row["seconds"]), "direction": Direction(row["direction"])})
        for row in rows
    ]


def last_rollout(connection: Connection) -> str:
    """Return the code version of the last rollout; an empty string if none is recorded."""
    rollouts = [item for item in read(connection) if item.direction is Direction.ROLLOUT]
    return rollouts[-1].code_version if rollouts else ""


def exists(connection: Connection) -> bool:
    """Return whether the history table exists."""
    return bool(connection.execute(_COLUMNS, {"table": TABLE}).one().there)


@cache
def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the user of a container may have no name
        return str(os.getuid())
