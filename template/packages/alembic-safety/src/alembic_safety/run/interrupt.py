"""Interruption by Ctrl-C, which asyncio delivers as the cancellation of the task that runs."""

import asyncio
import time

_STEP = 0.1
"""Seconds for which an interruption of a pause may go unnoticed."""


def raise_if_interrupted(error: BaseException | None = None) -> None:
    """Raise the cancellation of this task, if there is one.

    The cleanup of a revision (`finally`, the end of an autocommit block) uses a connection that
    the cancellation has closed. Its error takes the cancellation's place, and the runner would
    take it for the revision's own.

    Args:
        error: what was raised instead.

    Raises:
        asyncio.CancelledError: this task was cancelled.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop: a connection that a program gave
        return
    if task is not None and task.cancelling():
        raise asyncio.CancelledError from error


def pause(seconds: float) -> None:
    """Sleep, and end with `asyncio.CancelledError` soon after an interruption."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        raise_if_interrupted()
        time.sleep(min(left, _STEP))
