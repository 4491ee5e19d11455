"""Round trips: each revision is applied, reverted and applied again."""

from enum import StrEnum
from pathlib import Path

from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection

from core.migrations.config import make_config
from core.migrations.plan.fingerprint import describe_difference
from core.migrations.plan.steps import Step, StepRunner
from core.migrations.plan.verdicts import Verdict
from core.project import ROOT


class _Stage(StrEnum):
    """Stages of a round trip, as they are named in messages."""

    APPLIED = ""
    REVERTED = "reverted: "
    AGAIN = "applied again: "


def run_round_trips(connection: Connection, *, shared: bool) -> tuple[int, list[str]]:
    """Run the round trip of every revision, on an empty database.

    A revision that acknowledges that it can't be undone is only applied.

    Args:
        connection: a connection to the database.
        shared: whether the database is on the live server; see `ServerGuard`.

    Returns:
        The number of revisions, and the problems.
    """
    script = ScriptDirectory.from_config(make_config())
    revisions = list(reversed(list(script.walk_revisions())))
    stages = [(revision, stage) for revision in revisions for stage in _stages(revision)]
    runner = StepRunner(connection, shared=shared)
    steps = [Step(item.revision, stage is not _Stage.REVERTED) for item, stage in stages]
    error = runner.run(steps)
    problems = []
    # The schema before and after each step that succeeded.
    done = list(zip(stages, runner.fingerprints, runner.fingerprints[1:], strict=False))
    for number, ((revision, stage), before, after) in enumerate(done):
        if stage is _Stage.REVERTED and after != done[number - 1][1]:
            difference = describe_difference(done[number - 1][1], after)
            problems.append(f"{_path(revision)}: the downgrade {difference}")
        elif (
            stage is _Stage.AGAIN and before == done[number - 2][1] and after != done[number - 1][1]
        ):
            problems.append(f"{_path(revision)}: another schema when it is applied again")
    if error:
        failed, stage = stages[len(done)]
        problems.append(f"{failed.revision}: {stage}{error}")
        if rest := len(revisions) - revisions.index(failed) - 1:
            problems.append(f"{rest} revision{'' if rest == 1 else 's'} after it not tried")
    return len(revisions), problems


def _stages(revision: Script) -> list[_Stage]:
    acknowledged = getattr(revision.module, "acknowledged", {})
    one_way = isinstance(acknowledged, dict) and Verdict.CANNOT_BE_UNDONE in acknowledged
    return [_Stage.APPLIED] if one_way else list(_Stage)


def _path(revision: Script) -> str:
    path = Path(revision.path)
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
