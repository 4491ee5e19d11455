"""Backfills of large tables in batches, each committed by itself.

A single UPDATE would hold the lock of every row until it ends, and keep VACUUM from removing dead
rows meanwhile.
"""

import hashlib
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from alembic import op
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from alembic_safety import alembic_internals, cancellation
from alembic_safety.errors import MigrationError
from alembic_safety.sql import quote_identifier

logger = logging.getLogger(__name__)

TABLE = "alembic_backfill"
"""Table with the progress of unfinished backfills; dropped when the last one finishes."""
RUNNING = "running_revision"
"""Option of Alembic's context that holds the running revision."""
PROGRESS_INTERVAL = 5.0
"""Seconds between two progress messages of a backfill."""

_COLUMN = text(
    """
    SELECT format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS required,
           EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisvalid
                   AND i.indpred IS NULL AND i.indkey[0] = a.attnum) AS indexed,
           c.reltuples AS estimate
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE a.attrelid = to_regclass(:table) AND a.attname = :key AND NOT a.attisdropped
    """
)


class BackfillError(MigrationError):
    """A backfill can't start. The message has the cause."""


def in_batches(
    statement: str, *, table: str, key: str = "id", size: int = 1000, pause: float = 0.0
) -> int:
    """Run `statement` over all rows of `table`, in batches; return the number of changed rows.

    Call this function in the `upgrade()` of a separate revision, because it commits the statements
    before it. After an interruption, the next run continues after the last committed batch. A lock
    timeout is retried, as in every revision. With `--sql`, print one statement for all rows.

    Args:
        statement: SQL with the inclusive bounds `:first` and `:last`:
            `UPDATE users SET name_key = lower(name) WHERE id BETWEEN :first AND :last`.
        table: the table to walk, quoted and qualified as in SQL.
        key: column of the bounds: NOT NULL, and the first column of an index.
        size: number of rows in a batch.
        pause: seconds to sleep between batches, for replicas and VACUUM to keep up.

    Raises:
        BackfillError: the statement has no bounds, the column does not exist, is nullable or is
            not indexed, or the caller of the connection is in a transaction.
    """
    if not {":first", ":last"} <= set(re.findall(r":\w+", statement)):
        raise BackfillError(
            "the statement of in_batches() needs the bounds :first and :last; add WHERE <key> "
            "BETWEEN :first AND :last"
        )
    context = op.get_context()
    if alembic_internals.is_in_caller_transaction(context):
        raise BackfillError(
            "in_batches() commits its batches, but this connection is in a transaction of its "
            "caller; run the migration on a connection without a transaction"
        )
    quoted = quote_identifier(key)
    if context.as_sql:
        bound = f"(SELECT {quoted} FROM {table} ORDER BY 1 {{}} LIMIT 1)"  # noqa: S608
        whole = re.sub(r":first\b", bound.format("ASC"), statement)
        op.execute("-- In one statement: batches need a connection to the database.")
        op.execute(re.sub(r":last\b", bound.format("DESC"), whole))
        return 0
    with context.autocommit_block():
        job = f"{context.opts.get(RUNNING, '')}\n{table}\n{key}\n{statement}"
        return _Backfill(op.get_bind(), statement, table, key, job).run(size, pause)


def discard_progress(connection: Connection) -> None:
    """Discard the progress of unfinished backfills; a downgrade may change their rows."""
    connection.exec_driver_sql(f"DROP TABLE IF EXISTS {TABLE}")


class _Backfill:
    def __init__(
        self, connection: Connection, statement: str, table: str, key: str, job: str
    ) -> None:
        column = connection.execute(_COLUMN, {"table": table, "key": key}).first()
        if column is None:
            raise BackfillError(
                f"there is no column {key} of a table {table}; fix the arguments of in_batches()"
            )
        if not (column.required and column.indexed):
            raise BackfillError(
                f"{table}.{key} can't be walked; it has to be NOT NULL, and the first column of an "
                "index"
            )
        self.connection = connection
        self.statement = text(statement)
        self.table = table
        self.estimate = int(column.estimate)
        self.type = column.type
        self.job = hashlib.sha256(job.encode()).hexdigest()
        quoted = quote_identifier(key)
        # One page: the next rows after the last key, or the first ones.
        columns = (
            "count(*) AS rows, (array_agg(k))[1] AS first, (array_agg(k))[count(*)] AS last,"
            " (array_agg(k))[count(*)]::text AS place"
        )
        rows = f"SELECT {quoted} AS k FROM {table} {{}} ORDER BY 1 LIMIT :size"  # noqa: S608
        page = f"SELECT {columns} FROM ({rows}) AS page"  # noqa: S608
        self.first_page = text(page.format(""))
        self.next_page = text(page.format(f"WHERE {quoted} > :last"))

    def run(self, size: int, pause: float) -> int:
        last = self._resume()
        walked = changed = 0
        started = logged = time.monotonic()
        while True:
            page = self._page(last, size)
            if page.rows == 0:
                break
            last = page.last
            with self._transaction():
                bounds = {"first": page.first, "last": last}
                changed += self.connection.execute(self.statement, bounds).rowcount
                self._save_progress(page.place)
            walked += page.rows
            now = time.monotonic()
            if now - logged >= PROGRESS_INTERVAL:
                logged = now
                self._log_progress(walked, now - started)
            cancellation.pause(pause)
        if last is None:
            # Run the statement once on an empty table, to report its errors there too.
            with self._transaction():
                self.connection.execute(self.statement, {"first": None, "last": None})
        self._log_progress(walked, time.monotonic() - started)
        self._delete_progress()
        return changed

    def _page(self, last: object, size: int) -> Any:
        if last is None:
            return self.connection.execute(self.first_page, {"size": size}).one()
        return self.connection.execute(self.next_page, {"size": size, "last": last}).one()

    def _log_progress(self, walked: int, seconds: float) -> None:
        total = f" of about {self.estimate:,}" if self.estimate >= walked else ""
        logger.info("%s: %s%s rows walked in %.0f s", self.table, f"{walked:,}", total, seconds)

    def _resume(self) -> object:
        """Return the last key that an earlier run committed; None if there is none."""
        self.connection.exec_driver_sql(
            f"CREATE TABLE IF NOT EXISTS {TABLE} (job text PRIMARY KEY, last text NOT NULL)"
        )
        query = f"SELECT CAST(last AS {self.type}) FROM {TABLE} WHERE job = :job"  # noqa: S608
        last: object = self.connection.scalar(text(query), {"job": self.job})
        if last is not None:
            logger.info("%s: resuming after %s, where an earlier run ended", self.table, last)
        return last

    def _save_progress(self, place: str) -> None:
        self.connection.execute(
            text(
                f"INSERT INTO {TABLE} VALUES (:job, :last)"  # noqa: S608
                " ON CONFLICT (job) DO UPDATE SET last = excluded.last"
            ),
            {"job": self.job, "last": place},
        )

    def _delete_progress(self) -> None:
        with self._transaction():
            self.connection.execute(
                text(f"DELETE FROM {TABLE} WHERE job = :job"),  # noqa: S608
                {"job": self.job},
            )
            if not self.connection.scalar(text(f"SELECT EXISTS (SELECT FROM {TABLE})")):  # noqa: S608
                self.connection.exec_driver_sql(f"DROP TABLE {TABLE}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # The connection is in autocommit mode, where SQLAlchemy does not begin a transaction.
        self.connection.exec_driver_sql("BEGIN")
        try:
            yield
            self.connection.exec_driver_sql("COMMIT")
        except BaseException:
            if not self.connection.invalidated:  # the server rolled back a lost session
                with suppress(DBAPIError):
                    self.connection.exec_driver_sql("ROLLBACK")
            raise
