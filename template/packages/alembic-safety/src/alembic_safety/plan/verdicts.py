"""Verdicts on a revision, and the reasons for them."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """Verdicts on a revision: a hazard, or `SAFE`."""

    SAFE = "safe"
    BLOCKS_WRITES = "blocks writes"
    BLOCKS_READS = "blocks reads"
    REWRITES = "rewrites"
    DESTROYS_DATA = "destroys data"
    BREAKS_RUNNING_CODE = "breaks running code"
    CANNOT_BE_UNDONE = "cannot be undone"

    @property
    def depends_on_size(self) -> bool:
        """True for hazards of large tables only."""
        return self in {Verdict.BLOCKS_WRITES, Verdict.BLOCKS_READS, Verdict.REWRITES}


@dataclass(frozen=True, kw_only=True)
class Reason:
    """A reason for a verdict."""

    verdict: Verdict
    table: str
    why: str
    safe_way: str = ""
    """Code of a revision that avoids it; see `remedies`."""
    statement: str = ""
    measured: str = ""
    """The live table whose size tells how long the statement takes."""
    small: bool = False
    """Whether that table is small, so that the verdict does not count."""
    acknowledged: str = ""
    """The author's reason to run the revision all the same."""

    @property
    def key(self) -> str:
        """Its key in the revision's `acknowledged`."""
        return f"{self.verdict}:{self.table}" if self.table else str(self.verdict)

    @property
    def open(self) -> bool:
        """True if the table is not small and the verdict is not acknowledged."""
        return not self.small and not self.acknowledged
