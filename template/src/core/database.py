"""Engine and session factories."""

import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine, ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import ORMExecuteState, Session
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection

from alembic_safety.backup.clients import find_client, libpq_environment
from alembic_safety.database.connection import UNNAMED_STATEMENTS, make_connector
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import (
    ClientProgramError,
    DatabaseUnavailableError,
    EmbeddedPostgresError,
)
from core import tracing
from core.config import SettingsError, get_settings
from core.project import load_project


class DatabaseTimeoutError(DatabaseUnavailableError):
    """A statement timed out: it is too slow, or the server does not respond."""


class ReadOnlyError(Exception):
    """A write was attempted in a read session, which is a bug."""


FRESH = 1.0
"""Seconds after its last use during which an open connection is not pinged."""


class Pool(AsyncAdaptedQueuePool):
    """Pool that counts who waits for a connection, and raises if the check of one hangs."""

    __module__ = AsyncAdaptedQueuePool.__module__  # names its log lines, which are SQLAlchemy's
    waiting = 0

    def connect(self) -> PoolProxiedConnection:
        """Return a connection that was checked.

        Raises:
            DatabaseTimeoutError: the check had no answer within the engine's command timeout.
        """
        full = self.checkedout() >= self.size() + self._max_overflow
        self.waiting += full
        try:
            return super().connect()
        except TimeoutError as error:  # of asyncpg; SQLAlchemy's of a busy pool is another one
            raise DatabaseTimeoutError("an open connection does not answer") from error
        finally:
            self.waiting -= full


def create_engine(
    url: DatabaseURL,
    *,
    server_settings: Mapping[str, str] | None = None,
    command_timeout: float | None = None,
    named_statements: bool = True,
    **options: Any,
) -> AsyncEngine:
    """Return an engine for `url`; nothing connects before its first use.

    Args:
        url: where to connect to.
        server_settings: run-time parameters of each connection; a rollback does not undo them.
        command_timeout: seconds that a statement, or a commit, may take; then the server is told
            to cancel it, its connection is closed, and `DatabaseTimeoutError` raised.
        named_statements: whether statements are prepared under a name and kept. Through a pooler
            in transaction mode they must not be: the next transaction is another server's.
        options: further arguments of `sqlalchemy.ext.asyncio.create_async_engine`.

    Connecting raises `DatabaseUnavailableError`, whatever the cause.
    """
    settings = dict(server_settings or {})
    if "application_name" not in dict(url.query):
        settings.setdefault("application_name", load_project().name)
    arguments: dict[str, Any] = {"command_timeout": command_timeout}
    dialect_arguments: dict[str, Any] = {}
    if not named_statements:
        arguments["statement_cache_size"] = 0
        dialect_arguments = UNNAMED_STATEMENTS
    connect = make_connector(url, server_settings=settings, **arguments)
    options.setdefault("poolclass", Pool)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        # Not async_creator: SQLAlchemy ignores connect_args if that is set.
        connect_args={"async_creator_fn": connect, **dialect_arguments},
        **options,
    )
    _check_connections(engine.sync_engine)
    tracing.trace_statements(engine.sync_engine, database=url.database)

    @event.listens_for(engine.sync_engine, "handle_error")
    def on_error(context: ExceptionContext) -> None:
        if isinstance(context.original_exception, TimeoutError):
            # SQLAlchemy takes asyncpg's for nobody's, and would roll back on this connection: that
            # waits as long again where the server hangs. Closing it cancels the statement.
            context.is_disconnect = True
            context.invalidate_pool_on_disconnect = False  # the others may be well
            raise DatabaseTimeoutError(f"a statement had no answer within {command_timeout} s")

    return engine


def _check_connections(engine: Engine) -> None:
    """Replace connections at checkout that are closed or do not respond.

    SQLAlchemy's `pool_pre_ping` asks the server before each use, in three round trips. asyncpg knows
    that a server closed a connection, so only those are asked that were idle.
    """

    @event.listens_for(engine, "checkin")
    def note_time(_connection: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
        entry.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def check(connection: Any, entry: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
        used = entry.info.get("used")
        if used is None:
            return  # it was opened just now
        if connection.driver_connection.is_closed():
            raise DisconnectionError("the server closed the connection")
        if time.monotonic() - used > FRESH:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise DisconnectionError("the connection does not answer") from error


def create_sessionmaker(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Return the session factory for requests."""
    return async_sessionmaker(engine, expire_on_commit=False)


class ReadSession(Session):
    """Synchronous part of an `AsyncReadSession`."""

    def flush(self, objects: Any = None) -> None:
        """Raise `ReadOnlyError` if there is anything to write."""
        self.refuse_to_write()
        super().flush(objects)

    def refuse_to_write(self) -> None:
        """Raise `ReadOnlyError` if an object was added, changed or deleted."""
        if self.new or self.dirty or self.deleted:
            raise ReadOnlyError("a session for reading was given rows to write; use SessionDep")


class AsyncReadSession(AsyncSession):
    """A session that raises an error instead of writing.

    It refuses INSERT, UPDATE and DELETE, too; but what is in a `text()`, or in a function that is
    called, it does not know, and that is committed at once.
    """

    sync_session_class = ReadSession
    sync_session: ReadSession

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the connection back.

        Raises:
            ReadOnlyError: something would be lost.
        """
        try:
            if kind is None:
                self.sync_session.refuse_to_write()
        finally:
            # SQLAlchemy closes in a separate task to survive cancellation. Closing a read session
            # awaits nothing, so that task is not needed.
            await self.close()


@event.listens_for(ReadSession, "do_orm_execute")
def _refuse_to_write(state: ORMExecuteState) -> None:
    if state.is_insert or state.is_update or state.is_delete:
        raise ReadOnlyError(
            "a session for reading was given a statement that writes; use SessionDep"
        )


def create_read_sessionmaker(
    bind: AsyncEngine | AsyncConnection,
) -> async_sessionmaker[AsyncReadSession]:
    """Return the session factory for requests that only read.

    On an engine, each statement stands by itself: no transaction is begun and none is ended, which
    saves two round trips of three. Two statements may see different states of the database.
    """
    if isinstance(bind, AsyncEngine):
        bind = bind.execution_options(isolation_level="AUTOCOMMIT")
    return async_sessionmaker(
        bind,
        class_=AsyncReadSession,
        join_transaction_mode="create_savepoint",
        autoflush=False,
        expire_on_commit=False,
    )


def shell() -> None:
    """Replace this process with psql on the configured database (`python -m core.database`)."""
    try:
        url = get_settings().migration_url
        psql = find_client("psql", url)
    except (ClientProgramError, EmbeddedPostgresError, SettingsError) as error:
        sys.exit(str(error))
    os.execvpe(psql, [psql, url.without_password], libpq_environment(url))  # noqa: S606


if __name__ == "__main__":
    shell()
