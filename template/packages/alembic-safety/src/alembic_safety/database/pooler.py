"""Detection of poolers in transaction mode, which are unsafe for migrations.

Such a pooler may run each transaction on another server connection, so that session advisory locks
and SET leak to the next client.
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
"""Comparisons of backend pids; a pooler that rotates its connections shows in one or two."""
PATIENCE = 3.0
"""Seconds to wait for a second connection; a pooler in session mode may have none left."""

_PID = text("SELECT pg_backend_pid()")


class PoolerError(MigrationError):
    """The URL leads through a pooler that does not keep a session on one server connection."""


@asynccontextmanager
async def connect_directly(
    url: DatabaseURL, **options: Any
) -> AsyncIterator[tuple[AsyncEngine, AsyncConnection]]:
    """Connect to `url`, unless through a pooler in transaction mode; yield engine and connection.

    Args:
        url: the database.
        options: further arguments of `create_engine`.

    Raises:
        PoolerError: the URL leads through such a pooler, or through one of unknown mode.
        DatabaseUnavailableError: the connection failed.
    """
    engine = create_engine(url, **options)
    async with engine.connect() as connection:
        await _refuse_transaction_pooler(url, engine, connection)
        yield engine, connection


async def refuse_transaction_pooler(url: DatabaseURL) -> None:
    """Raise `PoolerError` if `url` leads through a pooler in transaction mode.

    Raises:
        PoolerError: as `connect_directly`.
        DatabaseUnavailableError: as `connect_directly`.
    """
    async with connect_directly(url):
        pass


async def _refuse_transaction_pooler(
    url: DatabaseURL, engine: AsyncEngine, ours: AsyncConnection
) -> None:
    pid = await _pid(ours)
    driver = (await ours.get_raw_connection()).driver_connection
    # A pooler sends a made-up pid at connection start, because clients use it only to cancel.
    pooled = driver is None or driver.get_server_pid() != pid
    try:
        async with asyncio.timeout(PATIENCE), engine.connect() as other:
            for _ in range(ROUNDS if pooled else 1):
                # The open transaction of `other` pins its server connection.
                others = await other.scalar(_PID)
                if others == pid or await _pid(ours) != pid:
                    raise PoolerError(_message(url, "in transaction mode"))
                await other.rollback()
    except (DatabaseUnavailableError, DBAPIError, TimeoutError):
        # Without a pooler, the server has merely no second connection left.
        if pooled:
            raise PoolerError(_message(url, "of an unknown mode")) from None


async def _pid(connection: AsyncConnection) -> int | None:
    """Return the backend pid of a transaction of `connection`."""
    pid: int | None = await connection.scalar(_PID)
    await connection.rollback()
    return pid


def _message(url: DatabaseURL, mode: str) -> str:
    return (
        f"{url} leads through a pooler {mode}, where locks and timeouts would leak to other "
        "sessions. Nothing was changed. Set MIGRATION_DATABASE_URL (Target.url in "
        "migrations/env.py), which only migrations use, to the server's direct address."
    )
