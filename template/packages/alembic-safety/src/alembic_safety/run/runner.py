"""The runner: one at a time, each revision in its own transaction, retried and recorded."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo, StampStep
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from alembic_safety import alembic_internals, telemetry
from alembic_safety.backup.dump import kind_before_migrations, take_backup
from alembic_safety.batches import RUNNING, forget_places
from alembic_safety.boundary import describe_error
from alembic_safety.database import history
from alembic_safety.database.history import Direction, Event, History
from alembic_safety.database.lock import migration_lock
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import DatabaseUnavailableError, MigrationError
from alembic_safety.options import BackupKind, SafetyOptions, parse_milliseconds
from alembic_safety.project import Project
from alembic_safety.run import steps
from alembic_safety.run.blockers import Blockers
from alembic_safety.run.confirm import confirm_downgrade
from alembic_safety.run.indexes import invalid_indexes
from alembic_safety.run.observer import get_observer
from alembic_safety.run.resume import Resumption
from alembic_safety.run.retry import pause_or_give_up
from alembic_safety.sql import SQLState, get_sqlstate

logger = logging.getLogger(__name__)

_LONGEST_ERROR = 500
"""Characters of an error that are recorded."""

_SET_TIMEOUTS = text(
    "SELECT set_config('lock_timeout', :lock, false),"
    " set_config('statement_timeout', :statement, false)"
)


def changes_revision() -> bool:
    """Return whether the running command is one that changes the database's revision."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class OwnConnection:
    """What belongs to a connection that was opened for the migrations."""

    url: DatabaseURL
    blockers: Blockers


def run_revisions(connection: Connection, project: Project, own: OwnConnection | None) -> None:
    """Run the revisions of the command that `context` was configured for.

    Args:
        connection: the one that `context` was configured with.
        project: whose options say how long to wait, how often to try, what to back up.
        own: None on a connection that a program gave: its transaction, timeouts and backups are
            the program's, and nothing is tried again there.

    Raises:
        MigrationError: a downgrade would revert others than before this runner had to wait.
        NotConfirmedError: a downgrade in prod, and nobody gave the database's name.
        MigrationLockError: another runner did not end in time.
        BackupError: no backup could be made.
        LockTimeoutError: a table was held in each try.
        InvalidIndexError: a revision left an invalid index.
    """
    migrations = context.get_context()
    confirmed = steps.reverted(steps.resolve_steps(connection, migrations))
    if project.target.production:
        confirm_downgrade(connection, confirmed)
    with migration_lock(
        connection, version_table=migrations.version_table, wait=project.options.lock_wait
    ):
        # Again: the last lock holder may have changed the database's revision.
        run = _Run(connection, migrations, project, own)
        if steps.reverted(run.steps) != confirmed:
            raise MigrationError(
                "another runner changed the database's revision while this one waited, so that other "
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
        if not run.in_caller_transaction:
            # Commit the version row of a revision that ended its own transaction.
            connection.commit()


def set_timeouts(connection: Connection, options: SafetyOptions) -> tuple[str, str]:
    """Set the timeouts of the session; no rollback undoes them. Return them as `SHOW` does."""
    # Not as settings of the connection's start: a pooler in session mode refuses those.
    given = {"lock": str(options.lock_timeout), "statement": str(options.statement_timeout)}
    lock_timeout, statement_timeout = connection.execute(_SET_TIMEOUTS, given).one()
    connection.commit()
    return lock_timeout, statement_timeout


class _Run:
    """The steps of a command, and the measures around each."""

    def __init__(
        self,
        connection: Connection,
        migrations: MigrationContext,
        project: Project,
        own: OwnConnection | None,
    ) -> None:
        self.connection = connection
        self.migrations = migrations
        self.project = project
        self.options = project.options
        self.own = own
        self.in_caller_transaction = connection.in_transaction()
        self.resumption = Resumption(connection)
        self.history = History(connection)
        # "+2" and "-2" count from where the database is: they are resolved once, so that a try
        # after the first revision was committed does not go further.
        self.steps = steps.resolve_steps(connection, migrations)
        self._done = 0
        self._started = 0.0
        self._backup: str | None = None
        self._timeouts: tuple[SafetyOptions, tuple[str, str]] | None = None
        """Those that were set last, and those the session has; None if unknown."""
        self._span = ExitStack()  # of the revision that runs

    def back_up(self) -> None:
        """Take a backup, if one is wanted and something is about to change.

        Raises:
            BackupError: it failed.
        """
        changing = any(not isinstance(step, StampStep) for step in self.steps)
        kind = kind_before_migrations(self.project)
        if self.own is None or not changing or kind is BackupKind.OFF:
            return
        self._backup = take_backup(self.connection, self.project, kind).path.name

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Replace Alembic's steps, and watch the connection."""

        def remaining(_heads: Any, _migrations: MigrationContext) -> Iterator[Any]:
            for step in self.steps[self._done :]:
                self._before(step)
                yield step
                # It is committed, which can fail, too: deferred constraints wait for locks then.
                self._span.close()
                self._done += 1
                self.history.is_ready = True

        alembic_internals.set_resolver(self.migrations, remaining)
        self.migrations.on_version_apply_callbacks = (
            *self.migrations.on_version_apply_callbacks,
            self._applied,
        )
        with self.resumption.active(), self.history.watched():
            yield

    @contextmanager
    def failures_recorded(self) -> Iterator[None]:
        """Record the error that ends the run; the service's metrics show it."""
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
                revision="+".join(steps.revisions(info)),
                direction=steps.direction(info),
                seconds=time.monotonic() - self._started,
                code_version=self.project.target.code_version,
                backup=self._backup,
                error=describe_error(error).partition("\n")[0][:_LONGEST_ERROR],
            )
            history.write(self.connection, failure)
            self.connection.commit()

    def until_done(self) -> None:
        """Run the steps; retry after a lock timeout."""
        tries = 0
        while True:
            done = self._done
            try:
                with self._span:
                    context.run_migrations()
            except DBAPIError as error:
                if get_sqlstate(error) != SQLState.LOCK_NOT_AVAILABLE or self.own is None:
                    raise
                # What the try set and made may be undone.
                self._timeouts, self.history.is_ready = None, False
                tries = 1 if self._done > done else tries + 1
                pause_or_give_up(
                    error,
                    tries=tries,
                    retries=self.options.lock_retries,
                    held_by=self.own.blockers.take(),
                )
            else:
                self._set_timeouts(None)
                return

    def _before(self, step: Any) -> None:
        revision = getattr(step, "revision", None)
        self.migrations.opts[RUNNING] = getattr(revision, "revision", "")
        if revision is not None and (observer := get_observer(context.config)):
            observer.begin(revision.revision)
        self.resumption.indexes.forget()
        self._set_timeouts(getattr(revision, "module", None))
        self._started = time.monotonic()
        self._span.enter_context(telemetry.span(steps.title(step)))

    def _set_timeouts(self, module: object) -> None:
        """Set a revision's own timeouts, or those of the options again."""
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
        direction = steps.direction(step)
        seconds = time.monotonic() - self._started
        if direction is Direction.DOWNGRADE:
            forget_places(self.connection)
        for revision in steps.revisions(step):
            applied = Event(
                revision=revision,
                direction=direction,
                code_version=self.project.target.code_version,
                seconds=seconds,
                backup=None if step.is_stamp else self._backup,
            )
            left = self.history.write(applied)
            if self._timeouts is not None and self._timeouts[1] != left:
                self._timeouts = None  # the revision set others, which the next is not to run by
