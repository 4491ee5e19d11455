"""Connections to the maintenance database, for CREATE, ALTER and DROP DATABASE."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from alembic_safety.database.connection import create_engine
from alembic_safety.database.url import DatabaseURL
from alembic_safety.sql import quote_identifier

_EXISTS = text("SELECT 1 FROM pg_database WHERE datname = :name")


def maintenance_url(url: DatabaseURL) -> DatabaseURL:
    """Return the URL of a database of the same server other than `url`'s."""
    return url.with_database("postgres" if url.database != "postgres" else "template1")


async def database_exists(connection: AsyncConnection, name: str) -> bool:
    """Return whether the server of a connection has a database of that name."""
    return bool(await connection.scalar(_EXISTS, {"name": name}))


async def drop_database(connection: AsyncConnection, name: str) -> None:
    """Drop a database if it exists, and end its sessions."""
    await connection.exec_driver_sql(
        f"DROP DATABASE IF EXISTS {quote_identifier(name)} WITH (FORCE)"
    )


@asynccontextmanager
async def maintenance(url: DatabaseURL) -> AsyncIterator[AsyncConnection]:
    """Connect to the maintenance database of the server, in autocommit mode."""
    engine = create_engine(maintenance_url(url), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        yield connection
