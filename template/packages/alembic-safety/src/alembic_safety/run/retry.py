"""Retries of a revision after a lock timeout."""

import logging
import random

from sqlalchemy.exc import SQLAlchemyError

from alembic_safety import telemetry
from alembic_safety.boundary import place_in_revision
from alembic_safety.cancellation import pause
from alembic_safety.errors import MigrationError

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
"""Limits of the pause in seconds, which doubles with each retry and is shortened by up to half."""


class LockTimeoutError(MigrationError):
    """Every attempt of a revision ended in a lock timeout."""


def pause_or_give_up(error: SQLAlchemyError, *, tries: int, retries: int, held_by: str) -> None:
    """Sleep before the next attempt.

    Args:
        error: the lock timeout.
        tries: number of attempts so far.
        retries: number of retries allowed.
        held_by: description of the lock holders.

    Raises:
        LockTimeoutError: no retries are left.
    """
    place = place_in_revision(error) or "a revision"
    if tries > retries:
        raise LockTimeoutError(
            f"{place}: a table was locked by another session in each of {tries} attempts, last by "
            f"{held_by}. Earlier revisions stay applied, this one does not (except for its "
            "autocommit blocks). Run this command again when that session has ended (SELECT "
            "pg_terminate_backend(pid) ends it), or raise lock_timeout."
        ) from error
    seconds = min(_FIRST_PAUSE * 2 ** (tries - 1), _LONGEST_PAUSE) * random.uniform(0.5, 1)  # noqa: S311
    logger.warning(
        "%s: a table is locked by %s; retrying in %.1f s (%d of %d)",
        place,
        held_by,
        seconds,
        tries,
        retries,
    )
    telemetry.add_event("trying again", tries=tries, pause_seconds=seconds)
    pause(seconds)
