"""asyncpg connections and engines for migrations and commands."""

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
"""Seconds to wait for a connection to close, including the cancellation of a running query."""
CONNECT_TIMEOUT = 10.0
"""Seconds; `connect_timeout` in the URL takes precedence."""

UNNAMED_STATEMENTS = {
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": str,
}
"""Arguments of SQLAlchemy's asyncpg dialect that prepare each statement without a name.

https://docs.sqlalchemy.org/en/latest/dialects/postgresql.html#prepared-statement-name-with-pgbouncer
"""


class Connection(asyncpg.Connection):
    """Connection that closes within `CLOSE_TIMEOUT`, even if the server hangs."""

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's
        """Close the connection; abort it after the timeout."""
        limit = CLOSE_TIMEOUT if timeout is None else min(timeout, CLOSE_TIMEOUT)
        with suppress(TimeoutError):
            await super().close(timeout=limit)


def make_connector(
    url: DatabaseURL, *, server_settings: Mapping[str, str], **arguments: Any
) -> Callable[..., Awaitable["asyncpg.Connection[asyncpg.Record]"]]:
    """Return a function that connects to `url`, for SQLAlchemy's `async_creator_fn`.

    The function raises `DatabaseUnavailableError` for every failure to connect.

    Args:
        url: the database.
        server_settings: run-time parameters of the session; a rollback does not undo them.
        arguments: further arguments of `asyncpg.connect`.
    """
    merged: dict[str, Any] = {"timeout": CONNECT_TIMEOUT, **url.asyncpg_arguments()}
    merged |= {"connection_class": Connection, **arguments}

    async def connect(**keywords: Any) -> "asyncpg.Connection[asyncpg.Record]":
        try:
            return await asyncpg.connect(
                **merged, server_settings=dict(server_settings), **keywords
            )
        except (
            OSError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        ) as error:
            reason = str(error) or type(error).__name__
            file = getattr(error, "filename", None)
            if file and str(file) not in reason:
                reason += f": {file}"
            raise DatabaseUnavailableError(f"can't connect to {url}: {reason}") from error

    return connect


def create_engine(
    url: DatabaseURL, *, server_settings: Mapping[str, str] | None = None, **options: Any
) -> AsyncEngine:
    """Return an engine without a pool. It connects on first use.

    Statements are prepared without a name, because a pooler may route a named one to a connection
    that does not have it, and PostgreSQL rejects one that was prepared before its table changed.

    Args:
        url: the database.
        server_settings: run-time parameters of each session.
        options: further arguments of `sqlalchemy.ext.asyncio.create_async_engine`.
    """
    connect = make_connector(url, server_settings=server_settings or {}, statement_cache_size=0)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        # async_creator would drop the arguments of the dialect.
        connect_args={"async_creator_fn": connect, **UNNAMED_STATEMENTS},
        poolclass=NullPool,
        **options,
    )
    telemetry.trace_statements(engine.sync_engine, database=url.database)
    return engine
