"""Restoring a backup into a new database, or in the place of the present one.

It is always restored into a new database first. The present one is touched only after that
succeeded, and is then renamed, not dropped.
"""

import asyncio
import logging
import re
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

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
from alembic_safety.database.maintenance import maintenance, maintenance_url
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import ClientProgramError
from alembic_safety.options import BackupKind
from alembic_safety.sql import LONGEST_IDENTIFIER, SQLState, get_sqlstate, quote_identifier

logger = logging.getLogger(__name__)

_NO_SUCH_LOCALE = {
    SQLState.INVALID_PARAMETER_VALUE,
    SQLState.WRONG_OBJECT_TYPE,
    SQLState.FEATURE_NOT_SUPPORTED,
}

_ENCODING = re.compile(r"ENCODING = '\w+'")


async def restore(
    url: DatabaseURL, backup: Backup, *, into: str | None = None, replace: bool = False
) -> str:
    """Restore a backup; return the name of the database that now has its content.

    Args:
        url: the present database, on whose server it is restored.
        backup: what to restore.
        into: the new database's name; by default one made of the backup's.
        replace: put it in the present database's place, which is renamed.

    Raises:
        RestoreError: it can't be read, there is no right to make databases, a name is taken, or
            the present database can't be renamed.
        DatabaseUnavailableError: the server can't be reached.
    """
    if replace and backup.kind is BackupKind.SCHEMA:
        raise RestoreError(
            f"{backup.path.name} holds the schema alone: in the place of {url.database} it would "
            "leave no rows. Restore it into a new database: leave CONFIRM out."
        )
    stamp = datetime.now(UTC) if replace else backup.taken_at
    target = into or stamped_name(backup.database, "restored", stamp)
    if len(target.encode()) > LONGEST_IDENTIFIER:
        raise RestoreError(f"{target}: longer than the {LONGEST_IDENTIFIER} bytes of a name")
    async with maintenance(url) as server:
        if replace:
            await refuse_while_migrating(server, url.database)
        size = format_size(backup.path.stat().st_size)
        logger.info("restoring %s (%s) into %s", backup.path.name, size, target)
        try:
            program = find_client("pg_restore", None)
            await asyncio.to_thread(
                check_readable, program, backup.path, partial(log_progress, "reading")
            )
            await restore_file(url, backup.path, target)
        except ClientProgramError as error:
            raise RestoreError(
                f"{backup.path.name} was not restored: {error}\n"
                f"The database {url.database} is as it was, and no other one was left."
            ) from error
        return await swap(server, url, target) if replace else target


async def restore_file(
    url: DatabaseURL, file: Path | None, target: str, *, analyze: bool = True
) -> None:
    """Make the database `target` on the server of `url`, out of a dump, or empty.

    Args:
        url: a database of the server.
        file: the dump; None for an empty database.
        target: the new database's name.
        analyze: let the server know how many rows there are now.

    Raises:
        ClientProgramError: the dump can't be restored; no database was left.
        RestoreError: there is one of that name, or no right to make it.
    """
    async with maintenance(url) as server:
        if file is None:
            await _create(server, "", target)
            return
        dump = Archive(file, url, await server.run_sync(server_major), analyze=analyze)
        # Checked before the database is made: no other server has one of that name to be filled.
        await server.run_sync(require_same_server, maintenance_url(url), dump.program)
        if not await _fill(server, dump, target, owners=True):
            await _fill(server, dump, target, owners=False)


async def _fill(server: AsyncConnection, dump: Archive, target: str, *, owners: bool) -> bool:
    """Make the database `target` out of a dump; return False where it may do without owners.

    Raises:
        ClientProgramError: it can't be made; there is no such database then.
        RestoreError: there is one already, or no right to make it.
    """
    script = await asyncio.to_thread(dump.script_of_the_database, target)
    await _create(server, script, target)
    try:
        await asyncio.to_thread(dump.restore_into, target, script, owners=owners)
    except BaseException as error:
        await server.exec_driver_sql(
            f"DROP DATABASE IF EXISTS {quote_identifier(target)} WITH (FORCE)"
        )
        if not (owners and isinstance(error, ClientProgramError)):
            raise
        logger.warning("trying without owners and privileges, as they can't be set: %s", error)
        return False
    return True


async def _create(server: AsyncConnection, script: str, target: str) -> None:
    """Create the database as the dump's script does, in the server's locale if need be."""
    found = CREATE_DATABASE.search(script)
    statement = (
        found[0] if found else f"CREATE DATABASE {quote_identifier(target)} TEMPLATE template0"
    )
    try:
        await server.exec_driver_sql(statement)
    except DBAPIError as error:
        state = get_sqlstate(error)
        if state == SQLState.DUPLICATE_DATABASE:
            raise RestoreError(
                f"there is a database {target} already; name another one (DATABASE=...), or drop it"
            ) from error
        if state not in _NO_SUCH_LOCALE:
            raise RestoreError(
                f"no database could be made: {error.orig} (the right to make databases: "
                "ALTER ROLE ... CREATEDB)"
            ) from error
        logger.warning(
            "the database gets the server's own locale, so that text may sort differently: %s",
            error.orig,
        )
        encoding = _ENCODING.search(statement)
        await server.exec_driver_sql(
            f"CREATE DATABASE {quote_identifier(target)} TEMPLATE template0 {encoding[0] if encoding else ''}"
        )
