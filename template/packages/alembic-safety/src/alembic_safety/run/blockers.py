"""Lock holders that block a migration, watched from a second connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import Context

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from alembic_safety.errors import DatabaseUnavailableError

INTERVAL = 0.25
"""Seconds between two looks; a lock timeout that is shorter may pass unseen."""
_SHORTENED = 100
"""Characters of a query that are shown."""

_BLOCKERS = text(
    """
    SELECT pid, coalesce(nullif(application_name, ''), 'unnamed') AS application, state,
           extract(epoch FROM clock_timestamp() - xact_start)::int AS age, query
    FROM pg_stat_activity
    WHERE pid = ANY (pg_blocking_pids(:pid))
    ORDER BY xact_start
    """
)


class Blockers:
    """The sessions that a migration was last seen waiting for."""

    def __init__(self) -> None:
        self._seen: list[str] = []

    def take(self) -> str:
        """Return the sessions in words, and forget them."""
        seen, self._seen = self._seen, []
        return "; ".join(seen) or "a session that ended meanwhile"

    @asynccontextmanager
    async def watched(
        self, engine: AsyncEngine, connection: AsyncConnection
    ) -> AsyncIterator[None]:
        """Look, now and then, whom the session of `connection` waits for."""
        pid = await connection.scalar(text("SELECT pg_backend_pid()"))
        await connection.rollback()  # Alembic must find no transaction begun
        # In a context of its own: what it asks is no part of the migration's trace.
        watcher = asyncio.create_task(self._watch(engine, pid), context=Context())
        try:
            yield
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher

    async def _watch(self, engine: AsyncEngine, pid: int | None) -> None:
        # Without a second connection the migration goes on: it only knows less.
        await asyncio.sleep(INTERVAL)  # most runs have nothing to do, and end before
        with suppress(DBAPIError, DatabaseUnavailableError):
            async with engine.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                while True:
                    rows = (await connection.execute(_BLOCKERS, {"pid": pid})).all()
                    if rows:
                        self._seen = [
                            f"pid {row.pid} ({row.application}, {row.state}, its transaction "
                            f"{row.age} s old): {_shorten(row.query)}"
                            for row in rows
                        ]
                    await asyncio.sleep(INTERVAL)


def _shorten(query: str) -> str:
    line = " ".join(query.split())
    return line if len(line) <= _SHORTENED else line[: _SHORTENED - 1] + "…"
