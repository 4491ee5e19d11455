"""Runs revisions: one runner at a time, each in its own transaction, tried again, recorded."""

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from core.migrations import record
from core.migrations.blockers import Blockers
from core.migrations.config import SafetyOptions, parse_milliseconds
from core.migrations.errors import MigrationError, place_in_revision
from core.migrations.indexes import ConcurrentIndexes, invalid_indexes
from core.migrations.lock import migration_lock

logger = logging.getLogger(__name__)

_LOCK_NOT_AVAILABLE = "55P03"
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
"""Seconds between two tries: they double from the first to the longest, less up to a half."""


class LockTimeoutError(MigrationError):
    """Each try of a revision met a table that another session held."""


def changes_revision() -> bool:
    """Return whether the command that runs is one that changes the database's revision."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


def run_revisions(
    connection: Connection, options: SafetyOptions, blockers: Blockers | None
) -> None:
    """Run the revisions of the command that `context` was configured for.

    Args:
        connection: the one that `context` was configured with.
        options: how long to wait, how often to try.
        blockers: who holds what is waited for; None on a connection that a program gave: its
            transaction and its timeouts are the program's, and nothing is tried again there.

    Raises:
        MigrationLockError: another runner did not end in time.
        LockTimeoutError: a table was held in each try.
        InvalidIndexError: a revision left an invalid index.
    """
    migrations = context.get_context()
    with migration_lock(connection, version_table=migrations.version_table, wait=options.lock_wait):
        run = _Run(connection, migrations, options, own_connection=blockers is not None)
        with run.prepared():
            run.until_done(blockers)
        if left := invalid_indexes(connection):
            logger.warning(
                "invalid indexes, which PostgreSQL does not use but keeps up to date: %s. "
                "Drop them, or build them with REINDEX INDEX CONCURRENTLY.",
                ", ".join(left),
            )
        if not run.caller_s_transaction:
            connection.rollback()


class _Run:
    """A command's steps, with what is done before and after each."""

    def __init__(
        self,
        connection: Connection,
        migrations: MigrationContext,
        options: SafetyOptions,
        *,
        own_connection: bool,
    ) -> None:
        self.connection = connection
        self.migrations = migrations
        self.options = options
        self.own_connection = own_connection
        self.caller_s_transaction = connection.in_transaction()
        self.indexes = ConcurrentIndexes(connection)
        self._steps: list[Any] | None = None
        self._done = 0
        self._started = 0.0

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Take Alembic's steps and callbacks into our hands."""
        # "+2" and "-2" count from where the database is: they are resolved once, so that a try
        # after the first revision was committed does not go further.
        resolve: Any = self.migrations._migrations_fn  # noqa: SLF001

        def steps(heads: Any, migrations: MigrationContext) -> Iterator[Any]:
            if self._steps is None:
                self._steps = list(resolve(heads, migrations))
            for step in self._steps[self._done :]:
                self._before(step)
                yield step

        self.migrations._migrations_fn = steps  # noqa: SLF001
        self.migrations.on_version_apply_callbacks = (
            *self.migrations.on_version_apply_callbacks,
            self._applied,
        )
        with self.indexes.watched():
            yield

    def until_done(self, blockers: Blockers | None) -> None:
        """Run the steps; try again where a lock was held too long."""
        tries = 0
        while True:
            done = self._done
            try:
                context.run_migrations()
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE or blockers is None:
                    raise
                tries = 1 if self._done > done else tries + 1
                self._pause_or_give_up(error, tries, blockers.take())
            else:
                self._set_timeouts(None)
                return

    def _pause_or_give_up(self, error: DBAPIError, tries: int, held_by: str) -> None:
        place = place_in_revision(error) or "a revision"
        if tries > self.options.lock_retries:
            raise LockTimeoutError(
                f"{place}: a table was held by another session in each of {tries} tries, last by "
                f"{held_by}. Revisions before it stay applied, nothing of it does (but for "
                "what it ran in an autocommit block). Run it when "
                "that session has ended (SELECT pg_terminate_backend(pid) ends it), or give it "
                "more time with lock_timeout."
            ) from error
        pause = min(_FIRST_PAUSE * 2 ** (tries - 1), _LONGEST_PAUSE) * random.uniform(0.5, 1)  # noqa: S311
        logger.warning(
            "%s: a table is held by %s; trying again in %.1f s (%d of %d)",
            place,
            held_by,
            pause,
            tries,
            self.options.lock_retries,
        )
        time.sleep(pause)

    def _before(self, step: Any) -> None:
        self.indexes.forget()
        self._set_timeouts(getattr(getattr(step, "revision", None), "module", None))
        self._started = time.monotonic()

    def _set_timeouts(self, module: object) -> None:
        """Give the session a revision's own timeouts, or back those of the options."""
        if not self.own_connection:
            return
        for name in ("lock_timeout", "statement_timeout"):
            value: int = getattr(self.options, name)
            if (own := getattr(module, name, None)) is not None:
                value = parse_milliseconds(own, f"{getattr(module, '__file__', '')}: {name}")
            self.connection.exec_driver_sql(f"SET {name} = {value}")
        # Committed, so that a rollback of the revision does not undo it.
        self.connection.commit()

    def _applied(self, *, step: MigrationInfo, **_: Any) -> None:
        """Record a revision; Alembic calls this in its transaction, before the commit."""
        self.indexes.check()
        moved = "upgrade" if step.is_upgrade else "downgrade"
        direction = "stamp" if step.is_stamp else moved
        seconds = time.monotonic() - self._started
        revisions = step.destination_revision_ids if step.is_stamp else step.up_revision_ids
        for revision in revisions:
            record.write(
                self.connection,
                revision=revision,
                direction=direction,
                seconds=seconds,
                backup=None,
            )
        self._done += 1
