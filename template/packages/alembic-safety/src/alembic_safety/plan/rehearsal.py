"""Rehearsal of revisions on a scratch copy."""

from functools import partial

from alembic import command
from alembic.util import CommandError
from sqlalchemy import Connection

from alembic_safety.database.session import open_session
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
    async with open_session(copy.url) as session:
        watcher = LockWatcher(session.engine)
        recorder = await session.run(partial(Recorder, watcher=watcher, shared=copy.shared))
        await session.run(_upgrade, project, recorder, target)
        if downgrades and not any(item.error for item in recorder.revisions):
            await session.run(partial(_downgrade, shared=copy.shared), project, recorder)
        return recorder.revisions


async def prepare(project: Project, copy: Scratch, revision: str) -> None:
    """Upgrade a scratch copy to a revision, without recording it."""

    def upgrade(connection: Connection) -> None:
        guard = ServerGuard(connection, shared=copy.shared)
        with guard.watching():
            command.upgrade(project.make_config(connection=connection, observer=guard), revision)

    async with open_session(copy.url) as session:
        await session.run(upgrade)


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
