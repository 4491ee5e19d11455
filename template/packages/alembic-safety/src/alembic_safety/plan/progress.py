"""Progress of a rehearsal."""

import logging
import time

from alembic_safety.programs import PROGRESS_INTERVAL

logger = logging.getLogger(__name__)


class Progress:
    """Logs which revision a rehearsal has come to, at most every `PROGRESS_INTERVAL` seconds."""

    def __init__(self) -> None:
        self._started = self._logged = time.monotonic()
        self._done = 0

    def begin(self, revision: str) -> None:
        """Begin a revision."""
        now = time.monotonic()
        if now - self._logged >= PROGRESS_INTERVAL:
            self._logged = now
            seconds = now - self._started
            logger.info("rehearsing %s: %d done after %.0f s", revision, self._done, seconds)
        self._done += 1
