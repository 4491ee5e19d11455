"""Retries of a revision that met a lock timeout."""

import logging
import random
import time

from sqlalchemy.exc import DBAPIError

from alembic_safety import telemetry
from alembic_safety.boundary import place_in_revision
from alembic_safety.errors import MigrationError

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
"""Seconds between two tries: they double from the first to the longest, less up to a half."""


class LockTimeoutError(MigrationError):
    """A revision met a lock timeout in each of its tries."""


def pause_or_give_up(error: DBAPIError, *, tries: int, retries: int, held_by: str) -> None:
    """Sleep before the next try.

    Args:
        error: the lock timeout.
        tries: of the revision, this one included.
        retries: how often it is tried again.
        held_by: the lock holders, in words.

    Raises:
        LockTimeoutError: there is no further try.
    """
    place = place_in_revision(error) or "a revision"
    if tries > retries:
        raise LockTimeoutError(
            f"{place}: a table was held by another session in each of {tries} tries, last by "
            f"{held_by}. Revisions before it stay applied, nothing of it does (but for "
            "what it ran in an autocommit block). Run it when "
            "that session has ended (SELECT pg_terminate_backend(pid) ends it), or give it "
            "more time with lock_timeout."
        ) from error
    pause = min(_FIRST_PAUSE * 2 ** (tries - 1), _LONGEST_PAUSE) * random.uniform(0.5, 1)  # noqa: S311
    logger.warning(
        "%s: a table is held by %s; trying again in %.1f s (%d of %d)",
        place,
        held_by,
        pause,
        tries,
        retries,
    )
    telemetry.add_event("trying again", tries=tries, pause_seconds=pause)
    time.sleep(pause)
