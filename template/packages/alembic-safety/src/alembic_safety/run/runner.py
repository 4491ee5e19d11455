"""Runner of revisions: locked, each in its own transaction, retried and recorded."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo, StampStep
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from alembic_safety import alembic_internals, telemetry
from alembic_safety.backup.dump import kind_before_migrations, take_backup
from alembic_safety.batches import RUNNING, discard_progress
from alembic_safety.boundary import describe_error
from alembic_safety.cancellation import raise_if_canceled
from alembic_safety.database import history
from alembic_safety.database.history import Direction, Event, History
from alembic_safety.database.lock import migration_lock
from alembic_safety.errors import DatabaseUnavailableError, MigrationError
from alembic_safety.options import BackupKind, SafetyOptions, declared_timeouts
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
"""Characters of an error to record."""

_SET_TIMEOUTS = text(
    "SELECT set_config('lock_timeout', :lock, false),"
    " set_config('statement_timeout', :statement, false)"
)


def changes_revision() -> bool:
    """Return whether the current command changes the revision of the database."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


def run_revisions(connection: Connection, project: Project, blockers: Blockers | None) -> None:
    """Run the revisions of the current command.

    Args:
        connection: the connection that `context` was configured with.
        project: the project, for its options and target.
        blockers: sessions that block a connection which was opened for the migrations. None if a
            caller passed the connection. The caller then owns transaction and timeouts, and nothing
            is backed up, retried or recorded as failed.

    Raises:
        MigrationError: another runner changed the revisions that a downgrade would revert.
        NotConfirmedError: a downgrade in production was not confirmed.
        AlembicConfigError: a revision declares an invalid timeout.
        MigrationLockError: another runner held the lock for longer than `lock_wait`.
        BackupError: the backup failed.
        LockTimeoutError: every attempt of a revision ended in a lock timeout.
        InvalidIndexError: a revision left an invalid index.
    """
    migrations = context.get_context()
    resolved = steps.resolve_steps(connection, migrations)
    for step in resolved:
        declared_timeouts(getattr(getattr(step, "revision", None), "module", None))
    confirmed = steps.reverted(resolved)
    if project.target.production:
        confirm_downgrade(connection, confirmed)
    with migration_lock(
        connection, version_table=migrations.version_table, wait=project.options.lock_wait
    ):
        # Resolve the steps again: the previous lock holder may have changed the revision.
        run = _Run(connection, migrations, project, blockers)
        if steps.reverted(run.steps) != confirmed:
            raise MigrationError(
                "another runner changed the revision of the database while this one waited, so "
                "other revisions would be reverted now. Nothing was changed. Run this command again "
                "to revert those."
            )
        with run.failures_recorded():
            run.back_up()
            with run.prepared():
                run.until_done()
        if left := invalid_indexes(connection):
            logger.warning(
                "invalid indexes, which PostgreSQL maintains but does not use: %s. Drop them, or "
                "rebuild them with REINDEX INDEX CONCURRENTLY.",
                ", ".join(left),
            )
        if not run.in_caller_transaction:
            # Commit the version row of a revision that ended its own transaction.
            connection.commit()


def set_timeouts(connection: Connection, options: SafetyOptions) -> tuple[str, str]:
    """Set the timeouts of the session; return them in the format of `SHOW`."""
    # A pooler in session mode rejects run-time parameters at connection start.
    given = {"lock": str(options.lock_timeout), "statement": str(options.statement_timeout)}
    lock_timeout, statement_timeout = connection.execute(_SET_TIMEOUTS, given).one()
    connection.commit()
    return lock_timeout, statement_timeout


class _Run:
    """The steps of a command, and the safety measures around each."""

    def __init__(
        self,
        connection: Connection,
        migrations: MigrationContext,
        project: Project,
        blockers: Blockers | None,
    ) -> None:
        self.connection = connection
        self.migrations = migrations
        self.project = project
        self.options = project.options
        self.blockers = blockers
        self.in_caller_transaction = connection.in_transaction()
        self.resumption = Resumption(connection)
        self.history = History(connection)
        # "+2" and "-2" are relative to the revision of the database. Resolve them once, so that a
        # retry after a committed revision does not go further.
        self.steps = steps.resolve_steps(connection, migrations)
        self._done = 0
        self._started = 0.0
        self._backup: str | None = None
        self._timeouts: tuple[SafetyOptions, tuple[str, str]] | None = None
        """The options whose timeouts were set last, and the session's timeouts; None if unknown."""
        self._span = ExitStack()  # span of the running revision

    def back_up(self) -> None:
        """Take a backup if the options want one and a step changes the schema.

        Raises:
            BackupError: the backup failed.
        """
        changing = any(not isinstance(step, StampStep) for step in self.steps)
        kind = kind_before_migrations(self.project)
        if self.blockers is None or not changing or kind is BackupKind.OFF:
            return
        self._backup = take_backup(self.connection, self.project, kind).path.name

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Install the steps, callbacks and statement hooks during the block."""

        def remaining(_heads: Any, _migrations: MigrationContext) -> Iterator[Any]:
            for step in self.steps[self._done :]:
                self._before(step)
                yield step
                # The step is committed now. A commit can fail too, in deferred constraints.
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
        """Record an error that ends the run, for metrics."""
        self._started = time.monotonic()
        try:
            yield
        except Exception as error:
            if self.blockers is not None:
                self._record_failure(error)
            raise

    def _record_failure(self, error: Exception) -> None:
        if self._done == len(self.steps):
            return  # every step was applied and recorded
        info: MigrationInfo = self.steps[self._done].info
        # Do not replace the original error with one of recording it. SQLAlchemy reconnects a lost
        # connection, which can fail.
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
            except SQLAlchemyError as error:
                raise_if_canceled(error)
                if get_sqlstate(error) != SQLState.LOCK_NOT_AVAILABLE or self.blockers is None:
                    raise
                # The rollback may have undone timeouts and the history table.
                self._timeouts, self.history.is_ready = None, False
                tries = 1 if self._done > done else tries + 1
                pause_or_give_up(
                    error,
                    tries=tries,
                    retries=self.options.lock_retries,
                    held_by=self.blockers.take(),
                )
            else:
                self._set_timeouts(None)
                return

    def _before(self, step: Any) -> None:
        revision = getattr(step, "revision", None)
        self.migrations.opts[RUNNING] = getattr(revision, "revision", "")
        if revision is not None and (observer := get_observer(context.config)):
            observer.begin(revision.revision)
        self.resumption.indexes.clear()
        self._set_timeouts(getattr(revision, "module", None))
        self._started = time.monotonic()
        self._span.enter_context(telemetry.span(steps.title(step)))

    def _set_timeouts(self, module: object) -> None:
        """Set the timeouts that a revision declares, or those of the options."""
        if self.blockers is None:
            return
        declared = declared_timeouts(module)
        wanted = self.options.model_copy(update=declared) if declared else self.options
        if self._timeouts is None or self._timeouts[0] != wanted:
            self._timeouts = (wanted, set_timeouts(self.connection, wanted))

    def _applied(self, *, step: MigrationInfo, **_: Any) -> None:
        """Record a revision. Alembic calls this in its transaction, before the commit."""
        if observer := get_observer(context.config):
            observer.end()
        self.resumption.indexes.check()
        direction = steps.direction(step)
        seconds = time.monotonic() - self._started
        if direction is Direction.DOWNGRADE:
            discard_progress(self.connection)
        for revision in steps.revisions(step):
            applied = Event(
                revision=revision,
                direction=direction,
                code_version=self.project.target.code_version,
                seconds=seconds,
                backup=None if step.is_stamp else self._backup,
            )
            timeouts = self.history.write(applied)
            if self._timeouts is not None and self._timeouts[1] != timeouts:
                self._timeouts = None  # the revision changed them; set them again for the next one
