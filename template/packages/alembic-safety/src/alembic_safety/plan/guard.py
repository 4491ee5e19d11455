"""Guard of the live server: refuses statements that would change more than the scratch copy."""

import re
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection

from alembic_safety.database.statements import watched_statements
from alembic_safety.errors import MigrationError
from alembic_safety.plan.progress import Progress
from alembic_safety.plan.snapshot import read_called_source
from alembic_safety.run.observer import Observer

_SERVER_WIDE = re.compile(
    r"\b(CREATE|ALTER|DROP)\s+(ROLE|USER(?!\s+MAPPING)|GROUP|DATABASE|TABLESPACE|SUBSCRIPTION)\b"
    r"|\bALTER\s+SYSTEM\b|\b(DROP|REASSIGN)\s+OWNED\b",
    re.IGNORECASE,
)
_CREATES_ROUTINE = re.compile(
    r"\s*CREATE\s+(OR\s+REPLACE\s+)?(FUNCTION|PROCEDURE)\b", re.IGNORECASE
)
_QUOTED = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/", re.DOTALL)


class ServerGuard(Observer):
    """Observer that refuses a revision's statements on roles, databases and other shared objects.

    A scratch copy on the live server does not isolate them.
    """

    def __init__(self, connection: Connection, *, shared: bool) -> None:
        self._connection = connection
        self._shared = shared
        self._in_revision = False
        self._progress = Progress()

    def begin(self, revision: str, /) -> None:
        """Begin a revision."""
        self._progress.begin(revision)
        self._in_revision = True

    def end(self) -> None:
        """End the revision."""
        self._in_revision = False

    def watching(self) -> AbstractContextManager[None]:
        """Watch the statements of the connection."""
        return watched_statements(self._connection, self._before)

    def _before(self, _connection: Connection, _cursor: Any, sql: str, *_: Any) -> None:
        if self._in_revision:
            self._in_revision = False  # the guard's own queries are not the revision's
            self.check(sql)
            self._in_revision = True

    def check(self, sql: str) -> None:
        """Check a statement, and the functions that it may call.

        Raises:
            MigrationError: the copy is on the live server, and the statement would change that.
        """
        if not self._shared:
            return
        called = read_called_source(self._connection, sql)
        executed = "" if _CREATES_ROUTINE.match(sql) else sql
        # DO blocks and functions may execute a quoted statement.
        if not re.match(r"\s*DO\b", sql, re.IGNORECASE):
            executed = _QUOTED.sub("''", executed)
        if found := _SERVER_WIDE.search(f"{executed}\n{called}"):
            raise MigrationError(
                f"{' '.join(found[0].upper().split())} is for the whole server, and the copy is on "
                "the live one, so it was not run there. Set PLAN_DATABASE_URL (Target.plan_url in "
                "migrations/env.py) to another server to rehearse it"
            )
