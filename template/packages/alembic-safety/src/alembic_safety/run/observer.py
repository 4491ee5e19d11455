"""Observer interface for the revisions of a run."""

from typing import Protocol

from alembic.config import Config


class Observer(Protocol):
    """Observer of the revisions of a run.

    Pass one as `Config(attributes={"observer": ...})`.
    """

    def begin(self, revision: str, /) -> None:
        """Begin a revision, outside of a transaction, before its `upgrade()` or `downgrade()`."""

    def end(self) -> None:
        """End a successful revision, in its transaction, before the commit."""


def get_observer(config: Config) -> Observer | None:
    """Return the observer of a configuration; None if there is none."""
    observer: Observer | None = config.attributes.get("observer")
    return observer
