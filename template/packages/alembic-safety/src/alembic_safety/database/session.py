"""Sessions that revisions run in, on the driver of the URL.

Revisions are synchronous. On asyncpg they run in SQLAlchemy's greenlet, on psycopg and psycopg2 in a
thread. Either way the event loop keeps running, for connections that watch the session.
"""

import asyncio
import importlib
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy import create_engine as create_sync_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only

from alembic_safety import telemetry
from alembic_safety.cancellation import call_in_thread, thread_loop
from alembic_safety.database.connection import CONNECT_TIMEOUT, create_engine
from alembic_safety.database.pooler import connect_directly, refuse_transaction_pooler
from alembic_safety.database.url import DatabaseURL, Driver
from alembic_safety.errors import DatabaseUnavailableError, MigrationError

T = TypeVar("T")

_PATIENCE = 1.0
"""Seconds to wait for the server before the connection is closed instead."""
_CANCEL = text("SELECT pg_cancel_backend(:pid)")


class Session(ABC):
    """A session of the database, for synchronous functions."""

    engine: AsyncEngine
    """Engine of the same database on asyncpg, for other sessions."""

    @abstractmethod
    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return `function(connection, *arguments)`."""


@asynccontextmanager
async def open_session(
    url: DatabaseURL, *, application: str = "", refuse_poolers: bool = False
) -> AsyncIterator[Session]:
    """Open a session on the driver of `url`.

    Args:
        url: the database.
        application: `application_name` of the session.
        refuse_poolers: whether to refuse a pooler in transaction mode.

    Raises:
        DatabaseUnavailableError: the connection failed.
        MigrationError: the driver is not installed.
        PoolerError: the URL leads through such a pooler, or through one of unknown mode.
    """
    settings = {"application_name": application} if application else {}
    if url.driver is Driver.ASYNCPG and refuse_poolers:
        async with connect_directly(url, server_settings=settings) as (engine, connection):
            yield _GreenletSession(engine, connection)
        return
    if refuse_poolers:
        await refuse_transaction_pooler(url)
    engine = create_engine(url, server_settings=settings)
    if url.driver is Driver.ASYNCPG:
        async with engine.connect() as connection:
            yield _GreenletSession(engine, connection)
        return
    session = _ThreadSession(engine, _create_sync_engine(url, application))
    try:
        await session.connect(url)
        yield session
    finally:
        await session.close()


def is_in_block(connection: Connection) -> bool:
    """Return whether the server session of a connection is in a transaction block."""
    driver: Any = connection.connection.driver_connection
    if isinstance(driver, asyncpg.Connection):
        return bool(driver.is_in_transaction())
    return bool(driver.info.transaction_status)  # 0 is PQTRANS_IDLE


def await_in_session(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine, in a function that runs in a session."""
    if (loop := thread_loop()) is not None:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()
    return await_only(coroutine)


class _GreenletSession(Session):
    def __init__(self, engine: AsyncEngine, connection: AsyncConnection) -> None:
        self.engine = engine
        self._connection = connection

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        return await self._connection.run_sync(function, *arguments)


class _ThreadSession(Session):
    def __init__(self, engine: AsyncEngine, sync_engine: Engine) -> None:
        self.engine = engine
        self._sync_engine = sync_engine
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="revisions")
        self._connection: Connection | None = None
        self._driver: Any = None
        self._pid: int | None = None

    async def connect(self, url: DatabaseURL) -> None:
        try:
            self._connection = await self._call(self._sync_engine.connect)
        except DBAPIError as error:
            reason = " ".join(str(error.orig).split())
            raise DatabaseUnavailableError(f"can't connect to {url}: {reason}") from error
        self._driver = self._connection.connection.driver_connection
        self._pid = self._driver.info.backend_pid

    async def close(self) -> None:
        if self._connection is not None:
            await self._call(self._connection.close)
        self._executor.shutdown()

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        return await self._call(function, self._connection, *arguments)

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        return await call_in_thread(
            function, *arguments, executor=self._executor, cancel=self._cancel_statement
        )

    async def _cancel_statement(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE), self.engine.connect() as other:
                await other.execute(_CANCEL, {"pid": self._pid})
        except (DBAPIError, DatabaseUnavailableError, TimeoutError):
            self._close_socket()

    def _close_socket(self) -> None:
        """Close the connection to a server that does not respond, so that the driver fails."""
        with suppress(Exception), socket.socket(fileno=os.dup(self._driver.fileno())) as own:
            own.shutdown(socket.SHUT_RDWR)


def _create_sync_engine(url: DatabaseURL, application: str) -> Engine:
    try:
        importlib.import_module(url.driver)
    except ImportError:
        raise MigrationError(
            f"the URL names the driver {url.driver}, which is not installed; install it, or name "
            "another one: postgresql+asyncpg://"
        ) from None
    arguments: dict[str, Any] = {"application_name": application} if application else {}
    if "connect_timeout" not in dict(url.query):
        arguments["connect_timeout"] = round(CONNECT_TIMEOUT)
    if url.driver is Driver.PSYCOPG:
        arguments["prepare_threshold"] = None  # a prepared statement fails after its table changed
    engine = create_sync_engine(
        f"postgresql+{url.driver}://", connect_args=arguments, poolclass=NullPool
    )

    def use_libpq_url(_dialect: Any, _record: Any, arguments: list[str], _keywords: Any) -> None:
        arguments[:] = [url.libpq]

    event.listen(engine, "do_connect", use_libpq_url)
    telemetry.trace_statements(engine, database=url.database)
    return engine
