"""Restore of a backup into a new database, or in place of the present one.

The backup is always restored into a new database first. Only after that succeeded is the present
database renamed, never dropped.
"""

import asyncio
import logging
import re
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from alembic_safety.backup.archive import CREATE_DATABASE, Archive, log_progress
from alembic_safety.backup.clients import find_client
from alembic_safety.backup.dump import check_readable, server_major
from alembic_safety.backup.files import Backup, format_size
from alembic_safety.backup.same_server import require_same_server
from alembic_safety.backup.swap import (
    RestoreError,
    refuse_while_migrating,
    stamped_name,
    swap,
)
from alembic_safety.boundary import describe_error
from alembic_safety.cancellation import call_in_thread
from alembic_safety.database.leftovers import drop_leftovers, owned, temporary_name
from alembic_safety.database.maintenance import (
    database_exists,
    drop_database,
    maintenance,
    maintenance_url,
)
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import ClientProgramError
from alembic_safety.options import BackupKind
from alembic_safety.sql import LONGEST_IDENTIFIER, SQLState, get_sqlstate, quote_identifier

logger = logging.getLogger(__name__)

_TAKEN = "there is a database {} already; choose another name, or drop that database"

_NO_SUCH_LOCALE = {
    SQLState.INVALID_PARAMETER_VALUE,
    SQLState.WRONG_OBJECT_TYPE,
    SQLState.FEATURE_NOT_SUPPORTED,
}

_ENCODING = re.compile(r"ENCODING = '\w+'")


async def restore(
    url: DatabaseURL, backup: Backup, *, into: str | None = None, replace: bool = False
) -> str:
    """Restore a backup; return the name of the restored database.

    Args:
        url: the present database, on the server to restore to.
        backup: the backup.
        into: name of the new database; None derives it from the backup.
        replace: whether to replace the present database, which is renamed.

    Raises:
        RestoreError: the backup can't be read, the role may not create databases, the name is
            taken, or the present database can't be renamed.
        DatabaseUnavailableError: the server can't be reached.
    """
    if replace and backup.kind is BackupKind.SCHEMA:
        raise RestoreError(
            f"{backup.path.name} has no rows, so it can't replace {url.database}. Restore it into "
            "a new database: omit the confirmation."
        )
    stamp = datetime.now(UTC) if replace else backup.taken_at
    target = into or stamped_name(backup.database, "restored", stamp)
    if len(target.encode()) > LONGEST_IDENTIFIER:
        raise RestoreError(
            f"the name {target} is longer than {LONGEST_IDENTIFIER} bytes; choose a shorter one"
        )
    async with maintenance(url) as server:
        if replace:
            await refuse_while_migrating(server, url.database)
        if await database_exists(server, target):
            raise RestoreError(_TAKEN.format(target))
        for leftover in await drop_leftovers(server, url.database):
            logger.info("dropped %s, which a killed restore or plan left", leftover)
        size = format_size(backup.path.stat().st_size)
        logger.info("restoring %s (%s) into %s", backup.path.name, size, target)
        # A database with the final name is complete.
        temporary = temporary_name(url.database, "restoring")
        async with owned(url, temporary):
            try:
                program = find_client("pg_restore", None)
                await call_in_thread(
                    check_readable, program, backup.path, partial(log_progress, "reading")
                )
                await restore_file(url, backup.path, temporary)
            except ClientProgramError as error:
                raise RestoreError(
                    f"{backup.path.name} was not restored: {error}\n"
                    f"The database {url.database} was not changed, and no new database was left."
                ) from error
            await _rename(server, temporary, target)
        return await swap(server, url, target) if replace else target


async def _rename(server: AsyncConnection, temporary: str, target: str) -> None:
    """Give a restored database its final name; drop it if that fails."""
    try:
        await server.exec_driver_sql(
            f"ALTER DATABASE {quote_identifier(temporary)} RENAME TO {quote_identifier(target)}"
        )
    except BaseException as error:
        await drop_database(server, temporary)
        if get_sqlstate(error) == SQLState.DUPLICATE_DATABASE:
            raise RestoreError(_TAKEN.format(target)) from error
        raise


async def restore_file(
    url: DatabaseURL, file: Path | None, target: str, *, analyze: bool = True
) -> None:
    """Create the database `target` from an archive, or empty.

    Args:
        url: a database on the server.
        file: the archive of pg_dump; None for an empty database.
        target: name of the new database.
        analyze: whether to run ANALYZE after the restore.

    Raises:
        ClientProgramError: the archive can't be restored; no database was left.
        RestoreError: the name is taken, or the role may not create databases.
    """
    async with maintenance(url) as server:
        if file is None:
            await _create(server, "", target)
            return
        archive = Archive(file, url, await server.run_sync(server_major), analyze=analyze)
        # Check first, so that pg_restore never fills a database of that name on another server.
        await server.run_sync(require_same_server, maintenance_url(url), archive.pg_restore)
        if not await _create_and_fill(server, archive, target, owners=True):
            await _create_and_fill(server, archive, target, owners=False)


async def _create_and_fill(
    server: AsyncConnection, archive: Archive, target: str, *, owners: bool
) -> bool:
    """Create the database `target` from an archive; return False if that failed with owners.

    Raises:
        ClientProgramError: the archive can't be restored; the database was dropped.
        RestoreError: the name is taken, or the role may not create databases.
    """
    script = await call_in_thread(archive.database_script, target)
    await _create(server, script, target)
    try:
        await call_in_thread(partial(archive.restore_into, owners=owners), target, script)
    except BaseException as error:
        await drop_database(server, target)
        if not (owners and isinstance(error, ClientProgramError)):
            raise
        logger.warning("retrying without owners and privileges, which can't be set: %s", error)
        return False
    return True


async def _create(server: AsyncConnection, script: str, target: str) -> None:
    """Create the database by the archive's script; leave none if this task is canceled."""
    creating = asyncio.ensure_future(_run_create(server, script, target))
    try:
        await asyncio.shield(creating)
    except asyncio.CancelledError:
        with suppress(DBAPIError, RestoreError):
            await creating
            await drop_database(server, target)
        raise


async def _run_create(server: AsyncConnection, script: str, target: str) -> None:
    """Create the database; fall back to the locale of the server."""
    found = CREATE_DATABASE.search(script)
    statement = (
        found[0] if found else f"CREATE DATABASE {quote_identifier(target)} TEMPLATE template0"
    )
    try:
        await server.exec_driver_sql(statement)
    except DBAPIError as error:
        state = get_sqlstate(error)
        if state == SQLState.DUPLICATE_DATABASE:
            raise RestoreError(_TAKEN.format(target)) from error
        if state not in _NO_SUCH_LOCALE:
            reason = describe_error(error).partition("\n")[0]
            if state == SQLState.INSUFFICIENT_PRIVILEGE:
                role = await server.scalar(text("SELECT quote_ident(current_user)"))
                reason += f". To allow it, a superuser runs: ALTER ROLE {role} CREATEDB"
            raise RestoreError(f"no database could be created: {reason}") from error
        logger.warning(
            "the database gets the default locale of the server, so text may sort differently: %s",
            error.orig,
        )
        encoding = _ENCODING.search(statement)
        await server.exec_driver_sql(
            f"CREATE DATABASE {quote_identifier(target)} TEMPLATE template0 {encoding[0] if encoding else ''}"
        )
