"""Lock modes of tables, and the locks that a session holds or asks for.

https://www.postgresql.org/docs/current/explicit-locking.html
"""

import asyncio
from contextlib import suppress
from enum import IntEnum
from typing import NamedTuple, Self

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.migrations.plan.snapshot import FIRST_USER_OID

_POLL = 0.002
"""Seconds between two looks at the locks of a session."""
_HOLD_TIMEOUT = 2000
"""Milliseconds to wait for the tables; the revision itself may hold a lock on one."""

_HELD = text(
    """
    SELECT l.relation::bigint AS oid, l.mode, coalesce(i.indrelid, l.relation)::bigint AS owner
    FROM pg_locks l LEFT JOIN pg_index i ON i.indexrelid = l.relation
    WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.relation >= :first
    """
)
_REQUESTED = text(
    """
    SELECT l.relation::bigint AS oid, l.mode, l.granted FROM pg_locks l
    WHERE l.pid = :pid AND l.locktype = 'relation' AND l.relation >= :first
    """
)


class LockMode(IntEnum):
    """Lock modes of tables, from the weakest to the strongest."""

    ACCESS_SHARE = 1
    ROW_SHARE = 2
    ROW_EXCLUSIVE = 3
    SHARE_UPDATE_EXCLUSIVE = 4
    SHARE = 5
    SHARE_ROW_EXCLUSIVE = 6
    EXCLUSIVE = 7
    ACCESS_EXCLUSIVE = 8

    @classmethod
    def parse(cls, mode: str) -> Self:
        """Return the mode that `pg_locks` writes as `AccessShareLock`."""
        words = mode.removesuffix("Lock")
        name = "".join(f"_{letter}" if letter.isupper() else letter for letter in words)
        return cls[name.strip("_").upper()]

    def __str__(self) -> str:
        return self.name.replace("_", " ")


class HeldLock(NamedTuple):
    """A lock that this session's transaction holds."""

    oid: int
    """Of the table, view or index."""
    owner: int
    """Oid of the index's table; otherwise the same as `oid`."""
    mode: LockMode


def read_held_locks(connection: Connection) -> list[HeldLock]:
    """Return the locks of the transaction on relations."""
    rows = connection.execute(_HELD, {"first": FIRST_USER_OID})
    return [HeldLock(row.oid, row.owner, LockMode.parse(row.mode)) for row in rows]


def read_locked_oids(connection: Connection) -> set[int]:
    """Return the oids of the relations that the transaction has locked, and of indexes' tables."""
    return {oid for lock in read_held_locks(connection) for oid in (lock.oid, lock.owner)}


class LockWatcher:
    """Watches the locks of a statement that runs outside a transaction.

    The statement's locks are gone when it has ended. A second session holds a lock on every table
    that conflicts with all but plain queries, reads what the statement waits for, and lets go.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._task: asyncio.Task[None] | None = None
        self._seen: dict[int, LockMode] = {}
        self._failure: DBAPIError | None = None

    async def start(self, pid: int | None, tables: list[str]) -> None:
        """Lock the tables, and watch the session `pid` until `stop`.

        Raises:
            DBAPIError: the tables can't be locked, so the statement's locks would not be seen.
        """
        await self.stop()
        self._seen, self._failure = {}, None
        locked = asyncio.Event()
        self._task = asyncio.create_task(self._watch(pid, tables, locked))
        await locked.wait()
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> dict[int, LockMode]:
        """Release the tables; return the strongest lock that was seen, by the relation's oid."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError, DBAPIError):
                await self._task
            self._task = None
        return self._seen

    async def _watch(self, pid: int | None, tables: list[str], locked: asyncio.Event) -> None:
        async with self._engine.connect() as holder, self._engine.connect() as reader:
            await reader.execution_options(isolation_level="AUTOCOMMIT")
            try:
                if tables:
                    names = ", ".join(tables)
                    await holder.exec_driver_sql(f"SET LOCAL lock_timeout = {_HOLD_TIMEOUT}")
                    await holder.exec_driver_sql(f"LOCK TABLE {names} IN EXCLUSIVE MODE")
            except DBAPIError as error:
                self._failure = error
                return
            finally:
                locked.set()
            while True:
                if await self._is_waiting(reader, pid):
                    await holder.rollback()
                await asyncio.sleep(_POLL)

    async def _is_waiting(self, connection: AsyncConnection, pid: int | None) -> bool:
        waiting = False
        rows = await connection.execute(_REQUESTED, {"pid": pid, "first": FIRST_USER_OID})
        for row in rows:
            mode = LockMode.parse(row.mode)
            self._seen[row.oid] = max(mode, self._seen.get(row.oid, mode))
            waiting = waiting or not row.granted
        return waiting
