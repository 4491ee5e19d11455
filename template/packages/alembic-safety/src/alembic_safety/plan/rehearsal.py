"""Rehearsal of revisions on a scratch copy."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from alembic import command
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from alembic_safety.database.connection import create_engine
from alembic_safety.database.url import DatabaseURL
from alembic_safety.plan.fingerprint import Fingerprint, describe_difference
from alembic_safety.plan.guard import ServerGuard
from alembic_safety.plan.locks import LockWatcher
from alembic_safety.plan.recorder import Recorder, RehearsedRevision
from alembic_safety.plan.scratch import Scratch
from alembic_safety.plan.steps import Step, StepRunner
from alembic_safety.project import Project


async def rehearse(
    project: Project, copy: Scratch, target: str, *, downgrades: bool = True
) -> list[RehearsedRevision]:
    """Apply the pending revisions to a copy; return what each did.

    Args:
        project: whose revisions they are.
        copy: the copy.
        target: the revision to go to.
        downgrades: whether to revert the revisions afterwards, to see if that restores the schema.

    Returns:
        The revisions in order. A revision that fails is the last one.
    """
    async with _engine(copy.url) as engine, engine.connect() as connection:
        watcher = LockWatcher(engine)
        recorder = await connection.run_sync(
            lambda sync: Recorder(sync, watcher, shared=copy.shared)
        )
        await connection.run_sync(_upgrade, project, recorder, target)
        if downgrades and not any(item.error for item in recorder.revisions):
            await connection.run_sync(_downgrade, project, recorder, shared=copy.shared)
        return recorder.revisions


async def prepare(project: Project, copy: Scratch, revision: str) -> None:
    """Upgrade a scratch copy to a revision, without recording it."""

    def upgrade(connection: Connection) -> None:
        guard = ServerGuard(connection, shared=copy.shared)
        with guard.watching():
            command.upgrade(project.make_config(connection=connection, observer=guard), revision)

    async with _engine(copy.url) as engine, engine.connect() as connection:
        await connection.run_sync(upgrade)


def _upgrade(connection: Connection, project: Project, recorder: Recorder, target: str) -> None:
    with recorder.watching():
        try:
            command.upgrade(project.make_config(connection=connection, observer=recorder), target)
        except CommandError as error:
            if not recorder.revisions:
                raise
            recorder.revisions[-1].error = str(error)


def _downgrade(
    connection: Connection, project: Project, recorder: Recorder, *, shared: bool
) -> None:
    """Revert the recorded revisions, and note where that does not restore the schema."""
    items = list(reversed(recorder.revisions))
    runner = StepRunner(connection, project, shared=shared)
    error = runner.run([Step(item.revision, up=False) for item in items])
    befores = reversed(recorder.fingerprints)
    lost: Fingerprint = frozenset()
    left: Fingerprint = frozenset()
    for item, before, after in zip(items, befores, runner.fingerprints[1:], strict=False):
        # Differences that the downgrade of a later revision made are not this one's.
        newly_lost, newly_left = before - after - lost, after - before - left
        lost, left = before - after, after - before
        if newly_lost or newly_left:
            item.downgrade_error = f"the downgrade {describe_difference(newly_lost, newly_left)}"
    if error:
        items[len(runner.fingerprints) - 1].downgrade_error = error


@asynccontextmanager
async def _engine(url: DatabaseURL) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(url)
    try:
        yield engine
    finally:
        await engine.dispose()
