"""Runs revisions: one runner at a time, each in its own transaction, tried again, recorded."""

import logging
import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo, StampStep
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from core import tracing
from core.config import Environment, get_settings
from core.database import DatabaseUnavailableError
from core.database_url import DatabaseURL
from core.migrations import record
from core.migrations.backup import kind_before_migrations, take_backup
from core.migrations.batches import RUNNING, forget_places
from core.migrations.blockers import Blockers
from core.migrations.config import BackupKind, SafetyOptions, parse_milliseconds
from core.migrations.confirm import confirm
from core.migrations.errors import MigrationError, describe_error, place_in_revision
from core.migrations.indexes import invalid_indexes
from core.migrations.lock import migration_lock
from core.migrations.observer import get_observer
from core.migrations.record import Direction, Event
from core.migrations.resume import Resumption

logger = logging.getLogger(__name__)

_LOCK_NOT_AVAILABLE = "55P03"
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
"""Seconds between two tries: they double from the first to the longest, less up to a half."""

_LONGEST_ERROR = 500
"""Characters of an error that are recorded."""

_SET_TIMEOUTS = text(
    "SELECT set_config('lock_timeout', :lock, false),"
    " set_config('statement_timeout', :statement, false)"
)


class LockTimeoutError(MigrationError):
    """Each try of a revision met a table that another session held."""


def changes_revision() -> bool:
    """Return whether the command that runs is one that changes the database's revision."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class OwnConnection:
    """What goes with a connection that was made for the migrations, and is theirs alone."""

    url: DatabaseURL
    blockers: Blockers


def run_revisions(
    connection: Connection, options: SafetyOptions, own: OwnConnection | None
) -> None:
    """Run the revisions of the command that `context` was configured for.

    Args:
        connection: the one that `context` was configured with.
        options: how long to wait, how often to try, what to back up.
        own: None on a connection that a program gave: its transaction, its timeouts and its
            backups are the program's, and nothing is tried again there.

    Raises:
        MigrationError: a downgrade would revert others than before this runner had to wait.
        NotConfirmedError: a downgrade in prod, and nobody gave the database's name.
        MigrationLockError: another runner did not end in time.
        BackupError: no backup could be made.
        LockTimeoutError: a table was held in each try.
        InvalidIndexError: a revision left an invalid index.
    """
    migrations = context.get_context()
    confirmed = _reverted(resolve_steps(connection, migrations))
    _confirm_downgrade(connection, confirmed)
    with migration_lock(connection, version_table=migrations.version_table, wait=options.lock_wait):
        # Again: who had the lock before may have changed where the database is.
        run = _Run(connection, migrations, options, own)
        if _reverted(run.steps) != confirmed:
            raise MigrationError(
                "another runner changed where the database is while this one waited, so that other "
                "revisions would be reverted now. Nothing was changed; run this again."
            )
        with run.failures_recorded():
            run.back_up()
            with run.prepared():
                run.until_done()
        if left := invalid_indexes(connection):
            logger.warning(
                "invalid indexes, which PostgreSQL does not use but keeps up to date: %s. "
                "Drop them, or build them with REINDEX INDEX CONCURRENTLY.",
                ", ".join(left),
            )
        if not run.caller_s_transaction:
            # Nothing is open, but after a revision that committed itself: where the database is.
            connection.commit()


def set_timeouts(connection: Connection, options: SafetyOptions) -> tuple[str, str]:
    """Set the timeouts of the session; no rollback undoes them. Return them as `SHOW` does."""
    # Not as settings of the connection's start: a pooler in session mode refuses those.
    given = {"lock": str(options.lock_timeout), "statement": str(options.statement_timeout)}
    lock_timeout, statement_timeout = connection.execute(_SET_TIMEOUTS, given).one()
    connection.commit()
    return lock_timeout, statement_timeout


def resolve_steps(connection: Connection, migrations: MigrationContext) -> list[Any]:
    """Return the steps from where the database is to where the command leads."""
    caller_s_transaction = connection.in_transaction()
    heads = () if migrations.purge else migrations.get_current_heads()
    if not caller_s_transaction:
        connection.rollback()
    resolve: Any = migrations._migrations_fn  # noqa: SLF001
    return list(resolve(heads, migrations))


def _reverted(steps: list[Any]) -> list[str]:
    return [
        step.revision.revision
        for step in steps
        if not isinstance(step, StampStep) and not step.is_upgrade
    ]


def _title(step: Any) -> str:
    """Return what a step is called in a trace: `upgrade 3f1c9b7d5a20`."""
    if isinstance(step, StampStep):
        return "stamp"
    return f"{'upgrade' if step.is_upgrade else 'downgrade'} {step.revision.revision}"


def _confirm_downgrade(connection: Connection, reverted: list[str]) -> None:
    """In prod, ask for the database's name before anything is reverted."""
    if not reverted or get_settings().environment is not Environment.PROD:
        return
    caller_s_transaction = connection.in_transaction()
    database = str(connection.scalar(text("SELECT current_database()")))
    if not caller_s_transaction:
        connection.rollback()
    confirm(
        database,
        f"ENVIRONMENT=prod: this reverts {', '.join(reverted)} in the database {database}; "
        "what is in the tables and columns that go is lost",
        str(context.config.attributes.get("confirm") or os.environ.get("CONFIRM", "")),
        how=f"CONFIRM={database}",
    )


def _direction(info: MigrationInfo) -> Direction:
    if info.is_stamp:
        return Direction.STAMP
    return Direction.UPGRADE if info.is_upgrade else Direction.DOWNGRADE


def _revisions(info: MigrationInfo) -> tuple[str, ...]:
    return tuple(info.destination_revision_ids if info.is_stamp else info.up_revision_ids)


class _Run:
    """A command's steps, with what is done before and after each."""

    def __init__(
        self,
        connection: Connection,
        migrations: MigrationContext,
        options: SafetyOptions,
        own: OwnConnection | None,
    ) -> None:
        self.connection = connection
        self.migrations = migrations
        self.options = options
        self.own = own
        self.caller_s_transaction = connection.in_transaction()
        self.resumption = Resumption(connection)
        self.record = record.Record(connection)
        # "+2" and "-2" count from where the database is: they are resolved once, so that a try
        # after the first revision was committed does not go further.
        self.steps = resolve_steps(connection, migrations)
        self._done = 0
        self._started = 0.0
        self._backup: str | None = None
        self._timeouts: tuple[SafetyOptions, tuple[str, str]] | None = None
        """What was set last, and what the session has; None where that is not known."""
        self._span = ExitStack()  # of the revision that runs

    def back_up(self) -> None:
        """Make a backup, where one is wanted and something is about to change.

        Raises:
            BackupError: it failed.
        """
        changing = any(not isinstance(step, StampStep) for step in self.steps)
        kind = kind_before_migrations(self.options)
        if self.own is None or not changing or kind is BackupKind.OFF:
            return
        self._backup = take_backup(self.connection, self.own.url, self.options, kind).path.name

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Take Alembic's steps and callbacks into our hands."""

        def steps(_heads: Any, _migrations: MigrationContext) -> Iterator[Any]:
            for step in self.steps[self._done :]:
                self._before(step)
                yield step
                # It is committed, which can fail, too: deferred constraints wait for locks then.
                self._span.close()
                self._done += 1
                self.record.is_ready = True

        self.migrations._migrations_fn = steps  # noqa: SLF001
        self.migrations.on_version_apply_callbacks = (
            *self.migrations.on_version_apply_callbacks,
            self._applied,
        )
        with self.resumption.active(), self.record.watched():
            yield

    @contextmanager
    def failures_recorded(self) -> Iterator[None]:
        """Record what ends the run: a service that is watched shows it."""
        self._started = time.monotonic()
        try:
            yield
        except Exception as error:
            if self.own is not None:
                self._record_failure(error)
            raise

    def _record_failure(self, error: Exception) -> None:
        if self._done == len(self.steps):
            return  # all were applied, and recorded
        info: MigrationInfo = self.steps[self._done].info
        # The error that is raised says more than one of recording it. A connection that was lost is
        # made anew, which SQLAlchemy wraps where it fails.
        with suppress(SQLAlchemyError, DatabaseUnavailableError):
            self.connection.rollback()
            failure = Event(
                revision="+".join(_revisions(info)),
                direction=_direction(info),
                seconds=time.monotonic() - self._started,
                backup=self._backup,
                error=describe_error(error).partition("\n")[0][:_LONGEST_ERROR],
            )
            record.write(self.connection, failure)
            self.connection.commit()

    def until_done(self) -> None:
        """Run the steps; try again where a lock was held too long."""
        tries = 0
        while True:
            done = self._done
            try:
                with self._span:
                    context.run_migrations()
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE or self.own is None:
                    raise
                # What the try set and made may be undone.
                self._timeouts, self.record.is_ready = None, False
                tries = 1 if self._done > done else tries + 1
                self._pause_or_give_up(error, tries, self.own.blockers.take())
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
        tracing.add_event("trying again", tries=tries, pause_seconds=pause)
        time.sleep(pause)

    def _before(self, step: Any) -> None:
        revision = getattr(step, "revision", None)
        self.migrations.opts[RUNNING] = getattr(revision, "revision", "")
        if revision is not None and (observer := get_observer(context.config)):
            observer.begin(revision.revision)
        self.resumption.indexes.forget()
        self._set_timeouts(getattr(revision, "module", None))
        self._started = time.monotonic()
        self._span.enter_context(tracing.span(_title(step)))

    def _set_timeouts(self, module: object) -> None:
        """Give the session a revision's own timeouts, or back those of the options."""
        if self.own is None:
            return
        own = {
            name: parse_milliseconds(value, f"{getattr(module, '__file__', '')}: {name}")
            for name in ("lock_timeout", "statement_timeout")
            if (value := getattr(module, name, None)) is not None
        }
        wanted = self.options.model_copy(update=own) if own else self.options
        if self._timeouts is None or self._timeouts[0] != wanted:
            self._timeouts = (wanted, set_timeouts(self.connection, wanted))

    def _applied(self, *, step: MigrationInfo, **_: Any) -> None:
        """Record a revision; Alembic calls this in its transaction, before the commit."""
        if observer := get_observer(context.config):
            observer.end()
        self.resumption.indexes.check()
        direction = _direction(step)
        seconds = time.monotonic() - self._started
        if direction is Direction.DOWNGRADE:
            forget_places(self.connection)
        for revision in _revisions(step):
            applied = Event(
                revision=revision,
                direction=direction,
                seconds=seconds,
                backup=None if step.is_stamp else self._backup,
            )
            left = self.record.write(applied)
            if self._timeouts is not None and self._timeouts[1] != left:
                self._timeouts = None  # the revision set others, which the next is not to run by
