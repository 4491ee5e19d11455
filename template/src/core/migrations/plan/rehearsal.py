"""Rehearsal of revisions on a scratch copy."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from alembic import command
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool

from core.database import create_engine
from core.database_url import DatabaseURL
from core.migrations.config import make_config
from core.migrations.plan.fingerprint import Fingerprint, describe_difference
from core.migrations.plan.guard import ServerGuard
from core.migrations.plan.locks import LockWatcher
from core.migrations.plan.recorder import Recorder, RehearsedRevision
from core.migrations.plan.scratch import Scratch
from core.migrations.plan.steps import Step, StepRunner


async def rehearse(
    url: DatabaseURL, target: str, *, shared: bool = False, downgrades: bool = True
) -> list[RehearsedRevision]:
    """Apply the pending revisions to a copy; return what each did.

    Args:
        url: the copy.
        target: the revision to go to.
        shared: whether the copy is on the live server; see `ServerGuard`.
        downgrades: whether to revert the revisions afterwards, to see if that restores the schema.

    Returns:
        The revisions in order. A revision that fails is the last one.
    """
    async with _engine(url) as engine, engine.connect() as connection:
        watcher = LockWatcher(engine)
        recorder = await connection.run_sync(lambda sync: Recorder(sync, watcher, shared=shared))
        await connection.run_sync(_upgrade, recorder, target)
        if downgrades and not any(item.error for item in recorder.revisions):
            await connection.run_sync(_downgrade, recorder, shared=shared)
        return recorder.revisions


async def prepare(copy: Scratch, revision: str) -> None:
    """Upgrade a scratch copy to a revision, without recording it."""

    def upgrade(connection: Connection) -> None:
        guard = ServerGuard(connection, shared=copy.shared)
        with guard.watching():
            command.upgrade(make_config(connection=connection, observer=guard), revision)

    async with _engine(copy.url) as engine, engine.connect() as connection:
        await connection.run_sync(upgrade)


def _upgrade(connection: Connection, recorder: Recorder, target: str) -> None:
    with recorder.watching():
        try:
            command.upgrade(make_config(connection=connection, observer=recorder), target)
        except CommandError as error:
            if not recorder.revisions:
                raise
            recorder.revisions[-1].error = str(error)


def _downgrade(connection: Connection, recorder: Recorder, *, shared: bool) -> None:
    """Revert the recorded revisions, and note where that does not restore the schema."""
    items = list(reversed(recorder.revisions))
    runner = StepRunner(connection, shared=shared)
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
    engine = create_engine(url, poolclass=NullPool)
    try:
        yield engine
    finally:
        await engine.dispose()
