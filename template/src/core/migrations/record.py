"""What was applied, reverted, backed up and failed, when, by whom.

A revision's row is written in the revision's own transaction. The table needs no revision of its
own, and autogenerate never sees it.
"""

import getpass
import os
import socket
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from core.migrations.sql import SQLState, get_sqlstate
from core.migrations.statements import watched_statements
from core.project import load_project

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
# Of a table that an earlier version of this module made; where it is there, nothing is locked.
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
    # Nothing of the record: what is asked here needs no question of its own.
    " RETURNING current_setting('lock_timeout'), current_setting('statement_timeout')"
)
_SELECT = text(
    "SELECT revision, direction, started_at, extract(epoch FROM duration) AS seconds,"  # noqa: S608
    " who, host, code_version, backup, to_jsonb(record) ->> 'error' AS error"
    f" FROM {TABLE} record ORDER BY id"
)


def code_version() -> str:
    """Return what code this is: `CODE_VERSION` (set it to the commit), or the project's version."""
    return os.environ.get("CODE_VERSION") or load_project().version


class Direction(StrEnum):
    """What a row tells of."""

    UPGRADE = "upgrade"
    DOWNGRADE = "downgrade"
    STAMP = "stamp"
    BACKUP = "backup"
    ROLLOUT = "rollout"
    """Not of migrations, but of the code that began to run."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A revision that was applied, reverted or stamped, or failed to be; a backup; a roll-out."""

    revision: str
    """Of a backup or a roll-out, where the database was."""
    direction: Direction
    seconds: float = 0.0
    backup: str | None = None
    error: str | None = None
    """Why it failed; None where it did not."""
    code_version: str = field(default_factory=code_version)


@dataclass(frozen=True, kw_only=True)
class Entry(Event):
    """A row of the record."""

    started_at: datetime
    who: str
    host: str


def write(connection: Connection, written: Event) -> None:
    """Write a row, in the transaction that is open; make the table, where it is not there."""
    Record(connection).write(written)


class Record:
    """The record as a run of many revisions writes it: the table is looked at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.is_ready = False
        """Whether the table is there, and committed, with all of its columns."""

    def watched(self) -> AbstractContextManager[None]:
        """Watch the connection's statements: one that names the table may alter it, or drop it."""
        return watched_statements(self._connection, self._before)

    def write(self, written: Event) -> tuple[str, str]:
        """Write a row, in the transaction that is open; return the timeouts that hold there."""
        if not self.is_ready:
            table = self._connection.execute(_COLUMNS, {"table": TABLE}).one()
            if not table.there:
                self._connection.execute(text(_CREATE))
            elif not table.with_error:
                self._connection.execute(text(_ADD_ERROR))
        values = {**asdict(written), "who": _who(), "host": socket.gethostname()}
        lock_timeout, statement_timeout = self._connection.execute(_INSERT, values).one()
        return lock_timeout, statement_timeout

    def _before(self, _connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        if TABLE in statement.lower():
            self.is_ready = False


def read(connection: Connection) -> list[Entry]:
    """Return all rows, oldest first; none where nothing was recorded yet."""
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
    """Return the code that was rolled out last; empty where that is not known."""
    rollouts = [item for item in read(connection) if item.direction is Direction.ROLLOUT]
    return rollouts[-1].code_version if rollouts else ""


def exists(connection: Connection) -> bool:
    """Return whether something was ever recorded in this database."""
    return bool(connection.execute(_COLUMNS, {"table": TABLE}).one().there)


@cache
def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
