"""Commands that review revisions before a merge or an upgrade."""

import argparse
import logging
import os
import sys
import textwrap
from contextlib import redirect_stdout

from alembic_safety import cancellation
from alembic_safety.check.gate import Outcome, run_checks
from alembic_safety.plan.planner import PlanOptions, make_plan
from alembic_safety.plan.report import Format, render
from alembic_safety.project import Project
from alembic_safety.source.rebase import rebase as rebase_revisions

UNSAFE = 3
"""Exit code of `plan` if a revision is unsafe."""


def plan(project: Project, given: argparse.Namespace) -> int:
    """Print the plan of the pending revisions.

    Return 1 if a revision fails, `UNSAFE` if one is unsafe.
    """
    logging.disable(logging.INFO)  # Alembic logs the upgrades of the scratch copy
    options = PlanOptions(
        start=given.start,
        target=given.to,
        with_data=given.with_data,
        deployed=given.deployed,
        base=given.base,
    )
    planning = make_plan(project, options)
    # Keep output of revisions out of the plan, which a program may parse.
    with redirect_stdout(sys.stderr):
        result = cancellation.run(planning)
    # https://no-color.org
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(render(result, Format(given.format), color=color))
    if any(item.rehearsed.error for item in result.revisions):
        return 1
    return 0 if result.safe or given.allow_unsafe else UNSAFE


def check(project: Project, base: str) -> int:
    """Print the result of each check of the gate; return 1 if one failed."""
    logging.disable(logging.INFO)  # Alembic logs the steps of the checks

    async def run() -> int:
        failed = 0
        async for result in run_checks(project, base):
            failed += result.outcome is Outcome.FAILED
            print(f"{result.outcome:<5} {result.check:<18}  {result.note}".rstrip(), flush=True)
            for problem in result.problems:
                print(textwrap.indent(problem, " " * 6), flush=True)
        return failed

    return 1 if cancellation.run(run()) else 0


def rebase(project: Project, base: str) -> int:
    """Move the new revisions after those of the base branch."""
    for line in rebase_revisions(project, base):
        print(line)
    return 0
