"""Steps of a command: the revisions that it applies, reverts or stamps."""

from typing import Any

from alembic.runtime.migration import MigrationContext, MigrationInfo, StampStep
from sqlalchemy import Connection

from alembic_safety import alembic_internals
from alembic_safety.database.history import Direction


def resolve_steps(connection: Connection, migrations: MigrationContext) -> list[Any]:
    """Return the steps from the revision of the database to the destination of the command.

    Relative destinations (`+2`, `-1`) are resolved here.
    """
    in_caller_transaction = connection.in_transaction()
    heads = () if migrations.purge else migrations.get_current_heads()
    if not in_caller_transaction:
        connection.rollback()
    return list(alembic_internals.get_resolver(migrations)(heads, migrations))


def reverted(steps: list[Any]) -> list[str]:
    """Return the revisions that the steps revert."""
    return [
        step.revision.revision
        for step in steps
        if not isinstance(step, StampStep) and not step.is_upgrade
    ]


def title(step: Any) -> str:
    """Return the name of a step, for traces: `upgrade 3f1c9b7d5a20`."""
    if isinstance(step, StampStep):
        return "stamp"
    return f"{'upgrade' if step.is_upgrade else 'downgrade'} {step.revision.revision}"


def direction(info: MigrationInfo) -> Direction:
    """Return the direction of a step."""
    if info.is_stamp:
        return Direction.STAMP
    return Direction.UPGRADE if info.is_upgrade else Direction.DOWNGRADE


def revisions(info: MigrationInfo) -> tuple[str, ...]:
    """Return the revisions of a step."""
    return tuple(info.destination_revision_ids if info.is_stamp else info.up_revision_ids)
