"""Observers of a run: told of each revision that is applied or reverted."""

from typing import Protocol

from alembic.config import Config


class Observer(Protocol):
    """Observer of the revisions of a run.

    A program passes one as `Config(attributes={"observer": ...})`.
    """

    def begin(self, revision: str, /) -> None:
        """Begin a revision. Called before its `upgrade()` or `downgrade()`, outside a transaction."""

    def end(self) -> None:
        """End the revision. Called in its transaction, before the commit; not if it fails."""


def get_observer(config: Config) -> Observer | None:
    """Return the observer that the program passed; None if there is none."""
    observer: Observer | None = config.attributes.get("observer")
    return observer
