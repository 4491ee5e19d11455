"""Replacing the present database by a restored one: two renames in one transaction."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from alembic_safety.database.lock import lock_holder
from alembic_safety.database.maintenance import maintenance
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import DatabaseUnavailableError, MigrationError
from alembic_safety.sql import LONGEST_IDENTIFIER, SQLState, get_sqlstate, quote_identifier

logger = logging.getLogger(__name__)

_TICK = 0.1

_EXISTS = text("SELECT 1 FROM pg_database WHERE datname = :name")
_TERMINATE = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = :name AND pid <> pg_backend_pid()"
)


class RestoreError(MigrationError):
    """The backup was not restored. The message says why; the present database is as it was."""


async def swap(server: AsyncConnection, url: DatabaseURL, restored: str) -> str:
    """Put `restored` in the place of the present database; return the name that it then has."""
    present = url.database
    rename = f"ALTER DATABASE {quote_identifier(restored)} RENAME TO {quote_identifier(present)}"
    if not await server.scalar(_EXISTS, {"name": present}):
        await server.exec_driver_sql(rename)
        return present
    kept = stamped_name(present, "before_restore", datetime.now(UTC))
    try:
        # While it waits for the database's sessions to end, the renaming keeps new ones out. What
        # is not committed, the server takes back, whatever happens to this process.
        await server.exec_driver_sql("BEGIN")
        async with _sessions_ended(url):
            await server.exec_driver_sql(
                f"ALTER DATABASE {quote_identifier(present)} RENAME TO {quote_identifier(kept)}"
            )
        await server.exec_driver_sql(rename)
        await server.exec_driver_sql("COMMIT")
    except (DBAPIError, RestoreError) as error:
        reason = f"{error.orig}" if isinstance(error, DBAPIError) else str(error)
        if get_sqlstate(error) == SQLState.OBJECT_IN_USE:
            reason += "; stop what uses it"
        raise RestoreError(
            f"the database {present} could not be replaced, and is as it was; the backup is in "
            f"the database {restored}: {reason}"
        ) from error
    logger.info("what was the database %s is now %s; drop it when you are sure", present, kept)
    return present


@asynccontextmanager
async def _sessions_ended(url: DatabaseURL) -> AsyncIterator[None]:
    """Meanwhile, end the sessions on the database of `url`, unless it is being migrated."""

    async def end() -> None:
        async with maintenance(url) as other:
            await asyncio.sleep(_TICK)  # let the renaming close the door first
            await refuse_while_migrating(other, url.database)
            while True:
                await other.execute(_TERMINATE, {"name": url.database})
                await asyncio.sleep(_TICK)

    ending = asyncio.create_task(end())
    try:
        yield
    except DBAPIError:
        if ending.done() and (error := ending.exception()) is not None:
            raise error from None
        raise
    finally:
        ending.cancel()
        with suppress(asyncio.CancelledError, DatabaseUnavailableError, DBAPIError, RestoreError):
            await ending


async def refuse_while_migrating(server: AsyncConnection, database: str) -> None:
    """Raise `RestoreError` while a migration of the database runs."""
    if (holder := await server.run_sync(lock_holder, database=database)) is not None:
        raise RestoreError(f"{holder} is migrating the database {database}; wait until it ends")


def stamped_name(database: str, what: str, moment: datetime) -> str:
    """Return `<database>_<what>_<time>`, the database's name cut where that is too long."""
    tail = f"_{what}_{moment:%Y%m%d_%H%M%S}"
    return database.encode()[: LONGEST_IDENTIFIER - len(tail)].decode(errors="ignore") + tail
