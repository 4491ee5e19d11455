"""Confirmation of destructive commands by the name of the database."""

import os
import select
import sys

from alembic import context
from sqlalchemy import Connection, text

from alembic_safety.cancellation import raise_if_canceled
from alembic_safety.errors import NotConfirmedError

_STEP = 0.05
"""Seconds between two checks for cancellation."""


def confirm(database: str, danger: str, given: str, *, how: str) -> None:
    """Require the name of the database; prompt for it on a terminal if `given` is empty.

    Args:
        database: name of the database.
        danger: what is about to happen, as a sentence without a full stop.
        given: the name that the caller was given beforehand; may be empty.
        how: how to give the name without a terminal, as a command (imperative).

    Raises:
        NotConfirmedError: the name is missing or another one. Nothing was changed.
    """
    if not given:
        if not sys.stdin.isatty():
            raise NotConfirmedError(f"{danger}. To confirm, {how}")
        print(f"{danger}.")
        given = _prompt("Type the name of the database to continue: ")
    if given != database:
        raise NotConfirmedError(
            f"{given!r} is not the name of the database ({database}); nothing was changed"
        )


def confirm_downgrade(connection: Connection, reverted: list[str]) -> None:
    """Require the name of the database before a downgrade in production.

    The name comes from `config.attributes["confirm"]`, the variable CONFIRM or a prompt.

    Raises:
        NotConfirmedError: the name is missing or another one.
    """
    if not reverted:
        return
    in_caller_transaction = connection.in_transaction()
    database = str(connection.scalar(text("SELECT current_database()")))
    if not in_caller_transaction:
        connection.rollback()
    confirm(
        database,
        f"production: this reverts {', '.join(reverted)} in the database {database}, and deletes "
        "the data of the tables and columns that are dropped",
        str(context.config.attributes.get("confirm") or os.environ.get("CONFIRM", "")),
        how=f"set CONFIRM={database} in the environment",
    )


def _prompt(prompt: str) -> str:
    """Return a line of the terminal; an empty string at its end.

    `input` could not be canceled: it keeps waiting after a signal.
    """
    print(prompt, end="", flush=True)
    while not select.select([sys.stdin], [], [], _STEP)[0]:
        raise_if_canceled()
    return sys.stdin.readline().strip()
