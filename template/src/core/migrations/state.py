"""What state the schema is in: the one answer that status, readiness and metrics give."""

import asyncio
import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.database import DatabaseUnavailableError
from core.migrations.config import make_config
from core.migrations.errors import describe_error, migration_errors
from core.migrations.indexes import COUNT_INVALID
from core.migrations.record import TABLE, Direction
from core.migrations.sql import SQLState, get_sqlstate

logger = logging.getLogger(__name__)

_CREATE_DATE = re.compile(r"^Create Date: (\d{4}-\d\d-\d\d \d\d:\d\d)", re.MULTILINE)

_READ_CURRENT = text("SELECT version_num FROM alembic_version")
# One small question for all that is watched. Times are seconds since 1970.
_READ_ALL = text(
    f"""
    WITH record AS (
        SELECT id, revision, direction, backup, extract(epoch FROM duration)::float8 AS seconds,
               extract(epoch FROM started_at)::float8 AS started,
               extract(epoch FROM started_at + duration)::float8 AS ended,
               to_jsonb(history) ->> 'error' IS NOT NULL AS failed
        FROM {TABLE} history
    ), last AS (
        SELECT revision, direction, ended, seconds FROM record
        WHERE NOT failed AND direction IN ('{Direction.UPGRADE}', '{Direction.DOWNGRADE}')
        ORDER BY id DESC LIMIT 1
    )
    SELECT ARRAY(SELECT version_num FROM alembic_version) AS current,
           last.revision AS last_revision, last.direction AS last_direction,
           last.ended AS last_ended, last.seconds AS last_seconds,
           (SELECT count(*) FROM record WHERE failed) AS failures,
           (SELECT max(ended) FROM record WHERE failed) AS failed_at,
           (SELECT min(started) FROM record WHERE backup NOT LIKE '%.schema.dump'
            GROUP BY backup ORDER BY 1 DESC LIMIT 1) AS backed_up_at,
           ({COUNT_INVALID}) AS invalid_indexes
    FROM (SELECT) one LEFT JOIN last ON true
    """  # noqa: S608
)


class State(StrEnum):
    """How the database's schema stands to the revisions of the code."""

    AT_HEAD = "at head"
    BEHIND = "behind"
    AHEAD = "ahead"
    """At a revision that this code does not have: a newer release migrated it."""
    UNVERSIONED = "unversioned"
    """Alembic has never run there."""
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A revision of the code."""

    id: str
    message: str
    date: str
    """When it was created, as its file says; empty where the file does not say."""
    parents: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What the record of migrations says in short. Times are seconds since 1970."""

    last_revision: str | None
    """That was applied or reverted last."""
    last_direction: Direction | None
    last_ended: float | None
    last_seconds: float | None
    """How long it took."""
    failures: int
    """Since the record began."""
    failed_at: float | None
    backed_up_at: float | None
    """When the last backup was made that holds the rows, too."""
    invalid_indexes: int
    """That PostgreSQL does not use; those that are being built do not count."""


@dataclass(frozen=True, kw_only=True)
class SchemaState:
    """The state, and what it was concluded from."""

    state: State
    current: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    pending: tuple[Revision, ...] = ()
    """The revisions to apply, in their order."""
    reason: str = ""
    recorded: Recorded | None = None
    """None where nothing was recorded yet, or where this role may not read it."""

    @classmethod
    def unreachable(cls, reason: str) -> Self:
        """Return the state of a database that can't be asked."""
        return cls(state=State.UNREACHABLE, reason=reason)

    def describe(self) -> str:
        """Return the state in a sentence."""
        count = f"{len(self.pending)} revision{'s' if len(self.pending) != 1 else ''}"
        match self.state:
            case State.AT_HEAD:
                return "the database is at head"
            case State.BEHIND:
                return f"the database is behind by {count}"
            case State.UNVERSIONED:
                return f"the database was never migrated; {count} pending"
            case State.AHEAD:
                return (
                    f"the database is at revision {', '.join(self.current)}, "
                    "which this code does not have: it was migrated by another release"
                )
            case State.UNREACHABLE:
                return f"the database can't be asked: {self.reason}"


class Revisions:
    """The revisions of the code, read once."""

    def __init__(self, script: ScriptDirectory) -> None:
        self.heads = tuple(sorted(script.get_heads()))
        self._ordered = [
            Revision(
                id=item.revision,
                message=item.doc,
                date=match[1] if (match := _CREATE_DATE.search(item.longdoc)) else "",
                parents=tuple(item._all_down_revisions),  # noqa: SLF001
            )
            for item in reversed(list(script.walk_revisions()))
        ]
        self._by_id = {revision.id: revision for revision in self._ordered}

    @classmethod
    def load(cls) -> Self:
        """Import every revision and return them.

        Raises:
            MigrationError: one of them can't be imported, or refers to none.
        """
        with migration_errors():
            return cls(ScriptDirectory.from_config(make_config()))

    def __getitem__(self, revision: str) -> Revision:
        return self._by_id[revision]

    def __contains__(self, revision: str) -> bool:
        return revision in self._by_id

    def state(self, current: Iterable[str], *, versioned: bool = True) -> SchemaState:
        """Return the state of a database that is at `current`."""
        current = tuple(sorted(current))
        if any(revision not in self._by_id for revision in current):
            return SchemaState(state=State.AHEAD, current=current, heads=self.heads)
        applied = self._with_ancestors(current)
        pending = tuple(item for item in self._ordered if item.id not in applied)
        behind = State.BEHIND if versioned else State.UNVERSIONED
        state = behind if pending else State.AT_HEAD
        return SchemaState(state=state, current=current, heads=self.heads, pending=pending)

    def _with_ancestors(self, revisions: Iterable[str]) -> set[str]:
        found: set[str] = set()
        waiting = list(revisions)
        while waiting:
            revision = waiting.pop()
            if revision not in found:
                found.add(revision)
                waiting.extend(self._by_id[revision].parents)
        return found


class SchemaReader:
    """Asks a database for its revision and compares it with the code's."""

    def __init__(
        self,
        engine: AsyncEngine,
        revisions: Revisions,
        *,
        max_age: float = 0.0,
        deadline: float | None = None,
    ) -> None:
        """Make a reader; nothing is asked yet.

        Args:
            engine: of the database.
            revisions: of the code.
            max_age: seconds for which an answer is given again.
            deadline: seconds after which a database that did not answer is unreachable.
        """
        self._engine = engine
        self._revisions = revisions
        self._max_age = max_age
        self._deadline = deadline
        self._answer: SchemaState | None = None
        self._answered = 0.0
        self._question: asyncio.Task[SchemaState] | None = None
        self._said = False

    async def read(self) -> SchemaState:
        """Return the state. A database that can't be asked is a state, not an exception.

        Whoever asks while a question is open waits for its answer.
        """
        if self._answer is not None and time.monotonic() - self._answered < self._max_age:
            return self._answer
        question = self._question
        if question is None:
            question = self._question = asyncio.create_task(self._ask())
        # Not asyncio.timeout: closing a connection to a server that hangs can itself take long.
        # The question is left behind, and an answer given.
        done, _ = await asyncio.wait({question}, timeout=self._deadline)
        if not done or question.cancelled():  # by another one, whose patience ended before
            question.cancel()
            answer = SchemaState.unreachable(f"no answer within {self._deadline} s")
        else:
            answer = question.result()
        if self._question is question:
            self._question = None
            self._answer, self._answered = answer, time.monotonic()
        return answer

    async def _ask(self) -> SchemaState:
        try:
            async with self._engine.connect() as connection:
                return await self._ask_on(connection)
        except DBAPIError as error:
            if get_sqlstate(error) == SQLState.UNDEFINED_TABLE:
                return self._revisions.state((), versioned=False)
            return SchemaState.unreachable(describe_error(error))
        except (DatabaseUnavailableError, PoolTimeoutError) as error:
            return SchemaState.unreachable(str(error))

    async def _ask_on(self, connection: AsyncConnection) -> SchemaState:
        try:
            row = dict((await connection.execute(_READ_ALL)).mappings().one())
        except DBAPIError as error:
            sqlstate = get_sqlstate(error)
            if sqlstate not in {SQLState.UNDEFINED_TABLE, SQLState.INSUFFICIENT_PRIVILEGE}:
                raise
            await connection.rollback()
            if sqlstate == SQLState.INSUFFICIENT_PRIVILEGE and not self._said:
                self._said = True
                logger.warning("the record of migrations can't be read: %s", error.orig)
            return self._revisions.state(await connection.scalars(_READ_CURRENT))
        state = self._revisions.state(row.pop("current"))
        return replace(state, recorded=Recorded(**row))
