"""Rules for statements that delete rows, columns or tables."""

from collections.abc import Iterator

from core.migrations.plan import remedies
from core.migrations.plan.diff import ChangeKind
from core.migrations.plan.locks import LockMode
from core.migrations.plan.recorder import Statement
from core.migrations.plan.statement_text import DELETES, has_verb, truncates
from core.migrations.plan.verdicts import Reason, Verdict


def find_data_loss(statement: Statement) -> Iterator[Reason]:
    """Yield the data of the live database that a statement deletes."""
    for effect in statement.effects.tables:
        if truncates(effect, statement):
            yield _reason(effect.table, f"all rows of {effect.table} are deleted")
        elif effect.lock >= LockMode.ROW_EXCLUSIVE and has_verb(statement, effect.table, DELETES):
            yield _reason(effect.table, f"rows of {effect.table} are deleted")
    for change in statement.effects.changes:
        if change.new:
            continue
        if change.kind is ChangeKind.TABLE_DROPPED:
            yield _reason(change.table, f"the table {change.table} is dropped")
        elif change.kind is ChangeKind.COLUMN_DROPPED:
            yield _reason(change.table, f"the column {change.table}.{change.name} is dropped")


def _reason(table: str, why: str) -> Reason:
    return Reason(
        verdict=Verdict.DESTROYS_DATA,
        table=table,
        why=why,
        safe_way=remedies.acknowledge(f"{Verdict.DESTROYS_DATA}:{table}"),
    )
