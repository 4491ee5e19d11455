"""What PostgreSQL says of its tables, before and after a statement.

Read inside the migration's own transaction: which locks it holds, whether a table has another file
(it was rewritten), whether it was read to its end, and what the catalogs have that they had not.
https://www.postgresql.org/docs/current/explicit-locking.html
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Self

from sqlalchemy import Connection, text

from core.migrations import batches, record
from core.migrations.backup import server_major
from core.migrations.lock import VERSION_TABLE

OWN_TABLES = frozenset({VERSION_TABLE, record.TABLE, batches.TABLE})
_FIRST_USER_OID = 16384
_FLUSHES_ON_DEMAND = 15
"""The first version of PostgreSQL with pg_stat_force_next_flush()."""


class Lock(IntEnum):
    """The locks of tables, each stronger than the one before."""

    ACCESS_SHARE = 1
    ROW_SHARE = 2
    ROW_EXCLUSIVE = 3
    SHARE_UPDATE_EXCLUSIVE = 4
    SHARE = 5
    SHARE_ROW_EXCLUSIVE = 6
    EXCLUSIVE = 7
    ACCESS_EXCLUSIVE = 8

    @classmethod
    def parse(cls, mode: str) -> Self:
        """Return the lock that pg_locks calls `AccessShareLock`."""
        words = mode.removesuffix("Lock")
        name = "".join(f"_{letter}" if letter.isupper() else letter for letter in words)
        return cls[name.strip("_").upper()]

    def __str__(self) -> str:
        return self.name.replace("_", " ")


class ChangeKind(StrEnum):
    """What a statement changed."""

    TABLE_DROPPED = "table dropped"
    TABLE_RENAMED = "table renamed"
    COLUMN_ADDED = "column added"
    COLUMN_DROPPED = "column dropped"
    COLUMN_RENAMED = "column renamed"
    COLUMN_RETYPED = "column retyped"
    COLUMN_REQUIRED = "column made required"
    CONSTRAINT_ADDED = "constraint added"
    CONSTRAINT_VALIDATED = "constraint validated"
    CONSTRAINT_DROPPED = "constraint dropped"
    INDEX_BUILT = "index built"
    INDEX_DROPPED = "index dropped"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table."""

    name: str
    type: str
    required: bool
    filled: bool
    """Whether an INSERT that does not name it gets a value: a default, an identity, an expression."""


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """A constraint of a table, and its definition as SQL."""

    name: str
    kind: str
    """c check, f foreign key, n not null, p primary key, u unique, x exclusion."""
    validated: bool
    definition: str


@dataclass(frozen=True, kw_only=True)
class Index:
    """An index, and its definition as SQL."""

    name: str
    unique: bool
    definition: str


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A table or view as the catalogs have it."""

    oid: int
    name: str
    kind: str
    file: int | None
    columns: dict[int, Column]
    constraints: dict[int, Constraint]
    indexes: dict[int, Index]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference between before and after."""

    kind: ChangeKind
    table: str
    name: str = ""
    detail: str = ""
    required: bool = False
    """Of a column: whether an INSERT of code that does not know it fails."""
    constraint: str = ""
    """Of a constraint: its kind."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a statement did to a table that was there before the revision."""

    table: str
    lock: Lock
    """The strongest that the transaction holds on it after the statement."""
    rewritten: bool = False
    scanned: bool = False
    rows: int = 0


@dataclass(frozen=True, kw_only=True)
class Observation:
    """All that a statement did."""

    effects: tuple[Effect, ...] = ()
    changes: tuple[Change, ...] = ()


_RELATIONS = text(
    """
    SELECT c.oid, c.oid::regclass::text AS name, c.relkind::text AS kind,
        pg_relation_filenode(c.oid) AS file,
        (SELECT jsonb_object_agg(a.attnum, jsonb_build_object('name', a.attname,
            'type', format_type(a.atttypid, a.atttypmod), 'required', a.attnotnull,
            'filled', a.atthasdef OR a.attidentity <> ''))
         FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)::text AS columns,
        (SELECT jsonb_object_agg(o.oid::bigint, jsonb_build_object('name', o.conname,
            'kind', o.contype, 'validated', o.convalidated,
            'definition', pg_get_constraintdef(o.oid)))
         FROM pg_constraint o WHERE o.conrelid = c.oid)::text AS constraints,
        (SELECT jsonb_object_agg(i.indexrelid::bigint, jsonb_build_object('name',
            i.indexrelid::regclass::text, 'unique', i.indisunique,
            'definition', pg_get_indexdef(i.indexrelid)))
         FROM pg_index i WHERE i.indrelid = c.oid)::text AS indexes
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'm', 'v', 'f') AND c.oid >= :first
      AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND (CAST(:oids AS bigint[]) IS NULL OR c.oid = ANY (CAST(:oids AS bigint[])::oid[]))
    """
)
_LOCKS = text(
    """
    SELECT l.relation::bigint AS oid, l.mode, coalesce(i.indrelid, l.relation)::bigint AS owner
    FROM pg_locks l LEFT JOIN pg_index i ON i.indexrelid = l.relation
    WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.relation >= :first
    """
)
_STATISTICS = text(
    """
    SELECT relid::bigint AS oid, seq_scan AS scans, n_tup_ins + n_tup_upd + n_tup_del AS rows
    FROM pg_stat_xact_user_tables WHERE seq_scan > 0 OR n_tup_ins + n_tup_upd + n_tup_del > 0
    """
)


def read_relations(
    connection: Connection, oids: Iterable[int] | None = None
) -> dict[int, Relation]:
    """Return the tables and views of the database, or those of `oids` that are still there."""
    parameters = {"first": _FIRST_USER_OID, "oids": None if oids is None else list(oids)}
    return {
        row.oid: Relation(
            oid=row.oid,
            name=row.name,
            kind=row.kind,
            file=row.file,
            columns={int(k): Column(**v) for k, v in _parse(row.columns).items()},
            constraints={int(k): Constraint(**v) for k, v in _parse(row.constraints).items()},
            indexes={int(k): Index(**v) for k, v in _parse(row.indexes).items()},
        )
        for row in connection.execute(_RELATIONS, parameters)
    }


def _parse(value: str | None) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(value) if value else {}
    return parsed


@dataclass
class Observer:
    """Reads what each statement of a revision did."""

    connection: Connection
    relations: dict[int, Relation] = field(default_factory=dict)
    _existed: dict[int, Relation] = field(default_factory=dict)
    _scans: dict[int, int] = field(default_factory=dict)
    _rows: dict[int, int] = field(default_factory=dict)

    def begin(self) -> None:
        """Begin with a revision: what is there now existed before."""
        if not self.relations:
            self.relations = read_relations(self.connection)
        self._existed = {
            oid: relation
            for oid, relation in self.relations.items()
            if relation.name not in OWN_TABLES
        }
        self.begin_transaction()

    def begin_transaction(self) -> None:
        """Count from nothing, as the server does once it has handed its counts on."""
        # Else it does so a second after the last time, whatever the transactions are.
        if server_major(self.connection) >= _FLUSHES_ON_DEMAND:
            self.connection.execute(text("SELECT pg_stat_force_next_flush()"))
        self._scans.clear()
        self._rows.clear()

    def observe(self) -> Observation:
        """Return what the statement that has just run, in the transaction, did."""
        locks: dict[int, Lock] = {}
        touched: set[int] = set()
        for row in self.connection.execute(_LOCKS, {"first": _FIRST_USER_OID}):
            lock = Lock.parse(row.mode)
            # The lock of an index that is dropped or rebuilt keeps its table's readers out, too;
            # that of one which is new does not.
            touched |= {row.oid, row.owner}
            owner = self.relations.get(row.owner)
            new_index = row.oid != row.owner and (owner is None or row.oid not in owner.indexes)
            oid = row.oid if new_index else row.owner
            locks[oid] = max(lock, locks.get(oid, lock))
        after = read_relations(self.connection, touched)
        before = {oid: self.relations.get(oid) for oid in touched}
        statistics = {
            row.oid: (row.scans, row.rows) for row in self.connection.execute(_STATISTICS)
        }
        effects = []
        for oid, lock in locks.items():
            old = self._existed.get(oid)
            if old is None:
                continue
            scans, rows = statistics.get(oid, (0, 0))
            now, previous = after.get(oid), before[oid]
            effects.append(
                Effect(
                    table=old.name,
                    lock=lock,
                    rewritten=bool(now and previous and now.file != previous.file),
                    scanned=scans > self._scans.get(oid, 0),
                    rows=rows - self._rows.get(oid, 0),
                )
            )
            self._scans[oid], self._rows[oid] = scans, rows
        changes = self._take_over(touched, after)
        return Observation(effects=tuple(effects), changes=changes)

    def observe_committed(self, locks: dict[int, Lock]) -> Observation:
        """Return what a statement outside of a transaction did; `locks` were seen while it ran."""
        after = read_relations(self.connection)
        before = dict(self.relations)
        changes = self._take_over(set(before) | set(after), after)
        effects = tuple(
            Effect(
                table=self._existed[oid].name,
                lock=lock,
                rewritten=oid in after and after[oid].file != before[oid].file,
                scanned=any(
                    change.kind is ChangeKind.CONSTRAINT_VALIDATED
                    and change.table == self._existed[oid].name
                    for change in changes
                ),
            )
            for oid, lock in locks.items()
            if oid in self._existed
        )
        return Observation(effects=effects, changes=changes)

    def _take_over(self, oids: set[int], after: dict[int, Relation]) -> tuple[Change, ...]:
        """Return the changes of tables that existed, and make what is there now the state."""
        changes: list[Change] = []
        for oid in sorted(oids):
            old, new = self.relations.get(oid), after.get(oid)
            if oid in self._existed and old is not None:
                changes += differences(old, new)
            if new is not None:
                self.relations[oid] = new
            else:
                self.relations.pop(oid, None)
        return tuple(changes)


def differences(old: Relation, new: Relation | None) -> list[Change]:
    """Return what became of a table."""
    if new is None:
        return [Change(kind=ChangeKind.TABLE_DROPPED, table=old.name)]
    changes = []
    if new.name != old.name:
        renamed = Change(kind=ChangeKind.TABLE_RENAMED, table=old.name, detail=new.name)
        changes.append(renamed)
    changes += _columns(old, new)
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
                constraint=constraint.kind,
            )
        )
    gone = [item.name for oid, item in old.constraints.items() if oid not in new.constraints]
    changes += [Change(kind=ChangeKind.CONSTRAINT_DROPPED, table=old.name, name=n) for n in gone]
    for oid, index in new.indexes.items():
        if oid not in old.indexes:
            changes.append(
                Change(
                    kind=ChangeKind.INDEX_BUILT,
                    table=old.name,
                    name=index.name,
                    detail=index.definition,
                )
            )
    gone = [index.name for oid, index in old.indexes.items() if oid not in new.indexes]
    changes += [Change(kind=ChangeKind.INDEX_DROPPED, table=old.name, name=n) for n in gone]
    return changes


def _columns(old: Relation, new: Relation) -> list[Change]:
    changes = []
    for number, column in new.columns.items():
        before = old.columns.get(number)
        missing = column.required and not column.filled
        if before is None:
            added = ChangeKind.COLUMN_ADDED
            changes.append(
                Change(
                    kind=added,
                    table=old.name,
                    name=column.name,
                    detail=column.type,
                    required=missing,
                )
            )
            continue
        if column.name != before.name:
            renamed = ChangeKind.COLUMN_RENAMED
            changes.append(
                Change(kind=renamed, table=old.name, name=before.name, detail=column.name)
            )
        if column.type != before.type:
            retyped = ChangeKind.COLUMN_RETYPED
            detail = f"{before.type} to {column.type}"
            changes.append(Change(kind=retyped, table=old.name, name=column.name, detail=detail))
        if missing and not (before.required and not before.filled):
            required = ChangeKind.COLUMN_REQUIRED
            changes.append(Change(kind=required, table=old.name, name=column.name, required=True))
    gone = [column.name for number, column in old.columns.items() if number not in new.columns]
    dropped = ChangeKind.COLUMN_DROPPED
    changes += [Change(kind=dropped, table=old.name, name=name) for name in gone]
    return changes
