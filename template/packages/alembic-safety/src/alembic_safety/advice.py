"""Messages for known errors of Alembic and PostgreSQL, with what to do."""

import re

from alembic_safety.sql import SQLState

# Keys match the messages of Alembic.
_ALEMBIC = {
    r"Multiple head revisions": (
        "the code has two heads: two revisions follow the same one, often after a merge of two "
        "branches. Join them with `alembic merge heads -m 'Merge'`, or set the down_revision of "
        "one to the other; `alembic heads` lists them."
    ),
    r"Can't locate revision identified by '(?P<revision>.*)'": (
        "there is no revision {revision!r} in this code. If the database is at that revision, a "
        "newer release or another branch migrated it: run that code, or downgrade with it first. "
        "If that code is gone and you do not need the data, drop the database."
    ),
    r"Ambiguous walk": (
        "the last revision merges several, so one step down is ambiguous; name the revision to go "
        "to: `alembic downgrade <revision>` (`alembic history` lists them)."
    ),
    r"overlaps with other requested revisions": (
        "there are two heads, or two files with the same revision id; `alembic heads` lists the "
        "heads."
    ),
    r"Target database is not up to date": (
        "the database is not at head, so the models can't be compared with it; run `alembic "
        "upgrade head` first."
    ),
    r"Relative revision -\d+ didn't produce \d+ migrations": (
        "there are not so many revisions to revert; `alembic-safety status` shows the revision of "
        "the database."
    ),
}

_SQLSTATE: dict[str, str] = {
    SQLState.READ_ONLY_SQL_TRANSACTION: (
        "the database is read-only (a replica, or default_transaction_read_only); migrate the "
        "primary"
    ),
    SQLState.INSUFFICIENT_PRIVILEGE: (
        "the user of the migrations lacks a privilege; grant it, or set MIGRATION_DATABASE_URL "
        "(Target.url in migrations/env.py) to the URL of a user that has it"
    ),
    SQLState.DISK_FULL: "the disk of the server is full; free space, and run this command again",
    SQLState.QUERY_CANCELED: (
        "if the statement ran for longer than statement_timeout, raise it in the revision "
        '(statement_timeout = "10min" at the top of its file); if someone canceled it, run this '
        "command again"
    ),
}
CONNECTION_LOST = (
    "the connection was lost: completed revisions stay applied, the running one does not (except "
    "for its autocommit blocks); run this command again"
)


def for_alembic(message: str) -> str:
    """Return a message with advice for a known message of Alembic; return any other unchanged."""
    for pattern, advice in _ALEMBIC.items():
        if match := re.search(pattern, message):
            return advice.format(**match.groupdict())
    return message


def for_sqlstate(sqlstate: str) -> str | None:
    """Return advice for an SQLSTATE; None if there is none."""
    return _SQLSTATE.get(sqlstate)
