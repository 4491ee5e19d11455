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
PAUSE = 0.1
"""Seconds between two attempts, at most."""


async def run_transaction(
    sessions: async_sessionmaker[AsyncSession],
    work: Callable[[AsyncSession], Awaitable[T]],
    *,
    attempts: int = 3,
) -> T:
    """Run `work` in a transaction and commit it; run it again if it collided with another one.

    Each attempt has a new session, so `work` must have no effect outside the database.

    Raises:
        DBAPIError: the last attempt collided too, or another error occurred.
    """
    while True:
        attempts -= 1
        try:
            async with sessions.begin() as session:
                return await work(session)
        except DBAPIError as error:
            if attempts < 1 or getattr(error.orig, "sqlstate", None) not in RETRIED:
                raise
        await asyncio.sleep(random.uniform(0, PAUSE))  # noqa: S311
