"""Every private part of Alembic that this library uses, each with its reason.

`check()` runs before the first use, so that an Alembic without one of them is named instead of
failing in the middle of a migration.
"""

from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory

from alembic_safety.errors import MigrationError

KNOWN_TO_WORK = "1.18.5 to 1.20"

Resolve = Callable[[Any, MigrationContext], Iterable[Any]]


@cache
def check() -> None:
    """Check that the installed Alembic has each private part.

    Raises:
        MigrationError: one is missing.
    """
    wanted = {
        "MigrationContext._in_external_transaction": hasattr(
            MigrationContext, "_in_external_transaction"
        )
        or "_in_external_transaction" in MigrationContext.__init__.__code__.co_names,
        "MigrationContext._migrations_fn": "_migrations_fn"
        in MigrationContext.__init__.__code__.co_names,
        "ScriptDirectory._version_locations": hasattr(ScriptDirectory, "_version_locations"),
        "Script._all_down_revisions": hasattr(Script, "_all_down_revisions"),
        "context._proxy": hasattr(context, "_proxy"),
    }
    missing = [name for name, found in wanted.items() if not found]
    if missing:
        raise MigrationError(
            f"Alembic {version('alembic')} has no {missing[0]}, which alembic-safety uses; "
            f"install a version that is known to work ({KNOWN_TO_WORK})"
        )


def get_resolver(migrations: MigrationContext) -> Resolve:
    """Return the function that resolves a command's steps.

    Alembic calls it itself, once, after the context is configured. The lock must be held before
    the steps are known, and a retry must run the remaining ones only.
    """
    resolve: Resolve = migrations._migrations_fn  # type: ignore[assignment]  # noqa: SLF001
    return resolve


def set_resolver(migrations: MigrationContext, resolve: Resolve) -> None:
    """Replace the function that resolves a command's steps; see `get_resolver`."""
    migrations._migrations_fn = resolve  # noqa: SLF001


def is_in_caller_transaction(migrations: MigrationContext) -> bool:
    """Return whether the connection was in a transaction when the context was configured.

    A backfill commits its batches, which must not commit a transaction of the caller's.
    """
    return bool(migrations._in_external_transaction)  # noqa: SLF001


def is_comparing() -> bool:
    """Return whether the command compares the models with the database.

    Only `revision` and `check` do; importing the models for the others takes their time, and
    fails an upgrade for a mistake in a model.
    """
    return "revision_context" in context._proxy.context_opts  # type: ignore[attr-defined]  # noqa: SLF001


def version_locations(script: ScriptDirectory) -> list[Path]:
    """Return the folders of the revisions; the public attribute is not resolved in all versions."""
    return [Path(folder).resolve() for folder in script._version_locations]  # noqa: SLF001


def all_parents(script: Script) -> tuple[str, ...]:
    """Return the revisions that one follows, those of `depends_on` included."""
    return tuple(script._all_down_revisions)  # noqa: SLF001
