"""Connections to the maintenance database, for CREATE, ALTER and DROP DATABASE."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection

from alembic_safety.database.connection import create_engine
from alembic_safety.database.url import DatabaseURL


def maintenance_url(url: DatabaseURL) -> DatabaseURL:
    """Return the URL of a database of the same server other than `url`'s."""
    return url.with_database("postgres" if url.database != "postgres" else "template1")


@asynccontextmanager
async def maintenance(url: DatabaseURL) -> AsyncIterator[AsyncConnection]:
    """Connect to the maintenance database of the server, in autocommit mode."""
    engine = create_engine(maintenance_url(url), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        yield connection
