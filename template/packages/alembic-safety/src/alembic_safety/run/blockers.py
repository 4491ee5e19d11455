"""Sessions that block a migration, polled on a second connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from typing import Any

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from alembic_safety.database.session import Session
from alembic_safety.errors import DatabaseUnavailableError

INTERVAL = 0.25
"""Seconds between two polls; blockers of a shorter lock timeout may be missed."""
_LONGEST_QUERY = 100
"""Characters of a query to show."""

_HIDDEN = "<insufficient privilege>"
"""`query` of another role's session, for a role without pg_read_all_stats."""

_BLOCKERS = text(
    """
    SELECT pid, coalesce(nullif(application_name, ''), 'unnamed') AS application,
           coalesce(state, backend_type) AS state,
           coalesce(extract(epoch FROM clock_timestamp() - xact_start), 0)::int AS age, query,
           quote_ident(usename) AS role, quote_ident(current_user) AS reader
    FROM pg_stat_activity
    WHERE pid = ANY (pg_blocking_pids(:pid))
    ORDER BY xact_start
    """
)


class Blockers:
    """The sessions that the migration was waiting for at the last poll that found any."""

    def __init__(self) -> None:
        self._seen: list[str] = []

    def take(self) -> str:
        """Return a description of the sessions, and clear it."""
        seen, self._seen = self._seen, []
        return "; ".join(seen) or "a session that ended meanwhile"

    @asynccontextmanager
    async def watched(self, session: Session) -> AsyncIterator[None]:
        """Poll the sessions that block `session`, for the duration of the block.

        Without a second connection, the migration continues unwatched.
        """
        pid = await session.run(_read_pid)
        # An empty context keeps these queries out of the trace of the migration.
        watcher = asyncio.create_task(self._watch(session.engine, pid), context=Context())
        try:
            yield
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher

    async def _watch(self, engine: AsyncEngine, pid: int | None) -> None:
        await asyncio.sleep(INTERVAL)  # connect only if the run lasts longer than most
        with suppress(DBAPIError, DatabaseUnavailableError):
            async with engine.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                while True:
                    rows = (await connection.execute(_BLOCKERS, {"pid": pid})).all()
                    if rows:
                        self._seen = [_describe(row) for row in rows]
                    await asyncio.sleep(INTERVAL)


def _describe(row: Row[Any]) -> str:
    if row.query == _HIDDEN:
        return (
            f"pid {row.pid} ({row.application}, of the role {row.role}; to see what it runs: "
            f"GRANT pg_read_all_stats TO {row.reader})"
        )
    return (
        f"pid {row.pid} ({row.application}, {row.state}, its transaction {row.age} s old): "
        f"{_shorten(row.query)}"
    )


def _read_pid(connection: Connection) -> int | None:
    pid: int | None = connection.scalar(text("SELECT pg_backend_pid()"))
    connection.rollback()  # Alembic treats an open transaction as its caller's
    return pid


def _shorten(query: str) -> str:
    line = " ".join(query.split())
    return line if len(line) <= _LONGEST_QUERY else line[: _LONGEST_QUERY - 1] + "…"
