"""Scratch copies: temporary databases that plans are rehearsed on."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from alembic_safety.backup.archive import log_progress
from alembic_safety.backup.clients import find_client, run_client
from alembic_safety.backup.dump import lock_wait_hint, lock_wait_option, server_major
from alembic_safety.backup.restore import restore_file
from alembic_safety.backup.swap import RestoreError
from alembic_safety.backup.workspace import delete_abandoned, workspace
from alembic_safety.boundary import describe_error
from alembic_safety.cancellation import call_in_thread
from alembic_safety.database.connection import create_engine
from alembic_safety.database.leftovers import drop_leftovers, owned, temporary_name
from alembic_safety.database.maintenance import drop_database, maintenance
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import (
    ClientProgramError,
    DatabaseUnavailableError,
    EmbeddedPostgresError,
    MigrationError,
)
from alembic_safety.project import Project, Target

logger = logging.getLogger(__name__)

_DROP_TIMEOUT = 10.0
"""Seconds to wait for a server that restarts."""
_PAUSE = 0.5
"""Seconds between two tries."""


class ScratchError(MigrationError):
    """A scratch copy could not be made or dropped. The message says why."""


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """A scratch copy."""

    url: DatabaseURL
    server: str
    """The server, in words."""
    shared: bool
    """Whether it is on the live server, where no statement on shared objects may run."""


@asynccontextmanager
async def scratch(
    project: Project, revisions: Sequence[str], *, with_data: bool, empty: bool
) -> AsyncIterator[Scratch]:
    """Copy the schema of the database, with its revisions; drop the copy at the end.

    The copy is made on the server of the target's `plan_url`. Without that, it is made on the
    database's server, or on the scratch server if that does not permit it.

    Args:
        project: whose database is copied; it is only read.
        revisions: its current revisions.
        with_data: whether to copy the rows, too.
        empty: whether to make an empty database instead.

    Raises:
        ScratchError: no server permits it, or the copy can't be dropped.
        ClientProgramError: the database can't be dumped.
    """
    target = project.target
    live = target.url
    name = temporary_name(live.database, "scratch")
    delete_abandoned()
    async with AsyncExitStack() as stack:
        file = None
        if not empty:
            try:
                folder, descriptor = stack.enter_context(workspace())
            except OSError as error:
                raise ScratchError(
                    f"no temporary folder can be made for the dump (TMPDIR): {error}"
                ) from error
            file = folder / "live.dump"
            wait = project.options.lock_wait
            await _dump(live, file, descriptor, with_data=with_data, lock_wait=wait)

        async def make(server: DatabaseURL) -> None:
            async with maintenance(server) as connection:
                for leftover in await drop_leftovers(connection, live.database):
                    logger.info("dropped %s, which a killed plan left", leftover)
            await stack.enter_async_context(owned(server, name))
            # Without rows, ANALYZE would make the planner scan every table instead of using indexes.
            await restore_file(server, file, name, analyze=with_data)

        server, where = await _make(target, make)
        try:
            if file is not None:
                file.unlink()  # it may have rows
            url = replace(server.with_database(name), driver=live.driver)
            if empty:
                await _create_schema(url)
            elif not with_data:  # a copy with data has the rows of Alembic's table
                await _stamp(url, revisions)
            yield Scratch(url=url, server=where, shared=server is live)
        finally:
            dropping = asyncio.ensure_future(_drop(server, name))
            try:
                await asyncio.shield(dropping)
            except asyncio.CancelledError:
                await dropping
                raise


async def _dump(
    live: DatabaseURL, file: Path, descriptor: int, *, with_data: bool, lock_wait: int
) -> None:
    engine = create_engine(live)
    async with engine.connect() as connection:
        major = await connection.run_sync(server_major)
    await engine.dispose()
    command = [
        find_client("pg_dump", live, server_major=major),
        "--format=custom",
        "--no-password",
        lock_wait_option(lock_wait),
        f"--file={file}",
        f"--dbname={live.without_password}",
        # A copy that subscribes would take rows away from the live database.
        "--no-publications",
        "--no-subscriptions",
        *([] if with_data else ["--schema-only"]),
    ]
    run = partial(
        run_client, pass_fds=[descriptor], progress=partial(log_progress, "dumping for the copy")
    )
    try:
        await call_in_thread(run, command, live)
    except ClientProgramError as error:
        raise ClientProgramError(f"{error}{lock_wait_hint(error)}") from error


async def _make(
    target: Target, make: Callable[[DatabaseURL], Awaitable[None]]
) -> tuple[DatabaseURL, str]:
    """Make the database on the first server that permits it; return that, and its name in words."""
    planned = target.plan_url
    server = planned or target.url
    try:
        await make(server)
    except (DatabaseUnavailableError, RestoreError) as error:
        if planned is not None:
            raise ScratchError(f"PLAN_DATABASE_URL: {error}") from error
        refused: Exception = error
    else:
        return server, "PLAN_DATABASE_URL's server" if planned else "the same server"
    message = (
        f"{refused}\nRevisions are rehearsed on a copy of the schema. To make it on another server, "
        "set PLAN_DATABASE_URL (Target.plan_url in migrations/env.py)."
    )
    if target.scratch_server is None:
        raise ScratchError(message) from refused
    try:
        own = await call_in_thread(target.scratch_server)
    except EmbeddedPostgresError as error:
        raise ScratchError(message) from error
    await make(own)
    return own, "the project's own server"


async def _create_schema(url: DatabaseURL) -> None:
    """Create the first schema of `search_path`, if there is none of it to create tables in."""
    engine = create_engine(url)
    async with engine.begin() as connection:
        if await connection.scalar(text("SELECT current_schema() IS NULL")):
            path = str(await connection.scalar(text("SHOW search_path")))
            await connection.exec_driver_sql(f"CREATE SCHEMA {path.partition(',')[0]}")
    await engine.dispose()


async def _stamp(url: DatabaseURL, revisions: Sequence[str]) -> None:
    engine = create_engine(url)
    async with engine.begin() as connection:
        for revision in revisions:
            await connection.execute(
                text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": revision}
            )
    await engine.dispose()


async def _drop(server: DatabaseURL, name: str) -> None:
    until = time.monotonic() + _DROP_TIMEOUT
    while True:
        try:
            async with maintenance(server) as connection:
                await drop_database(connection, name)
        except (DBAPIError, DatabaseUnavailableError) as error:
            if time.monotonic() > until:
                why = describe_error(error) if isinstance(error, DBAPIError) else error
                raise ScratchError(
                    f"the copy could not be dropped ({why}). When the server is back, "
                    "run `alembic-safety cleanup`"
                ) from error
            await asyncio.sleep(_PAUSE)
        else:
            return
