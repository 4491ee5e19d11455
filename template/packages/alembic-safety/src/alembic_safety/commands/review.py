"""Commands that review revisions before a merge or an upgrade."""

import logging
import os
import sys
import textwrap
from contextlib import redirect_stdout
from typing import Any

import click

from alembic_safety import cancellation
from alembic_safety.check.gate import Outcome, run_checks
from alembic_safety.plan.planner import PlanOptions, make_plan
from alembic_safety.plan.report import Format, render
from alembic_safety.project import Project
from alembic_safety.source.rebase import rebase as rebase_revisions

UNSAFE = 3
"""Exit code of `plan` if a revision is unsafe."""
_COLORS = {
    Outcome.OK: "green",
    Outcome.FAILED: "red",
    Outcome.SKIPPED: None,
    Outcome.ADVICE: "yellow",
}


def plan(project: Project, *, form: str, allow_unsafe: bool, to: str, **scope: Any) -> int:
    """Print the plan of the pending revisions.

    Return 1 if a revision fails, `UNSAFE` if one is unsafe.

    Args:
        project: the project.
        form: a `Format`.
        allow_unsafe: return 0 even if a revision is unsafe.
        to: the last revision.
        scope: further fields of `PlanOptions`.
    """
    _mute_alembic()
    planning = make_plan(project, PlanOptions(target=to, **scope))
    if sys.stderr.isatty():
        click.echo("Rehearsing the revisions on a copy of the schema ...", err=True)
    # Keep output of revisions out of the plan, which a program may parse.
    with redirect_stdout(sys.stderr):
        result = cancellation.run(planning)
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")  # https://no-color.org
    click.echo(render(result, Format(form), color=color))
    if any(item.rehearsed.error for item in result.revisions):
        return 1
    return 0 if result.safe or allow_unsafe else UNSAFE


def check(project: Project, base: str) -> int:
    """Print the result of each check of the gate; return 1 if one failed."""
    _mute_alembic()

    async def run() -> int:
        failed = 0
        async for result in run_checks(project, base):
            failed += result.outcome is Outcome.FAILED
            outcome = click.style(f"{result.outcome:<5}", fg=_COLORS[result.outcome])
            click.echo(f"{outcome} {result.check:<18}  {result.note}".rstrip())
            for problem in result.problems:
                click.echo(textwrap.indent(problem, " " * 6))
        return failed

    return 1 if cancellation.run(run()) else 0


def rebase(project: Project, base: str) -> int:
    """Move the new revisions after those of the base branch."""
    for line in rebase_revisions(project, base):
        print(line)
    return 0


def _mute_alembic() -> None:
    """Drop what Alembic logs of a scratch copy: each upgrade, each difference from the models."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("alembic."):
            logging.getLogger(name).addFilter(_is_warning)


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING
