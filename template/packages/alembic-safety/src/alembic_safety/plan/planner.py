"""The plan: pending revisions, rehearsed, measured against the live tables, and judged."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.pool import NullPool

from alembic_safety.config import SafetyOptions, make_config
from alembic_safety.database.history import last_rollout
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import MigrationError, migration_errors
from alembic_safety.plan.rehearsal import Confinement, Rehearsed, rehearse
from alembic_safety.plan.scratch import Scratch, scratch
from alembic_safety.plan.verdicts import (
    Reason,
    Size,
    Sizes,
    Verdict,
    judge,
    wrong_acknowledgements,
)
from alembic_safety.source.deployed import Models, read_models
from alembic_safety.source.git import find_commit
from alembic_safety.source.revision_files import read_branch
from alembic_safety.state import Revisions, SchemaReader, State
from core.database import create_engine

_SIZES = text(
    """
    SELECT CASE n.nspname WHEN 'public' THEN '' ELSE quote_ident(n.nspname) || '.' END
            || quote_ident(c.relname) AS name,
        sum(greatest(part.reltuples, 0))::bigint AS rows,
        sum(pg_table_size(part.oid))::bigint AS bytes,
        sum(pg_indexes_size(part.oid))::bigint AS index_bytes
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL (
        SELECT c.oid WHERE c.relkind <> 'p' UNION SELECT relid FROM pg_partition_tree(c.oid)
    ) AS tree JOIN pg_class part ON part.oid = tree.oid
    WHERE c.relkind IN ('r', 'm', 'p') AND n.nspname !~ '^pg_'
      AND n.nspname <> 'information_schema'
    GROUP BY 1
    """
)


RECORDED = "recorded"


@dataclass(frozen=True, kw_only=True)
class RevisionPlan:
    """What one revision would do."""

    revision: str
    message: str
    rehearsed: Rehearsed
    reasons: list[Reason]
    wrong_acknowledgements: list[str]

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdicts that nobody acknowledged, or `safe`."""
        found = list(dict.fromkeys(reason.verdict for reason in self.reasons if reason.open))
        return found or [Verdict.SAFE]

    @property
    def safe(self) -> bool:
        """Whether nothing stands in its way."""
        failed = self.rehearsed.error or self.wrong_acknowledgements
        return not failed and self.verdicts == [Verdict.SAFE]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What migrating would do."""

    database: str
    rehearsed_on: str
    current: tuple[str, ...]
    with_data: bool = False
    base: str = ""
    """The branch to which the revisions are new; empty where they are pending in the database."""
    revisions: list[RevisionPlan] = field(default_factory=list)
    tables: Mapping[str, Size] = field(default_factory=dict)
    """The live tables that the revisions touch."""

    @property
    def safe(self) -> bool:
        """Whether all of it is safe."""
        return all(item.safe for item in self.revisions)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be planned."""

    start: str = ""
    """A revision to begin at instead of the live one, on a schema made from the revisions."""
    target: str = "head"
    """The revision to go to."""
    with_data: bool = False
    """Whether the rows are copied, too."""
    deployed: str = ""
    """The branch or commit that runs now, whose models say what is used; else everything is.

    `RECORDED` is what was rolled out last, where the record has that, and it is a commit here.
    """
    base: str = ""
    """A branch or commit: what this one adds to its revisions, whatever the database has."""


async def make_plan(live: DatabaseURL, options: SafetyOptions, request: Request) -> Plan:
    """Rehearse what is pending in `live`, which is only read, and return what it would do.

    Args:
        live: the database. With a base it need not be there, and is not looked at.
        options: what is small.
        request: which revisions, on a copy of what.

    Raises:
        MigrationError: the database can't be read, or no copy can be made; the base is not here,
            or not all of it.
        ClientProgramError: the database can't be dumped.
    """
    if request.base:
        return await _plan_branch(live, request)
    start, with_data, deployed = request.start, request.with_data, request.deployed
    revisions = Revisions.load()
    engine = create_engine(live, poolclass=NullPool)
    state = await SchemaReader(engine, revisions).read()
    if state.state is State.UNREACHABLE:
        raise MigrationError(state.reason)
    if state.state is State.AHEAD and not start:
        raise MigrationError(state.describe())
    if not start and not state.pending:
        return Plan(database=live.database, rehearsed_on="", current=state.current)
    async with engine.connect() as connection:
        tables = await connection.run_sync(_read_sizes)
        if deployed == RECORDED:
            deployed = _known(await connection.run_sync(last_rollout))
    models = read_models(deployed, variable="DEPLOYED") if deployed else None
    async with scratch(live, state.current, with_data=with_data, empty=bool(start)) as copy:
        if start not in {"", "base"}:
            await bring_to(copy, start)
        rehearsed = await rehearse(copy.url, request.target, shared=copy.shared)
    sizes = Sizes(
        tables=tables, small_rows=options.plan_small_rows, small_bytes=options.plan_small_bytes
    )
    touched = {
        effect.live
        for item in rehearsed
        for statement in item.statements
        for effect in statement.observation.effects
    }
    return Plan(
        database=live.database,
        rehearsed_on=copy.server,
        current=(start,) if start else state.current,
        with_data=with_data,
        revisions=plan_revisions(rehearsed, revisions, sizes, models),
        tables={name: size for name, size in tables.items() if name in touched},
    )


def _known(version: str) -> str:
    """Return what was rolled out, if it is a commit here."""
    with suppress(MigrationError):
        return find_commit(version, variable="DEPLOYED") if version else ""
    return ""


async def _plan_branch(live: DatabaseURL, request: Request) -> Plan:
    """Plan what this branch adds to its base."""
    if request.start or request.with_data:
        given = "FROM" if request.start else "WITH_DATA"
        raise MigrationError(
            f"BASE begins at the base's revisions, without rows: leave {given} out"
        )
    branch = read_branch(request.base)
    heads = () if branch is None else tuple(branch.heads)
    revisions = Revisions.load()
    state = revisions.state(heads)
    if state.state is State.AHEAD:
        raise MigrationError(f"{request.base} has revisions that are not here: merge it first")
    plan = Plan(database=live.database, rehearsed_on="", current=heads, base=request.base)
    if not state.pending:
        return plan
    models = None
    if request.deployed:
        models = read_models(request.deployed, variable="DEPLOYED")
    else:
        with suppress(MigrationError):  # of packages that are not here any more: all is used
            models = read_models(request.base, variable="BASE")
    target = "heads" if request.target == "head" else request.target
    server, rehearsed = await rehearse_from(live, heads, target)
    judged = plan_revisions(rehearsed, revisions, Sizes(tables=None), models)
    return replace(plan, rehearsed_on=server, revisions=judged)


async def rehearse_from(
    url: DatabaseURL, heads: Iterable[str], target: str
) -> tuple[str, list[Rehearsed]]:
    """Rehearse the revisions from `heads` to `target` on an empty copy; return where, and them.

    Raises:
        MigrationError: no copy can be made, or a revision before the heads fails.
    """
    async with scratch(url, (), with_data=False, empty=True) as copy:
        for head in heads:
            await bring_to(copy, head)
        return copy.server, await rehearse(copy.url, target, shared=copy.shared)


def plan_revisions(
    rehearsed: list[Rehearsed], revisions: Revisions, sizes: Sizes, deployed: Models | None
) -> list[RevisionPlan]:
    """Return what each of the rehearsed revisions would do, judged.

    Raises:
        MigrationError: `acknowledged` of one is no table of texts.
    """
    script = ScriptDirectory.from_config(make_config())
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
        # Whoever did not say what is deployed was told more, and may have acknowledged it.
        told = reasons if deployed is None else judge(item, sizes, acknowledged)
        plans.append(
            RevisionPlan(
                revision=item.revision,
                message=revisions[item.revision].message,
                rehearsed=item,
                reasons=reasons,
                wrong_acknowledgements=wrong_acknowledgements(told, acknowledged),
            )
        )
    return plans


def _read_sizes(connection: Connection) -> dict[str, Size]:
    return {
        row.name: Size(rows=row.rows, bytes=row.bytes, index_bytes=row.index_bytes)
        for row in connection.execute(_SIZES)
    }


async def bring_to(copy: Scratch, revision: str) -> None:
    """Upgrade a copy to a revision; what is for the whole of a live server is refused there."""

    def upgrade(connection: Connection) -> None:
        confinement = Confinement(connection, shared=copy.shared)
        with confinement.watched():
            command.upgrade(make_config(connection=connection, recorder=confinement), revision)

    engine = create_engine(copy.url, poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(upgrade)
