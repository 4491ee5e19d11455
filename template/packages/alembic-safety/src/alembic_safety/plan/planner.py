"""Planner: rehearses the pending revisions, and judges them by the live tables."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from alembic.script import ScriptDirectory

from alembic_safety.boundary import migration_errors
from alembic_safety.database.connection import create_engine
from alembic_safety.database.history import last_rollout
from alembic_safety.errors import MigrationError
from alembic_safety.plan.recorder import RehearsedRevision
from alembic_safety.plan.rehearsal import prepare, rehearse
from alembic_safety.plan.rules import judge, wrong_acknowledgements
from alembic_safety.plan.scratch import scratch
from alembic_safety.plan.sizes import Size, Sizes, read_sizes
from alembic_safety.plan.verdicts import Reason, Verdict
from alembic_safety.project import Project
from alembic_safety.source.branch import read_branch
from alembic_safety.source.git import find_commit
from alembic_safety.source.models import ModelColumns, read_models
from alembic_safety.state import Revisions, SchemaReader, State

RECORDED = "recorded"


@dataclass(frozen=True, kw_only=True)
class RevisionPlan:
    """Plan of one revision."""

    revision: str
    message: str
    rehearsed: RehearsedRevision
    reasons: list[Reason]
    wrong_acknowledgements: list[str]

    @property
    def verdicts(self) -> list[Verdict]:
        """Verdicts that count, or `safe`."""
        found = list(dict.fromkeys(reason.verdict for reason in self.reasons if reason.open))
        return found or [Verdict.SAFE]

    @property
    def safe(self) -> bool:
        """True if the revision may run."""
        failed = self.rehearsed.error or self.wrong_acknowledgements
        return not failed and self.verdicts == [Verdict.SAFE]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of a migration."""

    database: str
    rehearsed_on: str
    """The server, in words; empty if there was nothing to rehearse."""
    current: tuple[str, ...]
    """The revisions that the plan starts from."""
    with_data: bool = False
    base: str = ""
    """The branch that the revisions are new to; empty if they are pending in the database."""
    revisions: list[RevisionPlan] = field(default_factory=list)
    tables: Mapping[str, Size] = field(default_factory=dict)
    """Sizes of the live tables that the revisions lock."""

    @property
    def safe(self) -> bool:
        """True if all revisions are safe."""
        return all(item.safe for item in self.revisions)


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Scope of a plan."""

    start: str = ""
    """A revision to start from instead of the live one, on a schema built from the revisions."""
    target: str = "head"
    """The revision to go to."""
    with_data: bool = False
    """Whether to copy the rows as well."""
    deployed: str = ""
    """The branch or commit that is deployed, whose models tell what running code uses.

    `RECORDED` stands for the last recorded roll-out, if that is a commit here. Empty, all tables
    and columns count as used.
    """
    base: str = ""
    """A branch or commit: plan the revisions that are new to it, not those that are pending."""


async def make_plan(project: Project, options: PlanOptions) -> Plan:
    """Rehearse the pending revisions of a database, and return their plan.

    Args:
        project: whose database is only read. With `options.base` it is not connected to, except to
            make the scratch copy on its server.
        options: what to plan.

    Raises:
        MigrationError: the database can't be read, no scratch copy can be made, or a branch or
            commit is not here.
        ClientProgramError: the database can't be dumped.
    """
    if options.base:
        return await _plan_branch(project, options)
    live, safety = project.target.url, project.options
    start, with_data, deployed = options.start, options.with_data, options.deployed
    revisions = Revisions.load(project.make_config())
    engine = create_engine(live)
    state = await SchemaReader(engine, revisions).read()
    if state.state is State.UNREACHABLE:
        raise MigrationError(state.reason)
    if state.state is State.AHEAD and not start:
        raise MigrationError(state.describe())
    if not start and not state.pending:
        return Plan(database=live.database, rehearsed_on="", current=state.current)
    async with engine.connect() as connection:
        tables = await connection.run_sync(partial(read_sizes, lock_wait=safety.lock_wait))
        if deployed == RECORDED:
            deployed = _find_rollout(project, await connection.run_sync(last_rollout))
    models = read_models(project, deployed, variable="DEPLOYED") if deployed else None
    async with scratch(project, state.current, with_data=with_data, empty=bool(start)) as copy:
        if start not in {"", "base"}:
            await prepare(project, copy, start)
        rehearsed = await rehearse(project, copy, options.target)
    sizes = Sizes(
        tables=tables, small_rows=safety.plan_small_rows, small_bytes=safety.plan_small_bytes
    )
    locked = {
        effect.live
        for item in rehearsed
        for statement in item.statements
        for effect in statement.effects.tables
    }
    return Plan(
        database=live.database,
        rehearsed_on=copy.server,
        current=(start,) if start else state.current,
        with_data=with_data,
        revisions=plan_revisions(project, rehearsed, revisions, sizes, models),
        tables={name: size for name, size in tables.items() if name in locked},
    )


def _find_rollout(project: Project, version: str) -> str:
    """Return the commit of a recorded version; empty if it is none of this repository."""
    with suppress(MigrationError):
        return find_commit(version, variable="DEPLOYED", folder=project.root) if version else ""
    return ""


async def _plan_branch(project: Project, options: PlanOptions) -> Plan:
    """Plan the revisions that this branch adds to its base."""
    if options.start or options.with_data:
        given = "FROM" if options.start else "WITH_DATA"
        raise MigrationError(
            f"BASE starts from the revisions of the base, without rows: leave {given} out"
        )
    branch = read_branch(project, options.base)
    heads = () if branch is None else tuple(branch.heads)
    revisions = Revisions.load(project.make_config())
    state = revisions.state(heads)
    if state.state is State.AHEAD:
        raise MigrationError(f"{options.base} has revisions that are not here: merge it first")
    plan = Plan(
        database=project.target.url.database, rehearsed_on="", current=heads, base=options.base
    )
    if not state.pending:
        return plan
    models = None
    if options.deployed:
        models = read_models(project, options.deployed, variable="DEPLOYED")
    else:
        # The base's models may need packages that are not installed. Then all counts as used.
        with suppress(MigrationError):
            models = read_models(project, options.base, variable="BASE")
    target = "heads" if options.target == "head" else options.target
    server, rehearsed = await rehearse_from(project, heads, target)
    judged = plan_revisions(project, rehearsed, revisions, Sizes(tables=None), models)
    return replace(plan, rehearsed_on=server, revisions=judged)


async def rehearse_from(
    project: Project, heads: Iterable[str], target: str
) -> tuple[str, list[RehearsedRevision]]:
    """Rehearse the revisions from `heads` to `target` on a schema built from the revisions.

    Returns:
        The server, in words, and the revisions.

    Raises:
        MigrationError: no scratch copy can be made, or a revision up to the heads fails.
    """
    async with scratch(project, (), with_data=False, empty=True) as copy:
        for head in heads:
            await prepare(project, copy, head)
        return copy.server, await rehearse(project, copy, target)


def plan_revisions(
    project: Project,
    rehearsed: list[RehearsedRevision],
    revisions: Revisions,
    sizes: Sizes,
    deployed: ModelColumns | None,
) -> list[RevisionPlan]:
    """Judge rehearsed revisions; return the plan of each.

    Raises:
        MigrationError: `acknowledged` of a revision is not a dict.
    """
    script = ScriptDirectory.from_config(project.make_config())
    plans = []
    for item in rehearsed:
        with migration_errors():
            module = script.get_revision(item.revision).module
        acknowledged = getattr(module, "acknowledged", {})
        if not isinstance(acknowledged, Mapping):
            raise MigrationError(
                f"{module.__file__}: acknowledged: expected a dict of a verdict and table to a "
                'reason, such as {"rewrites:orders": "window on 12 May"}, '
                f"not {acknowledged!r}"
            )
        reasons = judge(item, sizes, acknowledged, deployed)
        # A plan without `deployed` has more reasons, and their acknowledgements are right.
        all_reasons = reasons if deployed is None else judge(item, sizes, acknowledged)
        plans.append(
            RevisionPlan(
                revision=item.revision,
                message=revisions[item.revision].message,
                rehearsed=item,
                reasons=reasons,
                wrong_acknowledgements=wrong_acknowledgements(all_reasons, acknowledged),
            )
        )
    return plans
