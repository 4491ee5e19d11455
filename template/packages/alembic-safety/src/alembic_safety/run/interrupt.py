"""Interruption of a run by Ctrl-C."""

import asyncio
import time

from alembic_safety.database.session import is_canceled

_STEP = 0.1
"""Seconds for which an interruption of a pause may go unnoticed."""


def raise_if_interrupted(error: BaseException | None = None) -> None:
    """Raise the cancellation of the run, if there is one.

    The cleanup of a revision (`finally`, the end of an autocommit block) uses a connection that
    the cancellation has closed. Its error replaces the cancellation, and the runner would take it
    for the revision's own.

    Args:
        error: the error that was raised instead.

    Raises:
        asyncio.CancelledError: the run was canceled.
    """
    if is_canceled():
        raise asyncio.CancelledError from error


def pause(seconds: float) -> None:
    """Sleep, and end with `asyncio.CancelledError` soon after an interruption."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        raise_if_interrupted()
        time.sleep(min(left, _STEP))
