"""The engine, and what makes sessions. `core.dependencies` gives a request its session."""

import os
import sys
from collections.abc import Mapping
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolProxiedConnection

from core import tracing
from core.config import SettingsError, get_settings
from core.database_url import DatabaseURL
from core.embedded_postgres import EmbeddedPostgresError
from core.postgres_client import ClientProgramError, find_client, libpq_environment
from core.project import load_project


class DatabaseUnavailableError(Exception):
    """No connection could be made. The message says why, without the password."""


def create_engine(
    url: DatabaseURL,
    *,
    server_settings: Mapping[str, str] | None = None,
    connect_timeout: float = 10.0,
    named_statements: bool = True,
    **options: Any,
) -> AsyncEngine:
    """Return an engine for `url`; nothing connects before its first use.

    Args:
        url: where to connect to.
        server_settings: run-time parameters of each connection; a rollback does not undo them.
        connect_timeout: seconds; `connect_timeout` in the URL goes before it.
        named_statements: whether statements are prepared under a name and kept. Through a pooler
            in transaction mode they must not be: the next transaction is another server's.
        options: further arguments of `sqlalchemy.ext.asyncio.create_async_engine`.

    Connecting raises `DatabaseUnavailableError`, whatever the cause.
    """
    arguments: dict[str, Any] = {"timeout": connect_timeout, **url.asyncpg_arguments()}
    settings = dict(server_settings or {})
    if "application_name" not in dict(url.query):
        settings.setdefault("application_name", load_project().name)
    dialect_arguments: dict[str, Any] = {}
    if not named_statements:
        # asyncpg then sends an unnamed statement along with each execution.
        arguments["statement_cache_size"] = 0
        dialect_arguments["prepared_statement_cache_size"] = 0
        dialect_arguments["prepared_statement_name_func"] = str

    async def connect(**keywords: Any) -> "asyncpg.Connection[asyncpg.Record]":
        # asyncpg reads the URL itself: it knows sslmode, sockets and several hosts as libpq does.
        try:
            return await asyncpg.connect(**arguments, server_settings=settings, **keywords)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            file = f": {error.filename}" if isinstance(error, FileNotFoundError) else ""
            reason = f"{error or type(error).__name__}{file if file not in str(error) else ''}"
            raise DatabaseUnavailableError(f"can't connect to {url}: {reason}") from error

    engine = create_async_engine(
        "postgresql+asyncpg://",
        # Not async_creator: SQLAlchemy gives no arguments to the dialect beside it.
        connect_args={"async_creator_fn": connect, **dialect_arguments},
        **options,
    )
    tracing.trace_statements(engine.sync_engine, database=url.database)
    return engine


class WatchedPool(AsyncAdaptedQueuePool):
    """A pool that knows how many wait for one of its connections, and have none yet."""

    waiting = 0

    def connect(self) -> PoolProxiedConnection:
        """Return a connection; wait for one where all are in use."""
        self.waiting += 1
        try:
            return super().connect()
        finally:
            self.waiting -= 1


def create_sessionmaker(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Return what makes the sessions of requests."""
    return async_sessionmaker(engine, expire_on_commit=False)


def shell() -> None:
    """Become psql on the configured database (`python -m core.database`)."""
    try:
        url = get_settings().migration_url
        psql = find_client("psql", url)
    except (ClientProgramError, EmbeddedPostgresError, SettingsError) as error:
        sys.exit(str(error))
    os.execvpe(psql, [psql, url.without_password], libpq_environment(url))  # noqa: S606


if __name__ == "__main__":
    shell()
