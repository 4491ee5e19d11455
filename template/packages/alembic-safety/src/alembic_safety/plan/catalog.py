"""What PostgreSQL says of its tables, before and after a statement.

Read inside the migration's own transaction: which locks it holds, whether a table has another file
(it was rewritten), whether it was read to its end, and what the catalogs have that they had not.
https://www.postgresql.org/docs/current/explicit-locking.html
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple, Self

from sqlalchemy import Connection, text

from alembic_safety.backup.dump import server_major
from alembic_safety.database.lock import VERSION_TABLE
from core.migrations import batches, record

OWN_TABLES = frozenset({VERSION_TABLE, record.TABLE, batches.TABLE})
_CALLS_NOTHING = re.compile(r"\s*(ALTER|CREATE|DROP|COMMENT|GRANT|REVOKE)\b", re.IGNORECASE)
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
class Column:
    """A column of a table."""

    name: str
    type: str
    required: bool
    filled: bool
    """Whether an INSERT that does not name it gets a value: a default, an identity, an expression."""
    always: bool
    """Whether an INSERT may not give it a value."""

    @property
    def missing(self) -> bool:
        """Whether an INSERT that does not name it fails."""
        return self.required and not self.filled


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
    file: int | None

    @property
    def enforces(self) -> str:
        """What makes it unique, without its name; empty where it is not unique."""
        return self.definition.partition(" USING ")[2] if self.unique else ""


class Counts(NamedTuple):
    """What was done to a table since the server last handed its counts on."""

    scans: int
    """How often it was read to its end."""
    rows: int
    """How many rows were inserted, updated or deleted."""


NOTHING = Counts(0, 0)


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A table or view as the catalogs have it."""

    oid: int
    name: str
    """With its schema, where that is not public."""
    kind: str
    """r table, p partitioned table, v view, m materialized view, f foreign table."""
    file: int | None
    parent: int | None
    """The table that it is a partition of."""
    secured: bool
    """Whether row level security is enabled."""
    columns: dict[int, Column]
    constraints: dict[int, Constraint]
    indexes: dict[int, Index]
    counts: Counts = NOTHING

    @property
    def key(self) -> str:
        """The column that is the primary key; empty where there is none, or it has several."""
        for constraint in self.constraints.values():
            columns = re.fullmatch(r'PRIMARY KEY \((\w+|"[^"]+")\)', constraint.definition)
            if columns:
                return columns[1]
        return ""

    def column(self, name: str) -> Column | None:
        """Return the column of that name."""
        return next((column for column in self.columns.values() if column.name == name), None)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference between before and after."""

    kind: ChangeKind
    table: str
    name: str = ""
    detail: str = ""
    required: bool = False
    """Of a column: whether an INSERT of code that does not know it fails."""
    type: str = ""
    """Of a column: the one it has now. Of a constraint: its kind."""
    old_type: str = ""
    """Of a column whose type was changed: the one it had."""
    enforces: str = ""
    """Of an index that was dropped: what it kept unique."""
    new: bool = False
    """It is of something that the live database does not have yet: no code uses it."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a statement did to a table that was there before the revision."""

    table: str
    live: str
    """The name that it has where nothing is pending yet; empty where it is new since."""
    lock: Lock
    """The strongest that the transaction holds on it after the statement."""
    acquired: bool = True
    """Whether it was this statement that took it."""
    rewritten: bool = False
    scanned: bool = False
    rows: int = 0
    key: str = ""
    """The column that is its primary key."""
    kind: str = "r"
    """See Relation."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """All that a statement did."""

    effects: tuple[Effect, ...] = ()
    changes: tuple[Change, ...] = ()
    called: str = ""
    """The source of functions that it may have called."""


_RELATIONS = text(
    """
    SELECT c.oid, c.relkind::text AS kind, pg_relation_filenode(c.oid) AS file,
        CASE n.nspname WHEN 'public' THEN '' ELSE quote_ident(n.nspname) || '.' END
            || quote_ident(c.relname) AS name,
        (SELECT inhparent::bigint FROM pg_inherits WHERE inhrelid = c.oid AND c.relispartition)
            AS parent,
        c.relrowsecurity AS secured,
        coalesce(pg_stat_get_xact_numscans(c.oid), 0) AS scans,
        coalesce(pg_stat_get_xact_tuples_inserted(c.oid), 0)
            + coalesce(pg_stat_get_xact_tuples_updated(c.oid), 0)
            + coalesce(pg_stat_get_xact_tuples_deleted(c.oid), 0) AS rows,
        (SELECT jsonb_object_agg(a.attnum, jsonb_build_object('name', quote_ident(a.attname),
            'type', format_type(a.atttypid, a.atttypmod), 'required', a.attnotnull,
            'filled', a.atthasdef OR a.attidentity <> '',
            'always', a.attidentity = 'a' OR a.attgenerated <> ''))
         FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)::text AS columns,
        (SELECT jsonb_object_agg(o.oid::bigint, jsonb_build_object('name', quote_ident(o.conname),
            'kind', o.contype, 'validated', o.convalidated,
            'definition', pg_get_constraintdef(o.oid)))
         FROM pg_constraint o WHERE o.conrelid = c.oid)::text AS constraints,
        (SELECT jsonb_object_agg(i.indexrelid::bigint, jsonb_build_object('name',
            i.indexrelid::regclass::text, 'unique', i.indisunique,
            'file', pg_relation_filenode(i.indexrelid)::bigint,
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
_OBJECTS = text(
    """
    SELECT 'enum value' AS kind, format_type(enumtypid, NULL) AS name, enumlabel AS value
    FROM pg_enum
    UNION ALL
    SELECT CASE prokind WHEN 'p' THEN 'procedure' ELSE 'function' END,
           oid::regprocedure::text, ''
    FROM pg_proc p WHERE oid >= :first AND NOT EXISTS (
        SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = p.oid
            AND deptype IN ('e', 'i')
    )
    UNION ALL
    SELECT 'sequence', oid::regclass::text, '' FROM pg_class c
    WHERE relkind = 'S' AND oid >= :first AND NOT EXISTS (
        SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid
            AND deptype IN ('a', 'i', 'e')
    )
    """
)
_SOURCES = text(
    """
    WITH RECURSIVE called AS (
        SELECT oid, prosrc FROM pg_proc
        WHERE oid >= :first AND position(lower(proname) IN lower(:sql)) > 0
        UNION
        SELECT p.oid, p.prosrc FROM pg_proc p
        JOIN called ON position(lower(p.proname) IN lower(called.prosrc)) > 0
        WHERE p.oid >= :first
    )
    SELECT coalesce(string_agg(prosrc, E'\\n'), '') FROM called
    """
)
_STATISTICS = text(
    """
    SELECT relid::bigint AS oid, seq_scan AS scans, n_tup_ins + n_tup_upd + n_tup_del AS rows
    FROM pg_stat_user_tables
    """
)


@dataclass(frozen=True, kw_only=True, order=True)
class NamedObject:
    """What code can name besides tables: a value of an enum, a function, a sequence."""

    kind: str
    name: str
    value: str = ""


def called_sources(connection: Connection, sql: str) -> str:
    """Return the source of the functions that a statement may call."""
    if _CALLS_NOTHING.match(sql):
        return ""
    return str(connection.scalar(_SOURCES, {"first": _FIRST_USER_OID, "sql": sql}))


def locked_relations(connection: Connection) -> set[int]:
    """Return the oids of what the transaction holds locks on, and of the tables of its indexes."""
    rows = connection.execute(_LOCKS, {"first": _FIRST_USER_OID})
    return {oid for row in rows for oid in (row.oid, row.owner)}


def read_objects(connection: Connection) -> frozenset[NamedObject]:
    """Return the functions, the sequences and the values of enums of the database."""
    rows = connection.execute(_OBJECTS, {"first": _FIRST_USER_OID})
    return frozenset(NamedObject(kind=row.kind, name=row.name, value=row.value) for row in rows)


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
            parent=row.parent,
            secured=row.secured,
            counts=Counts(row.scans, row.rows),
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
    """What is there now."""
    existed: dict[int, Relation] = field(default_factory=dict)
    """What was there before the revision."""
    touched: set[int] | None = field(default_factory=set)
    """The oids that the revision locked; None where it had statements outside of a transaction."""
    _live: dict[int, Relation] = field(default_factory=dict)
    _live_objects: frozenset[NamedObject] = frozenset()
    _locks: dict[int, Lock] = field(default_factory=dict)
    _counts: dict[int, Counts] = field(default_factory=dict)

    def begin(self) -> None:
        """Begin with a revision: what is there now existed before."""
        if not self._live:
            self.relations = read_relations(self.connection)
            self._live = dict(self.relations)
            self._live_objects = read_objects(self.connection)
        self.existed = {
            oid: relation
            for oid, relation in self.relations.items()
            if relation.name not in OWN_TABLES
        }
        self.touched = set()
        self.begin_transaction()

    def end(self) -> tuple[tuple[Change, ...], list[NamedObject]]:
        """End with a revision: return what changed without a lock, and which objects are gone.

        The name of a schema does, and with it those of its tables. Gone is what the live database
        has, once.
        """
        after = read_relations(self.connection)
        changes = self._take_over(set(self.relations) | set(after), after)
        gone = self._live_objects - read_objects(self.connection)
        self._live_objects -= gone
        return changes, sorted(gone)

    def begin_transaction(self) -> None:
        """Count from nothing, as the server does once it has handed its counts on."""
        self._flush()
        self._locks, self._counts = {}, {}

    def _flush(self) -> None:
        # Else the server does so a second after the last time, whatever the transactions are.
        if server_major(self.connection) >= _FLUSHES_ON_DEMAND:
            self.connection.execute(text("SELECT pg_stat_force_next_flush()"))

    def begin_outside(self, *, committed: bool) -> list[str]:
        """Begin with a statement outside of the revision's transaction.

        Args:
            committed: it ends with a commit before it is observed: its counts are then among those
                that the server has handed on.

        Returns:
            The tables that are there.
        """
        self.begin_transaction()
        self.touched = None
        self.relations = read_relations(self.connection)
        pending = {oid: relation.counts for oid, relation in self.relations.items()}
        self._counts = self._committed_counts() if committed else pending
        return [item.name for item in self.relations.values() if item.kind in "rp"]

    def observe(self, sql: str) -> Observation:
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
        if self.touched is not None:
            self.touched |= touched
        after = read_relations(self.connection, touched)
        counts = {oid: relation.counts for oid, relation in after.items()}
        effects = self._effects(locks, after, counts)
        self._locks = locks
        return Observation(
            effects=effects,
            changes=self._take_over(touched, after),
            called=called_sources(self.connection, sql),
        )

    def observe_committed(self, sql: str, locks: dict[int, Lock]) -> Observation:
        """Return what a statement outside of a transaction did; `locks` were seen while it ran."""
        self._flush()
        after = read_relations(self.connection)
        for oid, now in after.items():
            old = self.relations.get(oid)
            if old is not None and _has_new_file(old, now):
                # Seen or not, this is the lock that it takes.
                locks[oid] = Lock.ACCESS_EXCLUSIVE
        effects = self._effects(locks, after, self._committed_counts())
        changes = self._take_over(set(self.relations) | set(after), after)
        return Observation(
            effects=effects, changes=changes, called=called_sources(self.connection, sql)
        )

    def _committed_counts(self) -> dict[int, Counts]:
        rows = self.connection.execute(_STATISTICS)
        return {row.oid: Counts(row.scans, row.rows) for row in rows}

    def _effects(
        self,
        locks: dict[int, Lock],
        after: dict[int, Relation],
        counts: dict[int, Counts],
    ) -> tuple[Effect, ...]:
        effects = []
        for oid, lock in locks.items():
            old, previous, now = self.existed.get(oid), self.relations.get(oid), after.get(oid)
            if old is None:
                continue
            (scans, rows), (scans_before, rows_before) = (
                found.get(oid, NOTHING) for found in (counts, self._counts)
            )
            effects.append(
                Effect(
                    table=old.name,
                    live=self._live[oid].name if oid in self._live else "",
                    lock=lock,
                    acquired=lock > self._locks.get(oid, 0),
                    rewritten=bool(now and previous and now.file != previous.file),
                    scanned=scans > scans_before,
                    rows=rows - rows_before,
                    key=old.key,
                    kind=old.kind,
                )
            )
        self._counts = counts
        return tuple(effects)

    def _take_over(self, oids: set[int], after: dict[int, Relation]) -> tuple[Change, ...]:
        """Return the changes of tables that existed, and make what is there now the state."""
        changes: list[Change] = []
        for oid in sorted(oids):
            old, new = self.relations.get(oid), after.get(oid)
            if oid in self.existed and old is not None:
                name = self.existed[oid].name
                found = differences(old, new, self._live.get(oid))
                changes += [replace(item, table=name) for item in found]
                if old.parent and new and not new.parent and old.parent in self.existed:
                    parent = self.existed[old.parent].name
                    detached = ChangeKind.PARTITION_DETACHED
                    changes.append(Change(kind=detached, table=parent, name=old.name))
            if new is not None:
                self.relations[oid] = new
            else:
                self.relations.pop(oid, None)
        return tuple(changes)


def _has_new_file(old: Relation, new: Relation) -> bool:
    """Return whether a table was rewritten, or an index of it built anew in place."""
    return old.file != new.file or any(
        oid in new.indexes and new.indexes[oid].file != index.file
        for oid, index in old.indexes.items()
    )


def differences(old: Relation, new: Relation | None, live: Relation | None) -> list[Change]:
    """Return what became of a table; `live` is what it is where nothing is pending yet."""
    changes = _differences(old, new, live)
    return changes if live is not None else [replace(change, new=True) for change in changes]


def _differences(old: Relation, new: Relation | None, live: Relation | None) -> list[Change]:
    if new is None:
        dropped = ChangeKind.VIEW_DROPPED if old.kind in "vm" else ChangeKind.TABLE_DROPPED
        return [Change(kind=dropped, table=old.name)]
    changes = []
    if new.secured and not old.secured:
        changes.append(Change(kind=ChangeKind.ROWS_SECURED, table=old.name))
    if new.name != old.name:
        renamed = Change(kind=ChangeKind.TABLE_RENAMED, table=old.name, detail=new.name)
        changes.append(renamed)
    changes += _columns(old, new, live)
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


def _columns(old: Relation, new: Relation, live: Relation | None) -> list[Change]:
    changes: list[Change] = []

    def changed(kind: ChangeKind, column: Column, detail: str = "", name: str = "") -> None:
        # That a column is required, code notices just because it does not know it.
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
