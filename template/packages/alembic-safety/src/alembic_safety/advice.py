"""What to do about errors of Alembic and of PostgreSQL."""

import re

from alembic_safety.sql import SQLState

# Patterns of Alembic's messages.
_ALEMBIC = {
    r"Multiple head revisions": (
        "the code has two heads: two revisions follow the same one, often after a merge of two "
        "branches. Join them with `uv run alembic merge heads -m 'Merge'`, or let one follow the "
        "other by its down_revision; `uv run alembic heads` lists them."
    ),
    r"Can't locate revision identified by '(?P<revision>.*)'": (
        "there is no revision {revision!r} in this code. If the database is at it, it was migrated "
        "by a newer release or from another branch: run that code, or downgrade with it first. "
        "If that code is gone and so may be the data, drop the database (of the project's own "
        "server: `make db-stop`, and delete .postgres)."
    ),
    r"Ambiguous walk": (
        "the last revision joins several, so that it is not clear where one step down leads; name "
        "the revision to go to: `uv run alembic downgrade <revision>` (`uv run alembic history` "
        "lists them)."
    ),
    r"overlaps with other requested revisions": (
        "two heads, or two files with the same revision id; `uv run alembic heads` lists the heads."
    ),
    r"Target database is not up to date": (
        "the database is not at head, so that there is nothing to compare the models with; "
        "run `make migrate-up` first."
    ),
    r"Relative revision -\d+ didn't produce \d+ migrations": (
        "there are not so many revisions to go down; `make migrate-status` shows where the "
        "database is."
    ),
}

_SQLSTATE: dict[str, str] = {
    SQLState.READ_ONLY_SQL_TRANSACTION: "the database is read-only: a replica, or set so; migrate the primary",
    SQLState.INSUFFICIENT_PRIVILEGE: (
        "this user may not do that; grant it the right, or give the address of a user who may in "
        "MIGRATION_DATABASE_URL"
    ),
    SQLState.DISK_FULL: "the server's disk is full",
    SQLState.QUERY_CANCELED: (
        "the statement ran for longer than statement_timeout: raise it in the revision "
        '(statement_timeout = "10min" at the top of its file)'
    ),
}
CONNECTION_LOST = (
    "the connection was lost: revisions that had ended are applied, the one that ran is not (but "
    "for what it ran in an autocommit block); run this again"
)


def for_alembic(message: str) -> str:
    """Return what to do about a message of Alembic's, or the message itself."""
    for pattern, advice in _ALEMBIC.items():
        if match := re.search(pattern, message):
            return advice.format(**match.groupdict())
    return message


def for_sqlstate(sqlstate: str) -> str | None:
    """Return what to do about an error of PostgreSQL."""
    return _SQLSTATE.get(sqlstate)
