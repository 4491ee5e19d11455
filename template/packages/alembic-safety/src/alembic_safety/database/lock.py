"""Migration lock: a session-level advisory lock that lets one runner migrate at a time.

The lock is polled. A blocking `pg_advisory_lock` holds a snapshot while it waits, and CREATE INDEX
CONCURRENTLY of the lock holder waits for that snapshot, so the two sessions would deadlock.
https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
"""

import hashlib
import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from alembic_safety.cancellation import pause
from alembic_safety.errors import MigrationError
from alembic_safety.sql import ADVISORY_KEY

logger = logging.getLogger(__name__)

VERSION_TABLE = "alembic_version"
POLL_INTERVAL = 0.2
"""Mean seconds between two attempts; each pause is between half and one and a half times this."""

_TRY = text("SELECT pg_try_advisory_lock(:key)")
_UNLOCK = text("SELECT pg_advisory_unlock(:key)")
_HOLDER = text(
    f"""
    SELECT a.pid, coalesce(nullif(a.application_name, ''), 'unnamed') AS application,
           to_char(coalesce(a.xact_start, a.backend_start), 'HH24:MI:SS') AS since,
           a.usename AS role
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = :database)
      AND {ADVISORY_KEY} = :key
    """  # noqa: S608
)


class MigrationLockError(MigrationError):
    """Another runner held the lock for longer than `lock_wait`."""


def lock_key(database: str, version_table: str) -> int:
    """Return the key of the advisory lock: a signed 64-bit number."""
    digest = hashlib.sha256(f"alembic:{database}:{version_table}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def lock_holder(
    connection: Connection, *, database: str, version_table: str = VERSION_TABLE
) -> str | None:
    """Describe the session that is migrating `database`; return None if there is none.

    Args:
        connection: a connection to any database of the same server.
        database: name of the database.
        version_table: name of Alembic's version table.
    """
    parameters = {"key": lock_key(database, version_table), "database": database}
    row = connection.execute(_HOLDER, parameters).first()
    if row is None:
        return None
    # Without pg_read_all_stats, the time of another role's session can't be read.
    since = f", since {row.since}" if row.since else f", of the role {row.role}"
    return f"pid {row.pid} ({row.application}{since})"


@contextmanager
def migration_lock(connection: Connection, *, version_table: str, wait: int) -> Iterator[None]:
    """Hold the migration lock of the connection's database.

    Args:
        connection: the connection of the migrations; the lock belongs to its session.
        version_table: name of Alembic's version table.
        wait: milliseconds to wait for another runner.

    Raises:
        MigrationLockError: another runner still holds the lock after `wait`.
    """
    in_caller_transaction = connection.in_transaction()

    def end_transaction() -> None:
        # Alembic treats an open transaction as its caller's, and would commit nothing.
        if not in_caller_transaction:
            connection.commit()

    database = str(connection.scalar(text("SELECT current_database()")))
    parameters = {"key": lock_key(database, version_table)}
    deadline = time.monotonic() + wait / 1000
    logged = ""
    while not connection.scalar(_TRY, parameters):
        holder = lock_holder(connection, database=database, version_table=version_table)
        holder = holder or "a session"
        end_transaction()
        if time.monotonic() >= deadline:
            raise MigrationLockError(
                f"{holder} is migrating this database, and did not end within {wait / 1000:g} s. "
                "Nothing was changed. Run this command again when that session has ended, or "
                "wait for longer with the option lock_wait."
            )
        if holder != logged:
            logger.warning("waiting for %s, which is migrating this database", holder)
            logged = holder
        pause(POLL_INTERVAL * random.uniform(0.5, 1.5))  # noqa: S311
    end_transaction()
    try:
        yield
    finally:
        # A lost session has released its lock, and SQLAlchemy would reconnect to unlock it.
        if not connection.invalidated:
            with suppress(DBAPIError):
                connection.execute(_UNLOCK, parameters)
                end_transaction()
