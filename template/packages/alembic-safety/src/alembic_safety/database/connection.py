"""Connections through asyncpg, by which migrations and their commands reach PostgreSQL."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from alembic_safety import telemetry
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import DatabaseUnavailableError

CLOSE_TIMEOUT = 0.5
"""Seconds that closing a connection may take, and cancelling what runs on it."""
CONNECT_TIMEOUT = 10.0
"""Seconds; `connect_timeout` in the URL goes first."""

# asyncpg then sends an unnamed statement along with each execution.
UNNAMED_STATEMENTS = {
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": str,
}


class Connection(asyncpg.Connection):
    """A connection that is closed in time, also where the server hangs."""

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's
        """Close the connection; drop one that can't be closed in order."""
        limit = CLOSE_TIMEOUT if timeout is None else min(timeout, CLOSE_TIMEOUT)
        with suppress(TimeoutError):
            await super().close(timeout=limit)


def make_connector(
    url: DatabaseURL, *, server_settings: Mapping[str, str], **arguments: Any
) -> Callable[..., Awaitable["asyncpg.Connection[asyncpg.Record]"]]:
    """Return a function that connects to `url`, for SQLAlchemy's `async_creator_fn`.

    Args:
        url: where to connect to.
        server_settings: run-time parameters of the session; a rollback does not undo them.
        arguments: further arguments of `asyncpg.connect`.

    The function raises `DatabaseUnavailableError`, whatever the cause.
    """
    merged: dict[str, Any] = {"timeout": CONNECT_TIMEOUT, **url.asyncpg_arguments()}
    merged |= {"connection_class": Connection, **arguments}

    async def connect(**keywords: Any) -> "asyncpg.Connection[asyncpg.Record]":
        try:
            return await asyncpg.connect(
                **merged, server_settings=dict(server_settings), **keywords
            )
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            file = f": {error.filename}" if isinstance(error, FileNotFoundError) else ""
            reason = f"{error or type(error).__name__}{file if file not in str(error) else ''}"
            raise DatabaseUnavailableError(f"can't connect to {url}: {reason}") from error

    return connect


def create_engine(
    url: DatabaseURL, *, server_settings: Mapping[str, str] | None = None, **options: Any
) -> AsyncEngine:
    """Return an engine without a pool; nothing connects before its first use.

    Statements are prepared without a name: a pooler may not know it, and PostgreSQL refuses a
    statement that was prepared before its table changed.

    Args:
        url: where to connect to.
        server_settings: run-time parameters of each session.
        options: further arguments of `sqlalchemy.ext.asyncio.create_async_engine`.
    """
    connect = make_connector(url, server_settings=server_settings or {}, statement_cache_size=0)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        # Not async_creator: with it, SQLAlchemy drops the dialect's arguments.
        connect_args={"async_creator_fn": connect, **UNNAMED_STATEMENTS},
        poolclass=NullPool,
        **options,
    )
    telemetry.trace_statements(engine.sync_engine, database=url.database)
    return engine
