"""Replacement of the present database with a restored one, by two renames in one transaction."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from alembic_safety.database.lock import lock_holder
from alembic_safety.database.maintenance import database_exists, maintenance
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import DatabaseUnavailableError, MigrationError
from alembic_safety.sql import LONGEST_IDENTIFIER, SQLState, get_sqlstate, quote_identifier

logger = logging.getLogger(__name__)

_TICK = 0.1

_TERMINATE = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = :name AND pid <> pg_backend_pid()"
)


class RestoreError(MigrationError):
    """The backup was not restored. The present database was not changed."""


async def swap(server: AsyncConnection, url: DatabaseURL, restored: str) -> str:
    """Replace the database of `url` with the database `restored`; return the final name.

    The present database is renamed to `<name>_before_restore_<time>`.

    Raises:
        RestoreError: a migration runs, or the present database could not be renamed.
    """
    present = url.database
    rename = f"ALTER DATABASE {quote_identifier(restored)} RENAME TO {quote_identifier(present)}"
    if not await database_exists(server, present):
        await server.exec_driver_sql(rename)
        return present
    kept = stamped_name(present, "before_restore", datetime.now(UTC))
    try:
        # The rename blocks new sessions while it waits for the present ones to end. If this process
        # dies, the server rolls back.
        await server.exec_driver_sql("BEGIN")
        async with _terminating_sessions(url):
            await server.exec_driver_sql(
                f"ALTER DATABASE {quote_identifier(present)} RENAME TO {quote_identifier(kept)}"
            )
        await server.exec_driver_sql(rename)
        await server.exec_driver_sql("COMMIT")
    except (DBAPIError, RestoreError) as error:
        reason = f"{error.orig}" if isinstance(error, DBAPIError) else str(error)
        if get_sqlstate(error) == SQLState.OBJECT_IN_USE:
            reason += "; stop the programs that use the database, and run this command again"
        raise RestoreError(
            f"the database {present} could not be replaced, and was not changed; the backup is in "
            f"the database {restored}: {reason}"
        ) from error
    logger.info(
        "the replaced database %s is now named %s; drop it when you no longer need it",
        present,
        kept,
    )
    return present


@asynccontextmanager
async def _terminating_sessions(url: DatabaseURL) -> AsyncIterator[None]:
    """Terminate sessions on the database of `url` during the block, unless a migration runs."""

    async def terminate() -> None:
        async with maintenance(url) as other:
            await asyncio.sleep(_TICK)  # until the rename blocks new sessions
            await refuse_while_migrating(other, url.database)
            while True:
                await other.execute(_TERMINATE, {"name": url.database})
                await asyncio.sleep(_TICK)

    task = asyncio.create_task(terminate())
    try:
        yield
    except DBAPIError:
        if task.done() and (error := task.exception()) is not None:
            raise error from None
        raise
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, DatabaseUnavailableError, DBAPIError, RestoreError):
            await task


async def refuse_while_migrating(server: AsyncConnection, database: str) -> None:
    """Raise `RestoreError` while a migration of the database runs."""
    if (holder := await server.run_sync(lock_holder, database=database)) is not None:
        raise RestoreError(
            f"{holder} is migrating the database {database}; wait until that session ends"
        )


def stamped_name(database: str, label: str, moment: datetime) -> str:
    """Return `<database>_<label>_<time>`, with the database truncated to fit an identifier."""
    tail = f"_{label}_{moment:%Y%m%d_%H%M%S}"
    return database.encode()[: LONGEST_IDENTIFIER - len(tail)].decode(errors="ignore") + tail
