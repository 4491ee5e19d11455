"""Sizes of the live tables, and estimates of how long it takes to read or rewrite them."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from alembic_safety.errors import MigrationError
from alembic_safety.sql import RELATION_NAME, SQLState, get_sqlstate

_READ_PER_SECOND = 200_000_000
"""Bytes that a server reads in a scan, roughly: disks of cloud providers do 100 to 500 MB/s."""
_WRITTEN_PER_SECOND = 50_000_000
"""Bytes that it writes while it copies each row to a new file and builds the indexes again."""

_LEAST_ROW = 32
"""Bytes of the smallest row. A table that was never analyzed has at most one for each of these."""

_DURATIONS = (
    (0.1, "moments"),
    (1, "up to a second"),
    (10, "seconds"),
    (60, "tens of seconds"),
    (600, "minutes"),
    (3600, "tens of minutes"),
)

_SIZES = text(
    f"""
    SELECT {RELATION_NAME} AS name,
        sum(CASE WHEN part.reltuples > 0 THEN part.reltuples
            ELSE pg_relation_size(part.oid) / {_LEAST_ROW} END)::bigint AS rows,
        bool_and(part.reltuples > 0 OR pg_relation_size(part.oid) = 0) AS counted,
        sum(pg_table_size(part.oid))::bigint AS bytes,
        sum(pg_indexes_size(part.oid))::bigint AS index_bytes
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL (
        SELECT c.oid WHERE c.relkind <> 'p' UNION SELECT relid FROM pg_partition_tree(c.oid)
    ) AS tree JOIN pg_class part ON part.oid = tree.oid
    WHERE c.relkind IN ('r', 'm', 'p') AND n.nspname !~ '^pg_'
      AND n.nspname <> 'information_schema'
    GROUP BY 1
    """
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of a live table, with its partitions."""

    rows: int
    """Estimate of the server; the most that there may be if it has none."""
    bytes: int
    index_bytes: int
    counted: bool = True
    """Whether `rows` is the server's estimate."""

    def work(self, *, rewrite: bool) -> tuple[int, int]:
        """Return how many bytes are read or rewritten, and how many of them in a second."""
        if rewrite:
            return self.bytes + self.index_bytes, _WRITTEN_PER_SECOND
        return self.bytes, _READ_PER_SECOND


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the live tables, and the limits below which a table is small."""

    tables: Mapping[str, Size] | None
    """None if there is no live database: every table that is not new counts as large."""
    small_rows: int = 0
    small_bytes: int = 0

    def is_small(self, table: str) -> bool:
        """Return whether a table is small, or not in the live database."""
        if self.tables is None:
            return not table
        size = self.tables.get(table)
        return size is None or (size.rows < self.small_rows and size.bytes < self.small_bytes)

    def seconds(self, table: str, *, rewrite: bool) -> float:
        """Return the seconds that reading or rewriting a table takes; 0 if its size is unknown."""
        size = (self.tables or {}).get(table)
        if size is None:
            return 0
        amount, speed = size.work(rewrite=rewrite)
        return amount / speed

    def describe_duration(self, table: str, *, rewrite: bool) -> str:
        """Return how long it takes, and why, as the end of a sentence; empty if that is unknown."""
        size = (self.tables or {}).get(table)
        if size is None:
            return ""
        amount, speed = size.work(rewrite=rewrite)
        words = next((words for limit, words in _DURATIONS if amount / speed < limit), "hours")
        rows = f" ({size.rows:,} rows)" if size.counted else ""
        return (
            f"; {words}: {amount / 1e6:,.1f} MB{rows} "
            f"{'written' if rewrite else 'read'} at about {speed / 1e6:.0f} MB/s"
        )


def read_sizes(connection: Connection, *, lock_wait: int) -> dict[str, Size]:
    """Return the sizes of the database's tables and materialized views, by name.

    Args:
        connection: a connection to the database.
        lock_wait: milliseconds to wait for a table that another session has locked.

    Raises:
        MigrationError: a table was locked for longer.
    """
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {max(lock_wait, 1)}")
    try:
        rows = connection.execute(_SIZES).all()
    except DBAPIError as error:
        if get_sqlstate(error) != SQLState.LOCK_NOT_AVAILABLE:
            raise
        raise MigrationError(
            "another session locked a table for longer than lock_wait, so its size can't be read; "
            "plan again when that session has ended"
        ) from error
    return {
        row.name: Size(
            rows=row.rows, bytes=row.bytes, index_bytes=row.index_bytes, counted=row.counted
        )
        for row in rows
    }
