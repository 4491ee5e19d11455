"""Rules for changes that break the code that runs while the migration is applied."""

import re
from collections.abc import Iterator

from core.migrations.plan import remedies
from core.migrations.plan.diff import Change, ChangeKind
from core.migrations.plan.recorder import RehearsedRevision, Statement
from core.migrations.plan.verdicts import Reason, Verdict
from core.migrations.source.models import ModelColumns

_DROPPED = "{what} is dropped: code that uses it fails"
_RENAMED = "{what} is renamed to {change.detail}: code that uses the old name fails"
_REQUIRED = "{what} is required and has no default: an INSERT that omits it fails"
_BREAKS = {
    ChangeKind.TABLE_DROPPED: _DROPPED,
    ChangeKind.VIEW_DROPPED: _DROPPED,
    ChangeKind.COLUMN_DROPPED: f"the column {_DROPPED}",
    ChangeKind.TABLE_RENAMED: _RENAMED,
    ChangeKind.COLUMN_RENAMED: _RENAMED,
    ChangeKind.COLUMN_RETYPED: (
        "{what} changes from {change.detail}: code that expects the old type may fail"
    ),
    ChangeKind.COLUMN_ADDED: _REQUIRED,
    ChangeKind.COLUMN_REQUIRED: _REQUIRED,
    ChangeKind.COLUMN_GENERATED: (
        "{what} is always generated: an INSERT that gives it a value fails"
    ),
    ChangeKind.PARTITION_DETACHED: (
        "{change.name} is no longer a partition: its rows are gone from {change.table}"
    ),
    ChangeKind.ROWS_SECURED: "row level security hides rows of {what} from all but its owner",
    ChangeKind.INDEX_DROPPED: (
        "no index keeps {change.enforces} of {change.table} unique: INSERT ... ON CONFLICT fails"
    ),
}

_IN_MODELS = {
    ChangeKind.TABLE_DROPPED,
    ChangeKind.TABLE_RENAMED,
    ChangeKind.COLUMN_ADDED,
    ChangeKind.COLUMN_DROPPED,
    ChangeKind.COLUMN_RENAMED,
    ChangeKind.COLUMN_RETYPED,
    ChangeKind.COLUMN_REQUIRED,
    ChangeKind.COLUMN_GENERATED,
}
"""Changes whose use the models tell. Code may use views, indexes and the like in SQL only."""
_OF_WHOLE_TABLE = {
    ChangeKind.TABLE_DROPPED,
    ChangeKind.TABLE_RENAMED,
    ChangeKind.COLUMN_ADDED,
    ChangeKind.COLUMN_REQUIRED,
}
"""Changes that break code that uses the table, even if it does not know the column."""


def find_breaks(
    statement: Statement, revision: RehearsedRevision, deployed: ModelColumns | None
) -> Iterator[Reason]:
    """Yield the changes of a statement that break running code.

    Args:
        statement: the statement.
        revision: its revision, which may restore later what the statement changes.
        deployed: the tables and columns that running code uses; None if it may use all.
    """
    effects = statement.effects
    rewritten = {effect.table for effect in effects.tables if effect.rewritten}
    for change in effects.changes:
        # A retyped column that is not rewritten and takes all old values is compatible.
        if change.new or (change.table not in rewritten and _is_widened(change)):
            continue
        broken = _describe(change)
        if broken and _is_used(change, deployed) and not _is_restored(change, revision):
            key = next(
                (effect.key for effect in effects.tables if effect.table == change.table), ""
            )
            yield Reason(
                verdict=Verdict.BREAKS_RUNNING_CODE,
                table=change.table,
                why=broken,
                safe_way=remedies.avoid_break(change, key),
            )


def find_dropped_objects(revision: RehearsedRevision) -> Iterator[Reason]:
    """Yield the functions, sequences and enum values that a revision dropped or renamed."""
    for item in revision.gone:
        if item.value:
            name = f"the value {item.value!r} of {item.name}"
        else:
            name = f"the {item.kind} {item.name}"
        yield Reason(
            verdict=Verdict.BREAKS_RUNNING_CODE,
            table=item.name,
            why=f"{name} is gone: code that uses it fails",
            safe_way=remedies.NEXT_RELEASE,
        )


def _describe(change: Change) -> str:
    """Return what a change breaks, as a sentence; empty if it breaks nothing."""
    of_insert = {ChangeKind.COLUMN_ADDED, ChangeKind.COLUMN_REQUIRED}
    if change.kind in of_insert and not change.required:
        return ""
    if change.kind is ChangeKind.INDEX_DROPPED and not change.enforces:
        return ""
    what = f"{change.table}.{change.name}" if change.name else change.table
    return _BREAKS.get(change.kind, "").format(what=what, change=change)


def _is_used(change: Change, deployed: ModelColumns | None) -> bool:
    if deployed is None or change.kind not in _IN_MODELS:
        return True
    columns = deployed.get(change.table.replace('"', ""))
    if columns is None:
        return False
    return change.kind in _OF_WHOLE_TABLE or change.name.replace('"', "") in columns


def _is_widened(change: Change) -> bool:
    """Return whether a column's new type has the same or more values: varchar(n), text."""
    if change.kind is not ChangeKind.COLUMN_RETYPED:
        return False
    old, new = (re.sub(r"\(.*?\)", "", name) for name in (change.old_type, change.type))
    return old == new or (old, new) == ("character varying", "text")


def _is_restored(change: Change, revision: RehearsedRevision) -> bool:
    """Return whether the revision restores what the statement changed, as by a view."""
    old, new = revision.before.get(change.table), revision.after.get(change.table)
    if old is None or new is None:
        return False
    column = new.column(change.name)
    restored = False
    match change.kind:
        case ChangeKind.TABLE_DROPPED | ChangeKind.VIEW_DROPPED | ChangeKind.TABLE_RENAMED:
            has = {(column.name, column.type) for column in new.columns.values()}
            restored = all((column.name, column.type) in has for column in old.columns.values())
        case ChangeKind.COLUMN_DROPPED | ChangeKind.COLUMN_RENAMED | ChangeKind.COLUMN_RETYPED:
            before = old.column(change.name)
            restored = bool(column and before and column.type == before.type)
        case ChangeKind.COLUMN_ADDED | ChangeKind.COLUMN_REQUIRED:
            restored = column is None or not column.missing
        case ChangeKind.COLUMN_GENERATED:
            restored = column is not None and not column.always
        case ChangeKind.ROWS_SECURED:
            restored = not new.secured
        case ChangeKind.INDEX_DROPPED:
            restored = any(index.enforces == change.enforces for index in new.indexes.values())
    return restored
