"""Poolers in transaction mode, through which no migration can be trusted.

Each transaction may run on another connection of the server: an advisory lock of the session, and
what SET changed, then belong to the next client.
https://www.pgbouncer.org/features.html
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from alembic_safety.database.connection import create_engine
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import DatabaseUnavailableError, MigrationError

ROUNDS = 3
"""Looks at the pids; a pooler that deals out its connections in turn shows it in one or two."""
PATIENCE = 3.0
"""Seconds for a second connection: a pooler in session mode may have none left."""

_PID = text("SELECT pg_backend_pid()")


class PoolerError(MigrationError):
    """The address leads through a pooler that does not keep a session on one connection."""


@asynccontextmanager
async def connect_directly(
    url: DatabaseURL, **options: Any
) -> AsyncIterator[tuple[AsyncEngine, AsyncConnection]]:
    """Connect to `url`, and refuse a pooler in transaction mode; yield engine and connection.

    Args:
        url: where to connect to.
        options: further arguments of `create_engine`.

    Raises:
        PoolerError: the address leads through such a pooler, or one whose mode is unknown.
        DatabaseUnavailableError: no connection could be made.
    """
    engine = create_engine(url, **options)
    async with engine.connect() as connection:
        await _refuse_transaction_pooler(url, engine, connection)
        yield engine, connection


async def refuse_transaction_pooler(url: DatabaseURL) -> None:
    """Connect to `url` and disconnect; raise what `connect_directly` does."""
    async with connect_directly(url):
        pass


async def _refuse_transaction_pooler(
    url: DatabaseURL, engine: AsyncEngine, ours: AsyncConnection
) -> None:
    pid = await _pid(ours)
    driver = (await ours.get_raw_connection()).driver_connection
    # A pooler makes up the pid that it gives at the start, as it is only used to cancel.
    pooled = driver is None or driver.get_server_pid() != pid
    try:
        async with asyncio.timeout(PATIENCE), engine.connect() as other:
            for _ in range(ROUNDS if pooled else 1):
                # `other` keeps its transaction, and with it its server connection.
                others = await other.scalar(_PID)
                if others == pid or await _pid(ours) != pid:
                    raise PoolerError(_message(url, "in transaction mode"))
                await other.rollback()
    except (DatabaseUnavailableError, DBAPIError, TimeoutError):
        # A server that has no second connection left is no pooler.
        if pooled:
            raise PoolerError(_message(url, "of an unknown mode")) from None


async def _pid(connection: AsyncConnection) -> int | None:
    """Return the pid of the server process that ran a transaction of `connection`."""
    pid: int | None = await connection.scalar(_PID)
    await connection.rollback()
    return pid


def _message(url: DatabaseURL, mode: str) -> str:
    return (
        f"{url} leads through a pooler {mode}, where a lock and a timeout would be another "
        "session's. Nothing was changed. Set MIGRATION_DATABASE_URL to an address of the server "
        "itself, past the pooler; migrations alone use it."
    )
