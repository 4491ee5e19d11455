"""What was applied and reverted, when, by whom: a row a revision, in its own transaction.

The table needs no revision of its own, and autogenerate never sees it.
"""

import getpass
import os
import socket
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from core.project import load_project

TABLE = "alembic_version_history"
_UNDEFINED_TABLE = "42P01"

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
        backup text
    )
"""
_INSERT = text(
    f"INSERT INTO {TABLE}"  # noqa: S608
    " (revision, direction, started_at, duration, who, host, code_version, backup)"
    " VALUES (:revision, :direction, clock_timestamp() - make_interval(secs => :seconds),"
    " make_interval(secs => :seconds), :who, :host, :code_version, :backup)"
)
_SELECT = text(
    "SELECT revision, direction, started_at, extract(epoch FROM duration) AS seconds,"  # noqa: S608
    f" who, host, code_version, backup FROM {TABLE} ORDER BY id"
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A revision that was applied, reverted or stamped."""

    revision: str
    direction: str
    started_at: datetime
    seconds: float
    who: str
    host: str
    code_version: str
    backup: str | None


def write(
    connection: Connection, *, revision: str, direction: str, seconds: float, backup: str | None
) -> None:
    """Write a row, in the transaction that is open."""
    if connection.scalar(text("SELECT to_regclass(:table) IS NULL"), {"table": TABLE}):
        connection.execute(text(_CREATE))
    values = {
        "revision": revision,
        "direction": direction,
        "seconds": seconds,
        "who": _who(),
        "host": socket.gethostname(),
        "code_version": code_version(),
        "backup": backup,
    }
    connection.execute(_INSERT, values)


def read(connection: Connection) -> list[Entry]:
    """Return all rows, oldest first; none where nothing was recorded yet."""
    try:
        rows = connection.execute(_SELECT).mappings().all()
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _UNDEFINED_TABLE:
            raise
        connection.rollback()
        return []
    return [Entry(**{**row, "seconds": float(row["seconds"])}) for row in rows]


def code_version() -> str:
    """Return what code this is: `CODE_VERSION` (set it to the commit), or the project's version."""
    return os.environ.get("CODE_VERSION") or load_project().version


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
