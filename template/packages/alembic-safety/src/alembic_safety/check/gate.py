"""Checks of the gate. Each is run by itself: one that fails does not stop the others."""

import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, partial

from alembic.script import ScriptDirectory
from alembic.util import CommandError

from alembic_safety.boundary import describe_error, migration_errors
from alembic_safety.check.imports import import_problem
from alembic_safety.check.linter import find_squawk, lint
from alembic_safety.check.models import compare_with_models
from alembic_safety.check.round_trips import run_round_trips
from alembic_safety.database.session import open_session
from alembic_safety.errors import MigrationError
from alembic_safety.plan.planner import RevisionPlan, plan_revisions, rehearse_from
from alembic_safety.plan.rehearsal import prepare
from alembic_safety.plan.scratch import Scratch, scratch
from alembic_safety.plan.sizes import Sizes
from alembic_safety.project import Project
from alembic_safety.source.branch import Branch, read_branch
from alembic_safety.source.models import read_models
from alembic_safety.source.revision_files import RevisionFile, name_pattern, read_sources
from alembic_safety.state import Revisions


class Outcome(StrEnum):
    """Outcomes of a check."""

    OK = "ok"
    FAILED = "FAIL"
    SKIPPED = "skip"
    ADVICE = "note"
    """Something to consider, which does not fail the gate."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of a check."""

    check: str
    outcome: Outcome
    note: str = ""
    """A line: what was checked, or why it was skipped."""
    problems: tuple[str, ...] = ()


class _Skipped(Exception):  # noqa: N818
    """A check can't be run. The message says why."""


Findings = tuple[str, list[str]]
"""A note, and the problems."""


async def run_checks(project: Project, base: str) -> AsyncIterator[Result]:
    """Run all checks, and yield each result as soon as it is known.

    Args:
        project: whose revisions are checked. The checks create scratch databases on the server of
            its database, or on its scratch server, and never connect to the database itself.
        base: the branch that this one is merged into; empty for the remote's default branch.
    """
    gate = _Gate(project, base)
    checks: dict[str, Callable[[], Awaitable[Findings]]] = {
        "base branch": gate.base,
        "one head": gate.one_head,
        "revisions import": gate.imports,
        "file names": gate.file_names,
        "released revisions": gate.released,
        "descent": gate.descent,
        "up, down, up": gate.round_trips,
        "models and schema": gate.models,
        "plan": gate.plan,
        "squawk": gate.squawk,
    }
    for name, check in checks.items():
        yield await _run(name, check)


async def _run(name: str, check: Callable[[], Awaitable[Findings]]) -> Result:
    try:
        with migration_errors():
            note, problems = await check()
    except _Skipped as reason:
        return Result(check=name, outcome=Outcome.SKIPPED, note=str(reason))
    except (CommandError, MigrationError) as error:
        return Result(check=name, outcome=Outcome.FAILED, problems=(str(error),))
    except Exception as error:  # noqa: BLE001 - the other checks are run all the same
        return Result(check=name, outcome=Outcome.FAILED, problems=(describe_error(error),))
    if not problems:
        return Result(check=name, outcome=Outcome.OK, note=note)
    outcome = Outcome.ADVICE if name == "squawk" else Outcome.FAILED
    return Result(check=name, outcome=outcome, problems=tuple(problems))


class _Gate:
    """The checks, and the results that several of them share."""

    def __init__(self, project: Project, base: str) -> None:
        self._project = project
        self._base = base
        sources = read_sources(project)
        parsed = {path: RevisionFile.parse(path, source) for path, source in sources.items()}
        self._unreadable = [path for path, file in parsed.items() if file is None]
        self._files = [file for file in parsed.values() if file is not None]
        self._branch: Branch | None = None
        self._plans: list[RevisionPlan] | None = None

    async def base(self) -> Findings:
        self._branch = read_branch(self._project, self._base)
        if self._branch is None:
            raise _Skipped("there is none to compare with; name one: --base=<branch or commit>")
        return self._branch.name, []

    async def one_head(self) -> Findings:
        known = {file.revision for file in self._files}
        followed = {parent for file in self._files for parent in file.parents}
        heads = sorted(known - followed)
        problems = [
            f"{file.path}: follows {parent}, which has no file here; its branch may not be merged"
            for file in self._files
            for parent in file.parents
            if parent not in known
        ]
        for revision in sorted(known):
            same = [str(file.path) for file in self._files if file.revision == revision]
            if len(same) > 1:
                problems.append(f"{' and '.join(same)}: the same revision id")
        if len(heads) > 1:
            problems.append(
                f"{len(heads)} heads: {', '.join(heads)}; `alembic-safety rebase` moves a new one "
                "after the other; `alembic merge heads -m Merge` joins released ones"
            )
        return ", ".join(heads) or "no revisions yet", problems

    async def imports(self) -> Findings:
        return _count(len(self._files) + len(self._unreadable), "revision"), self._broken

    async def file_names(self) -> Findings:
        template = ScriptDirectory.from_config(self._project.make_config()).file_template
        problems = [
            f"{file.path}: is not named as file_template says ({template}.py)"
            for file in (self._new(self._branch) if self._branch else self._files)
            if not name_pattern(template, file.revision).fullmatch(file.path.stem)
        ]
        return template, problems

    async def released(self) -> Findings:
        branch = self._need_branch()
        here = {file.revision: file for file in self._files}
        problems = []
        for revision, file in branch.files.items():
            if revision in here and here[revision].digest != file.digest:
                problems.append(
                    f"{here[revision].path}: differs from {branch.name}; if that was released, "
                    "databases have applied it: write a new revision (git checkout "
                    f"{branch.name} -- {file.path} restores this one)"
                )
            elif revision not in here and revision in branch.common:
                problems.append(f"{file.path}: is deleted, and was released in {branch.name}")
        return f"{_count(len(branch.files), 'revision')} in {branch.name}", problems

    async def descent(self) -> Findings:
        branch = self._need_branch()
        new = self._new(branch)
        heads = set(branch.heads)
        good = heads | {file.revision for file in new}
        problems = [
            f"{file.path}: follows {', '.join(file.parents) or 'nothing'}, but {branch.name} is at "
            f"{', '.join(sorted(heads))}; `alembic-safety rebase` fixes it"
            for file in new
            if heads and not good & set(file.parents)
        ]
        if problems and not heads <= {file.revision for file in self._files}:
            problems.append(f"{branch.name} has revisions that are not here: merge it first")
        return f"{_count(len(new), 'new revision')} after {', '.join(branch.heads)}", problems

    async def round_trips(self) -> Findings:
        self._need_imports()
        async with self._scratch() as copy, open_session(copy.url) as session:
            count, problems = await session.run(
                partial(run_round_trips, shared=copy.shared), self._project
            )
        return f"{_count(count, 'revision')}, the schema as before each time", problems

    async def models(self) -> Findings:
        self._need_imports()
        async with self._scratch() as copy:
            await prepare(self._project, copy, "heads")
            async with open_session(copy.url) as session:
                return "no difference", await session.run(compare_with_models, self._project)

    async def plan(self) -> Findings:
        branch = self._need_branch()
        self._need_imports()
        new = self._new(branch)
        if not new:
            self._plans = []
            return "no new revisions", []
        missing = [head for head in branch.heads if head not in {f.revision for f in self._files}]
        if missing:
            raise _Skipped(f"{branch.name} has revisions that are not here: merge it first")
        _, rehearsed = await rehearse_from(self._project, branch.heads, "heads")
        try:
            deployed = read_models(self._project, branch.name, variable="BASE")
        except MigrationError:
            # The base's models may need packages that are not installed. Then all counts as used.
            deployed = None
        plans = plan_revisions(
            self._project,
            rehearsed,
            Revisions.load(self._project.make_config()),
            Sizes(tables=None),
            deployed,
        )
        self._plans = plans
        problems = [problem for item in plans if not item.safe for problem in _plan_problems(item)]
        return (
            f"{_count(len(plans), 'new revision')} from {', '.join(branch.heads) or 'nothing'}",
            problems,
        )

    async def squawk(self) -> Findings:
        if self._plans is None:
            raise _Skipped("needs the plan")
        program = find_squawk()
        if program is None:
            raise _Skipped("squawk is not installed (uv sync installs it, where there is a build)")
        root = self._project.root
        problems = [
            f"{item.revision}: {warning}"
            for item in self._plans
            for warning in lint(program, item, folder=root)
        ]
        return _count(len(self._plans), "new revision"), problems

    @cached_property
    def _broken(self) -> list[str]:
        """Problems of the revisions that can't be imported."""
        unclear = "revision and down_revision have to be literals, each assigned once"
        root = self._project.root
        problems = [
            import_problem(path, folder=root) or f"{path}: {unclear}" for path in self._unreadable
        ]
        return [
            *problems,
            *filter(None, (import_problem(file.path, folder=root) for file in self._files)),
        ]

    def _need_branch(self) -> Branch:
        if self._branch is None:
            raise _Skipped("needs a base branch")
        return self._branch

    def _need_imports(self) -> None:
        if self._broken:
            raise _Skipped("needs revisions that import")

    def _new(self, branch: Branch) -> list[RevisionFile]:
        return [file for file in self._files if file.revision not in branch.files]

    def _scratch(self) -> AbstractAsyncContextManager[Scratch]:
        return scratch(self._project, (), with_data=False, empty=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _plan_problems(item: RevisionPlan) -> list[str]:
    problems = []
    for reason in item.reasons:
        if reason.open:
            way = textwrap.indent(f"the safe way:\n{textwrap.indent(reason.safe_way, '  ')}", "  ")
            line = f"{item.revision}: {reason.key}: {reason.why}"
            problems.append(f"{line}\n{way}" if reason.safe_way else line)
    if item.rehearsed.error:
        problems.append(f"{item.revision}: the rehearsal failed: {item.rehearsed.error}")
    return [*problems, *(f"{item.revision}: {wrong}" for wrong in item.wrong_acknowledgements)]
