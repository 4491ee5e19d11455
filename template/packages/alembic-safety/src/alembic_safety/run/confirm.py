"""Confirmation by the database's name, before data are lost."""

import os
import signal
import sys
import threading

from alembic import context
from sqlalchemy import Connection, text

from alembic_safety.errors import NotConfirmedError


def confirm(database: str, danger: str, given: str, *, how: str) -> None:
    """Have somebody give the name of the database; return if it is the right one.

    Args:
        database: the name.
        danger: a sentence on what is about to happen, without a full stop.
        given: the name, where it was given beforehand; else a terminal is asked for it.
        how: how to give it where there is no terminal.

    Raises:
        NotConfirmedError: another name, or none.
    """
    if not given:
        if not sys.stdin.isatty():
            raise NotConfirmedError(f"{danger}. To confirm, give its name: {how}")
        print(f"{danger}.")
        given = _ask("Type its name to go on: ")
    if given != database:
        raise NotConfirmedError(
            f"{given!r} is not the name of the database ({database}); nothing was changed"
        )


def confirm_downgrade(connection: Connection, reverted: list[str]) -> None:
    """Ask for the database's name before anything is reverted in production."""
    if not reverted:
        return
    in_caller_transaction = connection.in_transaction()
    database = str(connection.scalar(text("SELECT current_database()")))
    if not in_caller_transaction:
        connection.rollback()
    confirm(
        database,
        f"production: this reverts {', '.join(reverted)} in the database {database}; "
        "what is in the tables and columns that go is lost",
        str(context.config.attributes.get("confirm") or os.environ.get("CONFIRM", "")),
        how=f"CONFIRM={database}",
    )


def _ask(prompt: str) -> str:
    # asyncio takes the first Ctrl-C for itself, and would wait for the answer.
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler) if main else None
    try:
        return input(prompt).strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return ""
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
