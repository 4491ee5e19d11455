"""Runs revisions on a copy of the schema, and takes down what each statement does there."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from alembic import command
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationStep
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only

from alembic_safety.config import make_config
from alembic_safety.database.statements import watched_statements
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import MigrationError
from alembic_safety.plan.catalog import (
    Change,
    Lock,
    NamedObject,
    Observation,
    Observer,
    Relation,
    called_sources,
    locked_relations,
)
from alembic_safety.plan.fingerprint import (
    Fingerprint,
    FingerprintReader,
    describe_difference,
    settle_search_path,
)
from core.database import create_engine

_OUTSIDE_ONLY = re.compile(
    r"\s*(VACUUM|CLUSTER|REINDEX|CREATE\s+(DATABASE|TABLESPACE)|DROP\s+(DATABASE|TABLESPACE)"
    r"|ALTER\s+(SYSTEM|DATABASE|TYPE)|CALL)\b|.*\bCONCURRENTLY\b",
    re.IGNORECASE | re.DOTALL,
)
"""Statements that PostgreSQL runs only outside of a transaction, or that may be such ones."""
_POLL = 0.002
_UNSEEN = "-- changed without a lock on the table, as by the name of a schema"
_LONGEST_HOLD = 2000
"""Milliseconds for which locks are waited for that the revision itself may hold."""
_OWN = re.compile(
    r"\s*(SHOW\b|SET\b|(CREATE TABLE|INSERT INTO|UPDATE|DELETE FROM|DROP TABLE) alembic_version\b"
    r"|(CREATE TABLE IF NOT EXISTS|INSERT INTO|DELETE FROM|DROP TABLE) alembic_backfill\b"
    r"|SELECT .* FROM alembic_backfill\b|SELECT EXISTS \(SELECT FROM alembic_backfill\))",
)
"""Statements that are Alembic's or core.migrations's, and no revision's."""

_ENDS_TRANSACTION = re.compile(
    r"\s*(BEGIN|START|COMMIT|END|ROLLBACK|ABORT)\b(?!\s+TO\b)", re.IGNORECASE
)
_OF_THE_SERVER = re.compile(
    r"\b(CREATE|ALTER|DROP)\s+(ROLE|USER(?!\s+MAPPING)|GROUP|DATABASE|TABLESPACE|SUBSCRIPTION)\b"
    r"|\bALTER\s+SYSTEM\b|\b(DROP|REASSIGN)\s+OWNED\b",
    re.IGNORECASE,
)
_CREATES_ROUTINE = re.compile(
    r"\s*CREATE\s+(OR\s+REPLACE\s+)?(FUNCTION|PROCEDURE)\b", re.IGNORECASE
)
_QUOTED = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/", re.DOTALL)

_REQUESTED = text(
    """
    SELECT l.relation::bigint AS oid, l.mode, l.granted FROM pg_locks l
    WHERE l.pid = :pid AND l.locktype = 'relation' AND l.relation >= 16384
    """
)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A statement of a revision, and what it did."""

    sql: str
    seconds: float
    in_transaction: bool
    observation: Observation


@dataclass(kw_only=True)
class Rehearsed:
    """A revision that was rehearsed."""

    revision: str
    statements: list[Statement] = field(default_factory=list)
    gone: list[NamedObject] = field(default_factory=list)
    """Functions, sequences and values of enums that are gone after it."""
    before: dict[str, Relation] = field(default_factory=dict)
    """The tables and views that it changes, as they were before it, by name."""
    after: dict[str, Relation] = field(default_factory=dict)
    """Those that have these names after it."""
    error: str = ""
    """Why its upgrade failed; empty where it did not."""
    downgrade_error: str = ""
    """Why its downgrade does not bring the schema back; empty where it does."""


class Confinement:
    """Keeps revisions from changing the live server, where the copy is on it.

    What is for all databases of a server, roles and databases themselves, no copy holds.
    """

    def __init__(self, connection: Connection, *, shared: bool) -> None:
        self._connection = connection
        self._shared = shared
        self._within = False

    def begin(self, _revision: str) -> None:
        """Begin with a revision; the runner calls this before each."""
        self._within = True

    def end(self) -> None:
        """End with it; the runner calls this in its transaction."""
        self._within = False

    def watched(self) -> AbstractContextManager[None]:
        """Watch the connection."""
        return watched_statements(self._connection, self._before)

    def _before(self, _connection: Connection, _cursor: Any, sql: str, *_: Any) -> None:
        if self._within:
            self._within = False  # what this asks itself, is no revision's
            self.refuse(sql)
            self._within = True

    def refuse(self, sql: str) -> None:
        """Refuse a statement that would change the live server.

        Raises:
            MigrationError: it is for what all databases share, or calls a function that is.
        """
        if not self._shared:
            return
        called = called_sources(self._connection, sql)
        said = "" if _CREATES_ROUTINE.match(sql) else sql
        # In a DO block and in functions, a statement may be quoted.
        if not re.match(r"\s*DO\b", sql, re.IGNORECASE):
            said = _QUOTED.sub("''", said)
        if found := _OF_THE_SERVER.search(f"{said}\n{called}"):
            raise MigrationError(
                f"{' '.join(found[0].upper().split())} is for the whole server, and the copy is on "
                "the live one: it is not rehearsed there. Let PLAN_DATABASE_URL name a server where "
                "it may be"
            )


class Recorder:
    """Watches the statements of revisions on a connection."""

    def __init__(
        self, connection: Connection, watcher: "LockWatcher", *, shared: bool = False
    ) -> None:
        self.connection = connection
        self.rehearsed: list[Rehearsed] = []
        self.fingerprints: list[Fingerprint] = []
        """The schema before each."""
        self._schema = FingerprintReader(connection)
        self._confinement = Confinement(connection, shared=shared)
        self._watcher = watcher
        self._observer = Observer(connection)
        self._asking = False
        self._inside = True
        self._began = False
        self._running: object | None = None  # the context of the statement under way
        self._started = 0.0

    def begin(self, revision: str) -> None:
        """Begin with a revision; the runner calls this before each."""
        self._asking = False
        with self._quietly():
            settle_search_path(self.connection)
            if not self.rehearsed:
                self._schema.read()
            self.fingerprints.append(self._schema.fingerprint)
            self._observer.begin()
            self.connection.commit()  # what Alembic began: its version table
        self.rehearsed.append(Rehearsed(revision=revision))

    def end(self) -> None:
        """End with the revision; what follows is the runner's own."""
        self._asking = True
        item = self.rehearsed[-1]
        unseen: tuple[Change, ...] = ()
        if self._schema.read(self._observer.touched):
            unseen, item.gone = self._observer.end()
        if unseen:
            observation = Observation(changes=unseen)
            item.statements.append(
                Statement(sql=_UNSEEN, seconds=0, in_transaction=True, observation=observation)
            )
        named = {c.table for s in item.statements for c in s.observation.changes}
        item.before, item.after = (
            {relation.name: relation for relation in relations if relation.name in named}
            for relations in (
                self._observer.existed.values(),
                self._observer.relations.values(),
            )
        )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the connection."""
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
            await_only(self._watcher.release())

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        before, self._asking = self._asking, True
        try:
            yield
        finally:
            self._asking = before

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
        # What runs while another one is about to be executed is asked by core.migrations.
        if not self.rehearsed or self._asking or self._running:
            return
        if _OWN.match(sql):
            return
        outside = not self._in_transaction()
        if _ENDS_TRANSACTION.match(sql):
            if outside:  # a backfill's
                return
            raise MigrationError(
                f"{sql.split(maxsplit=1)[0].upper()} in a revision ends Alembic's transaction, and "
                "what comes after it is not undone with the rest: with op.get_context()."
                "autocommit_block(): is for statements outside of one"
            )
        with self._quietly():
            self._confinement.refuse(sql)
            if outside:
                self._begin_outside(sql)
        self._running = context
        self._started = time.perf_counter()

    def _begin_outside(self, sql: str) -> None:
        """Let the locks of a statement be seen that is outside of the revision's transaction.

        One that does not need to be runs in a transaction of its own, in which they stay; of
        others they are watched.
        """
        driver: Any = self.connection.connection.driver_connection
        own = driver.is_in_transaction()  # a backfill's
        self._inside = own or not _OUTSIDE_ONLY.match(sql)
        pid = self.connection.scalar(text("SELECT pg_backend_pid()"))
        tables = self._observer.begin_outside(committed=not self._inside)
        if not self._inside:
            await_only(self._watcher.hold(pid, tables))
        elif not own:
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
        # Not the text: the runner may have replaced it.
        if self._asking or context is not self._running:
            return
        seconds = time.perf_counter() - self._started
        in_transaction = self._in_transaction()
        with self._quietly():
            if in_transaction or self._inside:
                observation = self._observer.observe(sql)
                self._end_outside("COMMIT")
            else:
                locks = await_only(self._watcher.release())
                observation = self._observer.observe_committed(sql, locks)
            if not in_transaction:
                self._observer.begin_transaction()
        self._running = None
        self.rehearsed[-1].statements.append(
            Statement(
                sql=sql.strip(),
                seconds=seconds,
                in_transaction=in_transaction,
                observation=observation,
            )
        )

    def _failed(self, _context: Any) -> None:
        if not self._asking:
            self._running = None
            with self._quietly():
                self._end_outside("ROLLBACK")


class LockWatcher:
    """Sees what a statement outside of a transaction locks: it has to wait until it was seen.

    Such a statement's locks are gone when it has ended. A second session holds every table in a
    mode that makes all requests but those of plain queries wait, looks what is asked for, and lets
    go.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._task: asyncio.Task[None] | None = None
        self._seen: dict[int, Lock] = {}
        self._failure: DBAPIError | None = None

    async def hold(self, pid: int | None, tables: list[str]) -> None:
        """Lock the tables, and look what `pid` asks for from now on.

        Raises:
            DBAPIError: they can't be locked: what the statement takes would not be seen.
        """
        await self.release()
        self._seen, self._failure = {}, None
        locked = asyncio.Event()
        self._task = asyncio.create_task(self._watch(pid, tables, locked))
        await locked.wait()
        if self._failure is not None:
            raise self._failure

    async def release(self) -> dict[int, Lock]:
        """Return the strongest lock that was seen on each table."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError, DBAPIError):
                await self._task
            self._task = None
        return self._seen

    async def _watch(self, pid: int | None, tables: list[str], locked: asyncio.Event) -> None:
        async with self._engine.connect() as holder, self._engine.connect() as looker:
            await looker.execution_options(isolation_level="AUTOCOMMIT")
            try:
                if tables:
                    names = ", ".join(tables)
                    await holder.exec_driver_sql(f"SET LOCAL lock_timeout = {_LONGEST_HOLD}")
                    await holder.exec_driver_sql(f"LOCK TABLE {names} IN EXCLUSIVE MODE")
            except DBAPIError as error:
                self._failure = error
                return
            finally:
                locked.set()
            while True:
                waits = await self._look(looker, pid)
                if waits:
                    await holder.rollback()
                await asyncio.sleep(_POLL)

    async def _look(self, connection: AsyncConnection, pid: int | None) -> bool:
        waits = False
        for row in await connection.execute(_REQUESTED, {"pid": pid}):
            lock = Lock.parse(row.mode)
            self._seen[row.oid] = max(lock, self._seen.get(row.oid, lock))
            waits = waits or not row.granted
        return waits


async def rehearse(
    url: DatabaseURL, target: str, *, shared: bool = False, downgrades: bool = True
) -> list[Rehearsed]:
    """Run the pending revisions up to `target` at `url`, a copy; return what each did.

    A revision that fails is the last one. Where `downgrades`, all that were applied are reverted
    again, and what differs then from before is said. On a `shared` server, what is for all of its
    databases is refused.
    """
    async with _engine(url) as engine, engine.connect() as connection:
        watcher = LockWatcher(engine)
        recorder = await connection.run_sync(lambda sync: Recorder(sync, watcher, shared=shared))
        await connection.run_sync(_upgrade, recorder, target)
        if downgrades and not any(item.error for item in recorder.rehearsed):
            await connection.run_sync(_downgrade, recorder, shared=shared)
        return recorder.rehearsed


def _upgrade(connection: Connection, recorder: Recorder, target: str) -> None:
    with recorder.watched():
        try:
            command.upgrade(make_config(connection=connection, recorder=recorder), target)
        except CommandError as error:
            if not recorder.rehearsed:
                raise
            recorder.rehearsed[-1].error = str(error)


def _downgrade(connection: Connection, recorder: Recorder, *, shared: bool) -> None:
    """Revert what was applied, and say what differs then from before."""
    items = list(reversed(recorder.rehearsed))
    steps = [Step(item.revision, up=False) for item in items]
    walk = Walk(connection, shared=shared)
    error = walk.run(steps)
    befores = reversed(recorder.fingerprints)
    lost: Fingerprint = frozenset()
    left: Fingerprint = frozenset()
    for item, before, after in zip(items, befores, walk.fingerprints[1:], strict=False):
        # What a later one had left or lost is not this one's doing.
        newly_lost, newly_left = before - after - lost, after - before - left
        lost, left = before - after, after - before
        if newly_lost or newly_left:
            item.downgrade_error = f"the downgrade {describe_difference(newly_lost, newly_left)}"
    if error:
        items[len(walk.fingerprints) - 1].downgrade_error = error


class Step(NamedTuple):
    """A revision to run, whatever branches and merges there are around it."""

    revision: str
    up: bool


class Walk(Confinement):
    """Runs revisions up and down on a connection, and reads the schema after each."""

    def __init__(self, connection: Connection, *, shared: bool) -> None:
        super().__init__(connection, shared=shared)
        self.fingerprints: list[Fingerprint] = []
        """The schema before the first step, and after each that was done."""
        self._schema = FingerprintReader(connection)
        self._outside = False

    def run(self, steps: Sequence[Step]) -> str:
        """Run the steps; return why one failed, which ended it, or nothing."""
        confirm = self._connection.scalar(text("SELECT current_database()"))
        config = make_config(connection=self._connection, recorder=self, confirm=confirm)
        self._schema.read()
        self._connection.rollback()
        self.fingerprints.append(self._schema.fingerprint)
        script = ScriptDirectory.from_config(config)
        try:
            with self.watched():
                for step in steps:
                    _run_alone(step, config, script)
        except CommandError as error:
            return str(error)
        return ""

    def begin(self, revision: str) -> None:
        """Begin with a revision; the runner calls this before each."""
        super().begin(revision)
        self._outside = False

    def end(self) -> None:
        """End with it; the runner calls this in its transaction."""
        super().end()
        self._schema.read(None if self._outside else locked_relations(self._connection))
        self.fingerprints.append(self._schema.fingerprint)

    def _before(self, connection: Connection, cursor: Any, sql: str, *rest: Any) -> None:
        super()._before(connection, cursor, sql, *rest)
        if self._within:
            options = connection.get_execution_options()
            self._outside = self._outside or options.get("isolation_level") == "AUTOCOMMIT"


def _run_alone(step: Step, config: Config, script: ScriptDirectory) -> None:
    """Run a step as a command of its own would, without what Alembic remembers of other steps.

    A MigrationContext remembers which named types it has created, and does not create them again.
    """
    make = MigrationStep.upgrade_from_script if step.up else MigrationStep.downgrade_from_script
    alone = make(script.revision_map, script.get_revision(step.revision))
    with EnvironmentContext(config, script, fn=lambda *_: [alone], destination_rev="heads"):
        script.run_env()


@asynccontextmanager
async def _engine(url: DatabaseURL) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(url, poolclass=NullPool)
    try:
        yield engine
    finally:
        await engine.dispose()
