"""What state the schema is in: the one answer that status, readiness and metrics give."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from core.database import DatabaseUnavailableError
from core.migrations.config import make_config
from core.migrations.errors import describe_error, migration_errors

_CREATE_DATE = re.compile(r"^Create Date: (\d{4}-\d\d-\d\d \d\d:\d\d)", re.MULTILINE)
_UNDEFINED_TABLE = "42P01"


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
class SchemaState:
    """The state, and what it was concluded from."""

    state: State
    current: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    pending: tuple[Revision, ...] = ()
    """The revisions to apply, in their order."""
    reason: str = ""

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

    def __init__(self, engine: AsyncEngine, revisions: Revisions) -> None:
        self._engine = engine
        self._revisions = revisions

    async def read(self) -> SchemaState:
        """Return the state now. A database that can't be asked is a state, not an exception."""
        try:
            async with self._engine.connect() as connection:
                rows = await connection.scalars(text("SELECT version_num FROM alembic_version"))
                return self._revisions.state(rows.all())
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) == _UNDEFINED_TABLE:
                return self._revisions.state((), versioned=False)
            return SchemaState.unreachable(describe_error(error))
        except (DatabaseUnavailableError, PoolTimeoutError) as error:
            return SchemaState.unreachable(str(error))
