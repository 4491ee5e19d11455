"""Differences between two snapshots of a relation."""

from dataclasses import dataclass, replace
from enum import StrEnum

from core.migrations.plan.snapshot import Column, Relation


class ChangeKind(StrEnum):
    """Kinds of changes to a relation."""

    TABLE_DROPPED = "table dropped"
    TABLE_RENAMED = "table renamed"
    VIEW_DROPPED = "view dropped"
    PARTITION_DETACHED = "partition detached"
    ROWS_SECURED = "row level security enabled"
    COLUMN_ADDED = "column added"
    COLUMN_DROPPED = "column dropped"
    COLUMN_RENAMED = "column renamed"
    COLUMN_RETYPED = "column retyped"
    COLUMN_REQUIRED = "column made required"
    COLUMN_GENERATED = "column made generated"
    CONSTRAINT_ADDED = "constraint added"
    CONSTRAINT_VALIDATED = "constraint validated"
    CONSTRAINT_DROPPED = "constraint dropped"
    INDEX_BUILT = "index built"
    INDEX_REBUILT = "index rebuilt"
    INDEX_DROPPED = "index dropped"


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change to a relation."""

    kind: ChangeKind
    table: str
    name: str = ""
    """Of the column, constraint, index or partition that was changed."""
    detail: str = ""
    """The new name, or the definition."""
    required: bool = False
    """For a column: whether an INSERT that omits it fails."""
    type: str = ""
    """For a column: its new type. For a constraint: its kind."""
    old_type: str = ""
    """For a column: the type that it had before."""
    enforces: str = ""
    """For a dropped index: what it kept unique."""
    new: bool = False
    """Whether the live database lacks the changed object, so that no code uses it."""


def compare_relations(old: Relation, new: Relation | None, live: Relation | None) -> list[Change]:
    """Return the changes to a relation.

    Args:
        old: the relation before.
        new: the relation after; None if it was dropped.
        live: the relation before all pending revisions; None if one of them creates it.
    """
    changes = _compare(old, new, live)
    return changes if live is not None else [replace(change, new=True) for change in changes]


def _compare(old: Relation, new: Relation | None, live: Relation | None) -> list[Change]:
    if new is None:
        dropped = ChangeKind.VIEW_DROPPED if old.kind in "vm" else ChangeKind.TABLE_DROPPED
        return [Change(kind=dropped, table=old.name)]
    changes = []
    if new.secured and not old.secured:
        changes.append(Change(kind=ChangeKind.ROWS_SECURED, table=old.name))
    if new.name != old.name:
        renamed = Change(kind=ChangeKind.TABLE_RENAMED, table=old.name, detail=new.name)
        changes.append(renamed)
    changes += _compare_columns(old, new, live)
    for oid, constraint in new.constraints.items():
        previous = old.constraints.get(oid)
        if previous is None:
            kind = ChangeKind.CONSTRAINT_ADDED
        elif constraint.validated and not previous.validated:
            kind = ChangeKind.CONSTRAINT_VALIDATED
        else:
            continue
        changes.append(
            Change(
                kind=kind,
                table=old.name,
                name=constraint.name,
                detail=constraint.definition,
                type=constraint.kind,
            )
        )
    gone = [item.name for oid, item in old.constraints.items() if oid not in new.constraints]
    changes += [Change(kind=ChangeKind.CONSTRAINT_DROPPED, table=old.name, name=n) for n in gone]
    for oid, index in new.indexes.items():
        before = old.indexes.get(oid)
        if before is None or before.file != index.file:
            built = ChangeKind.INDEX_BUILT if before is None else ChangeKind.INDEX_REBUILT
            definition = index.definition
            changes.append(Change(kind=built, table=old.name, name=index.name, detail=definition))
    dropped = ChangeKind.INDEX_DROPPED
    changes += [
        Change(
            kind=dropped,
            table=old.name,
            name=index.name,
            enforces=index.enforces,
            new=live is not None and oid not in live.indexes,
        )
        for oid, index in old.indexes.items()
        if oid not in new.indexes
    ]
    return changes


def _compare_columns(old: Relation, new: Relation, live: Relation | None) -> list[Change]:
    changes: list[Change] = []

    def changed(kind: ChangeKind, column: Column, detail: str = "", name: str = "") -> None:
        # A required column breaks the code that does not know it, so it is never `new`.
        unknown = live is not None and number not in live.columns and number in old.columns
        changes.append(
            Change(
                kind=kind,
                table=old.name,
                name=name or column.name,
                new=unknown and kind is not ChangeKind.COLUMN_REQUIRED,
                old_type=old.columns[number].type if number in old.columns else "",
                detail=detail,
                type=column.type,
                required=column.missing,
            )
        )

    for number, column in new.columns.items():
        before = old.columns.get(number)
        if before is None:
            changed(ChangeKind.COLUMN_ADDED, column, column.type)
            continue
        if column.name != before.name:
            changed(ChangeKind.COLUMN_RENAMED, column, column.name, before.name)
        if column.type != before.type:
            detail = f"{before.type} to {column.type}"
            changed(ChangeKind.COLUMN_RETYPED, column, detail)
        if (column.required, column.missing) > (before.required, before.missing):
            changed(ChangeKind.COLUMN_REQUIRED, column)
        if column.always and not before.always:
            changed(ChangeKind.COLUMN_GENERATED, column)
    for number, column in old.columns.items():
        if number not in new.columns:
            changed(ChangeKind.COLUMN_DROPPED, column)
    return changes
