"""Recorder of a rehearsal: the statements of each revision, with their effects."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, event, text

from alembic_safety.database.session import await_in_session, is_in_block
from alembic_safety.errors import MigrationError
from alembic_safety.plan.diff import Change
from alembic_safety.plan.effects import EffectReader, StatementEffects
from alembic_safety.plan.fingerprint import Fingerprint, FingerprintReader, settle_search_path
from alembic_safety.plan.guard import ServerGuard
from alembic_safety.plan.locks import LockWatcher
from alembic_safety.plan.progress import Progress
from alembic_safety.plan.snapshot import NamedObject, Relation
from alembic_safety.run.observer import Observer

_NO_TRANSACTION = re.compile(
    r"\s*(VACUUM|CLUSTER|REINDEX|CREATE\s+(DATABASE|TABLESPACE)|DROP\s+(DATABASE|TABLESPACE)"
    r"|ALTER\s+(SYSTEM|DATABASE|TYPE)|CALL)\b|.*\bCONCURRENTLY\b",
    re.IGNORECASE | re.DOTALL,
)
"""Statements that PostgreSQL refuses, or may refuse, in a transaction block."""
_ENGINE = re.compile(
    r"\s*(SHOW\b|SET\b|SELECT pg_advisory_unlock\b|(CREATE TABLE|INSERT INTO|UPDATE|DELETE FROM|DROP TABLE) alembic_version\b"
    r"|(CREATE TABLE IF NOT EXISTS|INSERT INTO|DELETE FROM|DROP TABLE) alembic_backfill\b"
    r"|SELECT .* FROM alembic_backfill\b|SELECT EXISTS \(SELECT FROM alembic_backfill\))",
)
"""Statements of Alembic and of this engine."""
_ENDS_TRANSACTION = re.compile(
    r"\s*(BEGIN|START|COMMIT|END|ROLLBACK|ABORT)\b(?!\s+TO\b)", re.IGNORECASE
)
_WITHOUT_LOCK = "-- changed without a lock on the table, as by renaming its schema"


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A statement of a revision, and its effects."""

    sql: str
    seconds: float
    in_transaction: bool
    """Whether it ran in the revision's transaction."""
    effects: StatementEffects


@dataclass(kw_only=True)
class RehearsedRevision:
    """A revision, as it was seen in a rehearsal."""

    revision: str
    statements: list[Statement] = field(default_factory=list)
    gone: list[NamedObject] = field(default_factory=list)
    """Functions, sequences and enum values that it dropped."""
    before: dict[str, Relation] = field(default_factory=dict)
    """The relations that it changes, as they were before it, by name."""
    after: dict[str, Relation] = field(default_factory=dict)
    """The relations that have these names after it."""
    error: str = ""
    """Why its upgrade failed; empty if it succeeded."""
    downgrade_error: str = ""
    """Why its downgrade does not restore the schema; empty if it does, or was not run."""


class Recorder(Observer):
    """Observer that records the statements of each revision, and their effects."""

    def __init__(
        self, connection: Connection, watcher: LockWatcher, *, shared: bool = False
    ) -> None:
        self.connection = connection
        self.revisions: list[RehearsedRevision] = []
        self.fingerprints: list[Fingerprint] = []
        """Fingerprints of the schema before each revision."""
        self._schema = FingerprintReader(connection)
        self._guard = ServerGuard(connection, shared=shared)
        self._watcher = watcher
        self._effects = EffectReader(connection)
        self._paused = False
        self._in_block = True
        """Whether the statement that runs is in a transaction block."""
        self._began = False
        """Whether the recorder began that block."""
        self._running: object | None = None
        """Execution context of the statement that runs."""
        self._started = 0.0
        self._progress = Progress()

    def begin(self, revision: str, /) -> None:
        """Begin a revision."""
        self._progress.begin(revision)
        self._paused = False
        with self._pause():
            settle_search_path(self.connection)
            if not self.revisions:
                self._schema.read()
            self.fingerprints.append(self._schema.fingerprint)
            self._effects.begin()
            self.connection.commit()  # Alembic may have created its version table
        self.revisions.append(RehearsedRevision(revision=revision))

    def end(self) -> None:
        """End the revision."""
        self._paused = True  # the runner's own statements follow
        item = self.revisions[-1]
        without_lock: tuple[Change, ...] = ()
        if self._schema.read(self._effects.touched):
            without_lock, item.gone = self._effects.end()
        if without_lock:
            effects = StatementEffects(changes=without_lock)
            item.statements.append(
                Statement(sql=_WITHOUT_LOCK, seconds=0, in_transaction=True, effects=effects)
            )
        named = {change.table for s in item.statements for change in s.effects.changes}
        item.before, item.after = (
            {relation.name: relation for relation in relations if relation.name in named}
            for relations in (
                self._effects.existed.values(),
                self._effects.relations.values(),
            )
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the statements of the connection."""
        engine = self.connection.engine
        event.listen(self.connection, "before_cursor_execute", self._before)
        event.listen(self.connection, "after_cursor_execute", self._after)
        event.listen(engine, "handle_error", self._failed)
        try:
            yield
        finally:
            event.remove(self.connection, "before_cursor_execute", self._before)
            event.remove(self.connection, "after_cursor_execute", self._after)
            event.remove(engine, "handle_error", self._failed)
            await_in_session(self._watcher.stop())

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Record none of the statements in the block."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _in_transaction(self) -> bool:
        return self.connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT"

    def _before(
        self,
        _connection: Connection,
        _cursor: Any,
        sql: str,
        _parameters: Any,
        context: Any,
        *_: Any,
    ) -> None:
        # Other listeners of the engine run statements before the current one.
        if not self.revisions or self._paused or self._running:
            return
        if _ENGINE.match(sql):
            return
        outside = not self._in_transaction()
        if _ENDS_TRANSACTION.match(sql):
            if outside:  # in_batches() commits each batch
                return
            raise MigrationError(
                f"{sql.split(maxsplit=1)[0].upper()} in a revision ends Alembic's transaction, so "
                "that what follows is not rolled back if the revision fails. Use with "
                "op.get_context().autocommit_block(): for statements outside a transaction"
            )
        with self._pause():
            self._guard.check(sql)
            if outside:
                self._begin_outside(sql)
        self._running = context
        self._started = time.perf_counter()

    def _begin_outside(self, sql: str) -> None:
        """Prepare to see the locks of a statement outside the revision's transaction.

        Where PostgreSQL allows it, the statement runs in a transaction block, which keeps its
        locks until they were read. Otherwise the watcher looks at them while it runs.
        """
        in_batch = is_in_block(self.connection)  # in_batches() has begun one
        self._in_block = in_batch or not _NO_TRANSACTION.match(sql)
        pid = self.connection.scalar(text("SELECT pg_backend_pid()"))
        tables = self._effects.begin_outside(committed=not self._in_block)
        if not self._in_block:
            await_in_session(self._watcher.start(pid, tables))
        elif not in_batch:
            self.connection.exec_driver_sql("BEGIN")
            self._began = True

    def _end_outside(self, statement: str) -> None:
        if self._began:
            self._began = False
            self.connection.exec_driver_sql(statement)

    def _after(
        self,
        _connection: Connection,
        _cursor: Any,
        sql: str,
        _parameters: Any,
        context: Any,
        *_: Any,
    ) -> None:
        # Contexts are compared, not texts: the runner may have replaced the statement.
        if self._paused or context is not self._running:
            return
        seconds = time.perf_counter() - self._started
        in_transaction = self._in_transaction()
        with self._pause():
            if in_transaction or self._in_block:
                effects = self._effects.read(sql)
                self._end_outside("COMMIT")
            else:
                locks = await_in_session(self._watcher.stop())
                effects = self._effects.read_committed(sql, locks)
            if not in_transaction:
                self._effects.begin_transaction()
        self._running = None
        self.revisions[-1].statements.append(
            Statement(
                sql=self._as_written(sql),
                seconds=seconds,
                in_transaction=in_transaction,
                effects=effects,
            )
        )

    def _as_written(self, sql: str) -> str:
        # SQLAlchemy doubles the percent signs for drivers whose parameters begin with one.
        doubled = self.connection.dialect.paramstyle in {"format", "pyformat"}
        return (sql.replace("%%", "%") if doubled else sql).strip()

    def _failed(self, _context: Any) -> None:
        if not self._paused:
            self._running = None
            with self._pause():
                self._end_outside("ROLLBACK")
