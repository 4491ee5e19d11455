"""Commands that review revisions before they are merged or applied."""

import argparse
import asyncio
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Coroutine
from contextlib import redirect_stdout
from typing import Any, TypeVar

from alembic_safety.check.gate import Outcome, run_checks
from alembic_safety.plan.planner import PlanOptions, make_plan
from alembic_safety.plan.report import Format, render
from alembic_safety.project import Project
from alembic_safety.source.rebase import rebase as rebase_revisions

T = TypeVar("T")
UNSAFE = 3
"""Exit code of `plan` if something is unsafe."""


async def _ended_in_order(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; Ctrl-C and SIGTERM, however often they come, let it clean up and end."""
    loop, task = asyncio.get_running_loop(), asyncio.create_task(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: task.cancelling() or task.cancel())
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def plan(project: Project, given: argparse.Namespace) -> int:
    """Print the plan of the pending revisions."""
    # What Alembic says of the copy would stand between the lines of the plan.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    options = PlanOptions(
        start=given.start,
        target=given.to,
        with_data=given.with_data,
        deployed=given.deployed,
        base=given.base,
    )
    planning = make_plan(project, options)
    # What revisions print does not stand in the plan, which a program may read.
    with redirect_stdout(sys.stderr):
        made = asyncio.run(_ended_in_order(planning))
    # https://no-color.org
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(render(made, Format(given.format), color=color))
    if any(item.rehearsed.error for item in made.revisions):
        return 1
    return 0 if made.safe or given.allow_unsafe else UNSAFE


def check(project: Project, base: str) -> int:
    """Print the result of each check of the gate."""
    # What Alembic says of each of its steps would stand between the lines.
    logging.getLogger("alembic").setLevel(logging.WARNING)

    async def run() -> int:
        failed = 0
        async for result in run_checks(project, base):
            failed += result.outcome is Outcome.FAILED
            print(f"{result.outcome:<5} {result.check:<18}  {result.note}".rstrip(), flush=True)
            for problem in result.problems:
                print(textwrap.indent(problem, " " * 6), flush=True)
        return failed

    return 1 if asyncio.run(_ended_in_order(run())) else 0


def rebase(project: Project, base: str) -> int:
    """Make the new revisions follow those of the base."""
    for line in rebase_revisions(project, base):
        print(line)
    return 0
