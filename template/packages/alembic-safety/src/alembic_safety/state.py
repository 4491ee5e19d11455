"""State of the schema, for status, readiness and metrics."""

import asyncio
import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Self

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from alembic_safety import alembic_internals
from alembic_safety.boundary import describe_error, migration_errors
from alembic_safety.cancellation import interruptible
from alembic_safety.config import make_config
from alembic_safety.database.history import TABLE, Direction
from alembic_safety.errors import DatabaseUnavailableError
from alembic_safety.run.indexes import COUNT_INVALID
from alembic_safety.sql import SQLState, get_sqlstate

logger = logging.getLogger(__name__)

_CREATE_DATE = re.compile(r"^Create Date: (\d{4}-\d\d-\d\d \d\d:\d\d)", re.MULTILINE)

_READ_CURRENT = text("SELECT version_num FROM alembic_version")
# One query for all metrics. Times are Unix timestamps in seconds.
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
    """Revision of the database, compared with the revisions of the code."""

    AT_HEAD = "at head"
    BEHIND = "behind"
    AHEAD = "ahead"
    """At a revision that is not in this code: another release migrated the database."""
    UNVERSIONED = "unversioned"
    """Without Alembic's version table."""
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A revision of the code."""

    id: str
    message: str
    date: str
    """Create Date of the file; an empty string if there is none."""
    parents: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Summary of the migration history. Times are Unix timestamps in seconds."""

    last_revision: str | None
    """The revision that was applied or reverted last."""
    last_direction: Direction | None
    last_ended: float | None
    last_seconds: float | None
    """Duration of the last revision, in seconds."""
    failures: int
    """Number of failures since the history began."""
    failed_at: float | None
    backed_up_at: float | None
    """Start of the last full backup."""
    invalid_indexes: int
    """Number of invalid indexes, without those that are being built."""


@dataclass(frozen=True, kw_only=True)
class SchemaState:
    """State of a database, with the revisions it was derived from."""

    state: State
    current: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    pending: tuple[Revision, ...] = ()
    """Revisions to apply, in order."""
    reason: str = ""
    recorded: Recorded | None = None
    """None if the database has no history yet, or the role may not read it."""

    @classmethod
    def unreachable(cls, reason: str) -> Self:
        """Return the state of a database that can't be queried."""
        return cls(state=State.UNREACHABLE, reason=reason)

    def describe(self) -> str:
        """Return the state as a sentence, without a capital and a full stop."""
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
                return f"the database is unreachable: {self.reason}"


class Revisions:
    """The revisions of the code, loaded once."""

    def __init__(self, script: ScriptDirectory) -> None:
        self.heads = tuple(sorted(script.get_heads()))
        self._ordered = [
            Revision(
                id=item.revision,
                message=item.doc,
                date=match[1] if (match := _CREATE_DATE.search(item.longdoc)) else "",
                parents=alembic_internals.all_parents(item),
            )
            for item in reversed(list(script.walk_revisions()))
        ]
        self._by_id = {revision.id: revision for revision in self._ordered}

    @classmethod
    def load(cls, config: Config | Path) -> Self:
        """Import all revisions.

        Args:
            config: configuration of Alembic, or the folder of the project's pyproject.toml.

        Raises:
            MigrationError: a revision can't be imported, or follows one that does not exist.
        """
        with migration_errors(), interruptible():
            if isinstance(config, Path):
                config = make_config(config)
            return cls(ScriptDirectory.from_config(config))

    def __getitem__(self, revision: str) -> Revision:
        return self._by_id[revision]

    def __contains__(self, revision: str) -> bool:
        return revision in self._by_id

    def state(self, current: Iterable[str], *, versioned: bool = True) -> SchemaState:
        """Return the state of a database at the revisions `current`.

        Args:
            current: content of Alembic's version table.
            versioned: whether that table exists.
        """
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
        pending = list(revisions)
        while pending:
            revision = pending.pop()
            if revision not in found:
                found.add(revision)
                pending.extend(self._by_id[revision].parents)
        return found


class SchemaReader:
    """Reader of the schema's state, which caches it and shares concurrent queries."""

    def __init__(
        self,
        engine: AsyncEngine,
        revisions: Revisions,
        *,
        max_age: float = 0.0,
        deadline: float | None = None,
    ) -> None:
        """Create a reader. It does not connect before `read`.

        Args:
            engine: engine of the database.
            revisions: revisions of the code.
            max_age: seconds to cache a state.
            deadline: seconds to wait for the database; None waits forever.
        """
        self._engine = engine
        self._revisions = revisions
        self._max_age = max_age
        self._deadline = deadline
        self._cached: SchemaState | None = None
        self._cached_at = 0.0
        self._query: asyncio.Task[SchemaState] | None = None
        self._warned = False

    async def read(self) -> SchemaState:
        """Return the state; a database that can't be reached is `State.UNREACHABLE`.

        Concurrent calls share one query.
        """
        if self._cached is not None and time.monotonic() - self._cached_at < self._max_age:
            return self._cached
        query = self._query
        if query is None:
            query = self._query = asyncio.create_task(self._run_query())
        # asyncio.timeout would also wait for the connection to close, which can take long if the
        # server hangs. Cancel the query in the background instead.
        done, _ = await asyncio.wait({query}, timeout=self._deadline)
        if not done or query.cancelled():  # by a caller whose deadline was earlier
            query.cancel()
            state = SchemaState.unreachable(f"no answer within {self._deadline} s")
        else:
            state = query.result()
        if self._query is query:
            self._query = None
            self._cached, self._cached_at = state, time.monotonic()
        return state

    async def _run_query(self) -> SchemaState:
        try:
            async with self._engine.connect() as connection:
                return await self._run_query_on(connection)
        except DBAPIError as error:
            if get_sqlstate(error) == SQLState.UNDEFINED_TABLE:
                return self._revisions.state((), versioned=False)
            return SchemaState.unreachable(describe_error(error))
        except (DatabaseUnavailableError, PoolTimeoutError) as error:
            return SchemaState.unreachable(str(error))

    async def _run_query_on(self, connection: AsyncConnection) -> SchemaState:
        try:
            row = dict((await connection.execute(_READ_ALL)).mappings().one())
        except DBAPIError as error:
            code = get_sqlstate(error)
            if code not in {SQLState.UNDEFINED_TABLE, SQLState.INSUFFICIENT_PRIVILEGE}:
                raise
            await connection.rollback()
            if code == SQLState.INSUFFICIENT_PRIVILEGE and not self._warned:
                self._warned = True
                logger.warning("the migration history can't be read: %s; grant SELECT", error.orig)
            return self._revisions.state(await connection.scalars(_READ_CURRENT))
        state = self._revisions.state(row.pop("current"))
        return replace(state, recorded=Recorded(**row))
