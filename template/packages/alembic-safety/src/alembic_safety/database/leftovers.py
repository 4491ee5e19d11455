"""Temporary databases, and those that a killed process left behind.

A process holds an advisory lock from before it creates a temporary database until after it dropped or
renamed it. The server releases the lock when the process dies, so a temporary database without a
lock belongs to nobody.
"""

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from alembic_safety.boundary import describe_error
from alembic_safety.database.connection import create_engine
from alembic_safety.database.maintenance import drop_database, maintenance_url
from alembic_safety.database.url import DatabaseURL
from alembic_safety.sql import ADVISORY_KEY

logger = logging.getLogger(__name__)

_LONGEST_STEM = 40
_SUFFIX_BYTES = 4
_SEED = 7_203_961_542
"""Seed of `hashtextextended`, so that the keys are no other program's."""
# The random suffix keeps databases that people named out of this. Release 1.2 made `_plan_` without a
# lock, so that name is not judged.
_NAME = "_(scratch|restoring)_[0-9a-f]{8}$"
_LOCK = text(f"SELECT pg_advisory_lock(hashtextextended(:name, {_SEED}))")
# pg_locks lists the locks of all databases and roles.
_LEFTOVERS = text(
    f"""
    SELECT datname FROM pg_database d
    WHERE starts_with(datname, :stem) AND substr(datname, length(:stem) + 1) ~ '^{_NAME}'
      AND NOT EXISTS (
        SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.objsubid = 1
          AND {ADVISORY_KEY} = hashtextextended(datname, {_SEED})
      )
    ORDER BY 1
    """  # noqa: S608
)


def temporary_name(database: str, purpose: str) -> str:
    """Return a new name: `<database>_<purpose>_<random digits>`.

    Args:
        database: the database that the temporary one is for.
        purpose: `scratch` or `restoring`.
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

    A database that this role may not drop is logged.

    Args:
        connection: a connection to another database of the server, in autocommit mode.
        database: name of the database that they were made for.
    """
    dropped = []
    for name in await find_leftovers(connection, database):
        try:
            await drop_database(connection, name)
        except DBAPIError as error:
            reason = describe_error(error).partition("\n")[0]
            logger.warning("%s was left by a killed command; drop it: %s", name, reason)
        else:
            dropped.append(name)
    return dropped


def _stem(database: str) -> str:
    return database.encode()[:_LONGEST_STEM].decode(errors="ignore")
