"""Temporary databases, and those that a killed process left behind.

A process holds an advisory lock from before it creates a temporary database until after it dropped or
renamed it. The server releases the lock when the process dies, so a temporary database without a
lock belongs to nobody.
"""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from alembic_safety.database.connection import create_engine
from alembic_safety.database.maintenance import maintenance_url
from alembic_safety.database.url import DatabaseURL
from alembic_safety.sql import quote_identifier

_LONGEST_STEM = 40
_SUFFIX_BYTES = 4
_SEED = 7_203_961_542
"""Seed of `hashtextextended`, so that the keys are no other program's."""
# The random suffix keeps databases that people named out of this.
_NAME = "_(plan|restoring)_[0-9a-f]{8}$"
_LOCK = text(f"SELECT pg_advisory_lock(hashtextextended(:name, {_SEED}))")
# pg_locks splits a bigint key into classid (high half) and objid (low half), with objsubid 1. It
# lists the locks of all databases and roles.
_LEFTOVERS = text(
    f"""
    SELECT datname FROM pg_database d
    WHERE starts_with(datname, :stem) AND substr(datname, length(:stem) + 1) ~ '^{_NAME}'
      AND NOT EXISTS (
        SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.objsubid = 1
          AND (l.classid::bigint << 32) | l.objid::bigint = hashtextextended(datname, {_SEED})
      )
    ORDER BY 1
    """  # noqa: S608
)


def temporary_name(database: str, purpose: str) -> str:
    """Return a new name: `<database>_<purpose>_<random digits>`.

    Args:
        database: the database that the temporary one is for.
        purpose: `plan` or `restoring`.
    """
    return f"{_stem(database)}_{purpose}_{secrets.token_hex(_SUFFIX_BYTES)}"


@asynccontextmanager
async def owned(server: DatabaseURL, name: str) -> AsyncIterator[None]:
    """Own the temporary database `name` of a server during the block.

    Raises:
        DatabaseUnavailableError: the connection failed.
    """
    engine = create_engine(
        maintenance_url(server),
        isolation_level="AUTOCOMMIT",
        server_settings={"idle_session_timeout": "0"},
    )
    async with engine.connect() as connection:
        await connection.execute(_LOCK, {"name": name})
        yield


async def find_leftovers(connection: AsyncConnection, database: str) -> list[str]:
    """Return the temporary databases for `database` that nobody owns.

    Args:
        connection: a connection to any database of the server.
        database: name of the database that they were made for.
    """
    return list(await connection.scalars(_LEFTOVERS, {"stem": _stem(database)}))


async def drop_leftovers(connection: AsyncConnection, database: str) -> list[str]:
    """Drop the temporary databases for `database` that nobody owns; return their names.

    Args:
        connection: a connection to another database of the server, in autocommit mode.
        database: name of the database that they were made for.
    """
    dropped = []
    for name in await find_leftovers(connection, database):
        with suppress(DBAPIError):  # another role's, or just dropped by another run
            # The server may still run a statement of the killed process.
            await connection.exec_driver_sql(f"DROP DATABASE {quote_identifier(name)} WITH (FORCE)")
            dropped.append(name)
    return dropped


def _stem(database: str) -> str:
    return database.encode()[:_LONGEST_STEM].decode(errors="ignore")
