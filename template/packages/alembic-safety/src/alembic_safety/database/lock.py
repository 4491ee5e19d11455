"""One runner at a time: a session advisory lock, polled on the migration's own connection.

Polled, never waited for: a session that waits inside `pg_advisory_lock` holds a snapshot, and
CREATE INDEX CONCURRENTLY of the lock's holder waits for that snapshot: a deadlock.
"""

import hashlib
import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from alembic_safety.errors import MigrationError

logger = logging.getLogger(__name__)

VERSION_TABLE = "alembic_version"
POLL_INTERVAL = 0.2
"""Seconds between two tries, give or take a half."""

_TRY = text("SELECT pg_try_advisory_lock(:key)")
_UNLOCK = text("SELECT pg_advisory_unlock(:key)")
# A bigint key stands in pg_locks as two halves: classid and objid, with objsubid 1.
_HOLDER = text(
    """
    SELECT a.pid, coalesce(nullif(a.application_name, ''), 'unnamed') AS application,
           to_char(coalesce(a.xact_start, a.backend_start), 'HH24:MI:SS') AS since
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = :database)
      AND (l.classid::bigint << 32) | l.objid::bigint = :key
    """
)


class MigrationLockError(MigrationError):
    """Another runner holds the lock for longer than this one waits."""


def lock_key(database: str, version_table: str) -> int:
    """Return the key of the advisory lock: a signed 64-bit number."""
    digest = hashlib.sha256(f"alembic:{database}:{version_table}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def lock_holder(
    connection: Connection, *, database: str, version_table: str = VERSION_TABLE
) -> str | None:
    """Return in words who migrates `database` of the connection's server; None if nobody does."""
    parameters = {"key": lock_key(database, version_table), "database": database}
    row = connection.execute(_HOLDER, parameters).first()
    return f"pid {row.pid} ({row.application}, since {row.since})" if row else None


@contextmanager
def migration_lock(connection: Connection, *, version_table: str, wait: int) -> Iterator[None]:
    """Hold the lock of this database's migrations.

    Args:
        connection: what the migrations run on; the lock is its session's.
        version_table: the name of Alembic's table.
        wait: milliseconds to wait for another runner.

    Raises:
        MigrationLockError: another runner still holds it after `wait`.
    """
    caller_s_transaction = connection.in_transaction()

    def finish() -> None:
        # Alembic takes an open transaction for its caller's, and would not commit anything.
        if not caller_s_transaction:
            connection.commit()

    database = str(connection.scalar(text("SELECT current_database()")))
    parameters = {"key": lock_key(database, version_table)}
    deadline = time.monotonic() + wait / 1000
    said = ""
    while not connection.scalar(_TRY, parameters):
        holder = lock_holder(connection, database=database, version_table=version_table)
        holder = holder or "a session"
        finish()
        if time.monotonic() >= deadline:
            raise MigrationLockError(
                f"{holder} is migrating this database, and did not end within {wait / 1000:g} s. "
                "Nothing was changed. Run this again when it has ended; lock_wait is the option."
            )
        if holder != said:
            logger.warning("waiting for %s, which is migrating this database", holder)
            said = holder
        time.sleep(POLL_INTERVAL * random.uniform(0.5, 1.5))  # noqa: S311
    finish()
    try:
        yield
    finally:
        # A session that is gone has given the lock back already, and SQLAlchemy would connect anew.
        if not connection.invalidated:
            with suppress(DBAPIError):
                connection.execute(_UNLOCK, parameters)
                finish()
