"""Transactions that are run again after a deadlock or a serialization failure."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

T = TypeVar("T")

# https://www.postgresql.org/docs/current/mvcc-serialization-failure-handling.html
RETRIED = {"40001", "40P01"}
PAUSE = 0.05
"""Seconds before the second attempt, at most; each further pause may be twice as long."""


async def run_transaction(
    sessions: async_sessionmaker[AsyncSession],
    work: Callable[[AsyncSession], Awaitable[T]],
    *,
    attempts: int = 3,
) -> T:
    """Run `work` in a transaction and commit it; run it again if it collided with another one.

    Args:
        sessions: the session factory, such as `SessionsDep`.
        work: called with a new session in each attempt, so it has no effect outside the database.
        attempts: number of attempts.

    Raises:
        DBAPIError: the last attempt collided too, or another error occurred.
    """
    for attempt in range(1, attempts):
        try:
            async with sessions.begin() as session:
                return await work(session)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in RETRIED:
                raise
        await asyncio.sleep(random.uniform(0, PAUSE * 2 ** (attempt - 1)))  # noqa: S311
    async with sessions.begin() as session:
        return await work(session)
