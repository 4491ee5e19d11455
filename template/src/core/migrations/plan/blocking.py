"""Rules for statements that block reads or writes for long, or rewrite a table."""

from collections.abc import Iterator
from dataclasses import replace

from core.migrations.plan import remedies
from core.migrations.plan.diff import ChangeKind
from core.migrations.plan.effects import TableEffect
from core.migrations.plan.locks import LockMode
from core.migrations.plan.recorder import Statement
from core.migrations.plan.sizes import Sizes
from core.migrations.plan.statement_text import CHANGES_ROWS, has_verb, truncates
from core.migrations.plan.verdicts import Reason, Verdict

_BUILDS_INDEX = {ChangeKind.INDEX_BUILT, ChangeKind.INDEX_REBUILT}


def find_blocking(statement: Statement, sizes: Sizes) -> Iterator[Reason]:
    """Yield the tables that a statement blocks while it reads or rewrites them, or another one."""
    tables = statement.effects.tables
    works = {effect.table: work for effect in tables if (work := _work(effect, statement))}
    slowest = max(
        (effect for effect in tables if effect.table in works),
        key=lambda effect: sizes.seconds(effect.live, rewrite=effect.rewritten),
        default=None,
    )
    for effect in tables:
        reason = None
        if effect.table in works:
            reason = _blocked_by_itself(effect, statement, works[effect.table])
        elif slowest is not None and _blocks(effect) and statement.in_transaction:
            reason = _blocked_by_other(effect, statement, slowest, works[slowest.table])
        if reason is not None:
            rewrite = reason.verdict is Verdict.REWRITES
            duration = sizes.describe_duration(reason.measured, rewrite=rewrite)
            yield replace(reason, why=reason.why + duration)


def _work(effect: TableEffect, statement: Statement) -> str:
    """Return the work on every row of a table, as a clause; empty if there is none."""
    table = effect.table
    built = any(c.table == table and c.kind in _BUILDS_INDEX for c in statement.effects.changes)
    # Only the partitions of a partitioned table have rows.
    if effect.kind == "p" or truncates(effect, statement):
        return ""
    if effect.rewritten:
        return f"every row of {table} is rewritten"
    if built:
        return f"an index of {table} is built"
    return f"every row of {table} is read" if effect.scanned and not _is_readable(effect) else ""


def _is_readable(effect: TableEffect) -> bool:
    """Return whether it is a materialized view that can be read; sessions never write to one."""
    return effect.kind == "m" and effect.lock < LockMode.ACCESS_EXCLUSIVE


def _blocks(effect: TableEffect) -> bool:
    return effect.lock >= LockMode.SHARE and not _is_readable(effect)


def _waiting(lock: LockMode) -> tuple[Verdict, str]:
    if lock >= LockMode.ACCESS_EXCLUSIVE:
        return Verdict.BLOCKS_READS, "reads and writes wait meanwhile"
    return Verdict.BLOCKS_WRITES, "writes wait meanwhile"


def _blocked_by_itself(effect: TableEffect, statement: Statement, work: str) -> Reason | None:
    table, changes = effect.table, statement.effects.changes
    if effect.rewritten:
        return Reason(
            verdict=Verdict.REWRITES,
            table=table,
            why=f"{work}: reads and writes wait meanwhile",
            safe_way=remedies.avoid_rewrite(effect, changes, statement.sql),
            measured=effect.live,
        )
    if effect.lock >= LockMode.SHARE:
        verdict, waiting = _waiting(effect.lock)
        return Reason(
            verdict=verdict,
            table=table,
            why=f"{work} under {effect.lock}: {waiting}",
            safe_way=remedies.avoid_scan(effect, changes, statement.sql),
            measured=effect.live,
        )
    # A lock from an earlier change of rows does not tell that this statement changes rows, too.
    changing = effect.acquired or effect.rows > 0 or has_verb(statement, table, CHANGES_ROWS)
    if effect.lock == LockMode.ROW_EXCLUSIVE and changing:
        return Reason(
            verdict=Verdict.BLOCKS_WRITES,
            table=table,
            why=f"rows of {table} are changed in one transaction: writes to those wait meanwhile",
            safe_way=remedies.change_in_batches(effect, statement.sql),
            measured=effect.live,
        )
    return None


def _blocked_by_other(
    effect: TableEffect, statement: Statement, slowest: TableEffect, work: str
) -> Reason:
    verdict, waiting = _waiting(effect.lock)
    if effect.acquired:
        safe_way = remedies.avoid_scan(slowest, statement.effects.changes, statement.sql)
    else:
        safe_way = remedies.OWN_REVISION
    return Reason(
        verdict=verdict,
        table=effect.table,
        why=f"{work} under {effect.lock} on {effect.table}: {waiting}",
        safe_way=safe_way,
        measured=slowest.live,
    )
