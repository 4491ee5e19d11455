"""The plan: pending revisions, rehearsed, measured against the live tables, and judged."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.pool import NullPool

from core.database import create_engine
from core.database_url import DatabaseURL
from core.migrations.config import SafetyOptions, make_config
from core.migrations.errors import MigrationError, migration_errors
from core.migrations.plan.rehearsal import Rehearsed, rehearse
from core.migrations.plan.scratch import scratch
from core.migrations.plan.verdicts import (
    Reason,
    Size,
    Threshold,
    Verdict,
    judge,
    wrong_acknowledgements,
)
from core.migrations.state import Revisions, SchemaReader, State

_SIZES = text(
    """
    SELECT c.oid::regclass::text AS name, greatest(c.reltuples, 0)::bigint AS rows,
           pg_relation_size(c.oid) AS bytes, pg_indexes_size(c.oid) AS index_bytes
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    """
)


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
    revisions: list[RevisionPlan] = field(default_factory=list)

    @property
    def safe(self) -> bool:
        """Whether all of it is safe."""
        return all(item.safe for item in self.revisions)


async def make_plan(
    live: DatabaseURL,
    options: SafetyOptions,
    *,
    start: str = "",
    target: str = "head",
    with_data: bool = False,
) -> Plan:
    """Rehearse what is pending in `live`, which is only read, and return what it would do.

    Args:
        live: the database.
        options: what is small.
        start: a revision to begin at instead of the live one, on a schema made from the revisions.
        target: the revision to go to.
        with_data: copy the rows, too.

    Raises:
        MigrationError: the database can't be read, or no copy can be made.
        ClientProgramError: the database can't be dumped.
    """
    revisions = Revisions.load()
    engine = create_engine(live, poolclass=NullPool)
    state = await SchemaReader(engine, revisions).read()
    if state.state is State.UNREACHABLE:
        raise MigrationError(state.reason)
    if state.state is State.AHEAD and not start:
        raise MigrationError(state.describe())
    async with engine.connect() as connection:
        sizes = await connection.run_sync(_read_sizes)
    if not start and not state.pending:
        return Plan(database=live.database, rehearsed_on="", current=state.current)
    async with scratch(live, state.current, with_data=with_data, empty=bool(start)) as copy:
        if start not in {"", "base"}:
            await _bring_to(copy.url, start)
        rehearsed = await rehearse(copy.url, target)
    threshold = Threshold(rows=options.plan_small_rows, bytes=options.plan_small_bytes)
    script = ScriptDirectory.from_config(make_config())
    plans = []
    for item in rehearsed:
        with migration_errors():
            module = script.get_revision(item.revision).module
        acknowledged: Mapping[str, str] = getattr(module, "acknowledged", {})
        reasons = judge(item, sizes, threshold, acknowledged)
        plans.append(
            RevisionPlan(
                revision=item.revision,
                message=revisions[item.revision].message,
                rehearsed=item,
                reasons=reasons,
                wrong_acknowledgements=wrong_acknowledgements(reasons, acknowledged),
            )
        )
    current = (start,) if start else state.current
    return Plan(database=live.database, rehearsed_on=copy.server, current=current, revisions=plans)


def _read_sizes(connection: Connection) -> dict[str, Size]:
    return {
        row.name: Size(rows=row.rows, bytes=row.bytes, index_bytes=row.index_bytes)
        for row in connection.execute(_SIZES)
    }


async def _bring_to(url: DatabaseURL, revision: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(
            lambda sync: command.upgrade(make_config(connection=sync), revision)
        )
