"""Backfills: a statement over a large table, in batches that are committed one by one.

One UPDATE of all rows would hold every row's lock to its end, and keep VACUUM from cleaning up.
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

from core.migrations.errors import MigrationError
from core.migrations.sql import quote_identifier

logger = logging.getLogger(__name__)

TABLE = "alembic_backfill"
"""Where an unfinished backfill stands; it is dropped when the last one is finished."""
RUNNING = "running_revision"
"""The option of Alembic's context that names the revision that runs."""
PROGRESS_INTERVAL = 5.0
"""Seconds between two words on a backfill."""

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
    """A backfill can't begin. The message says what is missing."""


def in_batches(
    statement: str, *, table: str, key: str = "id", size: int = 1000, pause: float = 0.0
) -> int:
    """Run `statement` for all rows of `table`, `size` at a time; return how many it changed.

    For `upgrade()` of a revision of its own: what stands before it in the same function is
    committed by it. If it is interrupted, the next run goes on after the last batch. A table that
    is held is tried again, as in every revision.

    Args:
        statement: SQL with the bounds `:first` and `:last`, both inclusive:
            `UPDATE users SET name_key = lower(name) WHERE id BETWEEN :first AND :last`.
        table: the table that is walked, as SQL writes it.
        key: its column that the bounds are of: required, and the first one of an index.
        size: rows of a batch.
        pause: seconds between two batches, for replicas and VACUUM to keep up.

    Raises:
        BackfillError: no bounds in the statement, no such column, no index on it, or a connection
            whose caller is in a transaction.
    """
    if not {":first", ":last"} <= set(re.findall(r":\w+", statement)):
        raise BackfillError("the statement of a backfill needs the bounds :first and :last")
    context = op.get_context()
    if context._in_external_transaction:  # noqa: SLF001
        raise BackfillError(
            "a backfill commits its batches, and this connection is in a transaction of its "
            "caller's: run the migration on a connection outside of one"
        )
    quoted = quote_identifier(key)
    if context.as_sql:
        bound = f"(SELECT {quoted} FROM {table} ORDER BY 1 {{}} LIMIT 1)"  # noqa: S608
        whole = re.sub(r":first\b", bound.format("ASC"), statement)
        op.execute("-- At once: batches are for a run on the database.")
        op.execute(re.sub(r":last\b", bound.format("DESC"), whole))
        return 0
    with context.autocommit_block():
        job = f"{context.opts.get(RUNNING, '')}\n{table}\n{key}\n{statement}"
        return _Backfill(op.get_bind(), statement, table, key, job).run(size, pause)


def forget_places(connection: Connection) -> None:
    """Forget where unfinished backfills stand: a revision was reverted, and its rows are others."""
    connection.exec_driver_sql(f"DROP TABLE IF EXISTS {TABLE}")


class _Backfill:
    def __init__(
        self, connection: Connection, statement: str, table: str, key: str, job: str
    ) -> None:
        column = connection.execute(_COLUMN, {"table": table, "key": key}).first()
        if column is None:
            raise BackfillError(f"there is no column {key} of a table {table} to walk along")
        if not (column.required and column.indexed):
            raise BackfillError(
                f"{table}.{key} can't be walked along: it has to be NOT NULL, and the first "
                "column of an index"
            )
        self.connection = connection
        self.statement = text(statement)
        self.table = table
        self.estimate = int(column.estimate)
        self.type = column.type
        self.job = hashlib.sha256(job.encode()).hexdigest()
        quoted = quote_identifier(key)
        # The next rows after a place, or from the start where there is none yet.
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
        started = said = time.monotonic()
        while True:
            page = self._page(last, size)
            if page.rows == 0:
                break
            last = page.last
            with self._transaction():
                bounds = {"first": page.first, "last": last}
                changed += self.connection.execute(self.statement, bounds).rowcount
                self._remember(page.place)
            walked += page.rows
            now = time.monotonic()
            if now - said >= PROGRESS_INTERVAL:
                said = now
                self._say(walked, now - started)
            time.sleep(pause)
        if last is None:
            # Of an empty table, too, a mistake in the statement is to show.
            with self._transaction():
                self.connection.execute(self.statement, {"first": None, "last": None})
        self._say(walked, time.monotonic() - started)
        self._forget()
        return changed

    def _page(self, last: object, size: int) -> Any:
        if last is None:
            return self.connection.execute(self.first_page, {"size": size}).one()
        return self.connection.execute(self.next_page, {"size": size, "last": last}).one()

    def _say(self, walked: int, seconds: float) -> None:
        about = f" of about {self.estimate:,}" if self.estimate >= walked else ""
        logger.info("%s: %s%s rows walked in %.0f s", self.table, f"{walked:,}", about, seconds)

    def _resume(self) -> object:
        """Return the last key of the batches that an earlier run committed."""
        self.connection.exec_driver_sql(
            f"CREATE TABLE IF NOT EXISTS {TABLE} (job text PRIMARY KEY, last text NOT NULL)"
        )
        query = f"SELECT CAST(last AS {self.type}) FROM {TABLE} WHERE job = :job"  # noqa: S608
        last: object = self.connection.scalar(text(query), {"job": self.job})
        if last is not None:
            logger.info("%s: going on after %s, where an earlier run ended", self.table, last)
        return last

    def _remember(self, place: str) -> None:
        self.connection.execute(
            text(
                f"INSERT INTO {TABLE} VALUES (:job, :last)"  # noqa: S608
                " ON CONFLICT (job) DO UPDATE SET last = excluded.last"
            ),
            {"job": self.job, "last": place},
        )

    def _forget(self) -> None:
        with self._transaction():
            self.connection.execute(
                text(f"DELETE FROM {TABLE} WHERE job = :job"),  # noqa: S608
                {"job": self.job},
            )
            if not self.connection.scalar(text(f"SELECT EXISTS (SELECT FROM {TABLE})")):  # noqa: S608
                self.connection.exec_driver_sql(f"DROP TABLE {TABLE}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # The connection is in autocommit, where SQLAlchemy begins none.
        self.connection.exec_driver_sql("BEGIN")
        try:
            yield
            self.connection.exec_driver_sql("COMMIT")
        except BaseException:
            if not self.connection.invalidated:  # else the server has rolled back already
                with suppress(DBAPIError):
                    self.connection.exec_driver_sql("ROLLBACK")
            raise
