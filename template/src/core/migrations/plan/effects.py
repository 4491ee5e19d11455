"""Effects of a statement, measured on the server: locks, rewrites, scans, rows and changes.

Read inside the migration's own transaction, after each statement.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, text

from core.migrations.backup import server_major
from core.migrations.plan.diff import Change, ChangeKind, compare_relations
from core.migrations.plan.locks import LockMode, read_held_locks
from core.migrations.plan.snapshot import (
    OWN_TABLES,
    Counts,
    NamedObject,
    Relation,
    read_called_source,
    read_objects,
    read_relations,
)

_FLUSHES_ON_DEMAND = 15
"""The first version of PostgreSQL with pg_stat_force_next_flush()."""
_NOTHING = Counts(0, 0)

_STATISTICS = text(
    """
    SELECT relid::bigint AS oid, seq_scan AS scans, n_tup_ins + n_tup_upd + n_tup_del AS rows
    FROM pg_stat_user_tables
    """
)


@dataclass(frozen=True, kw_only=True)
class TableEffect:
    """Effect of a statement on a table that existed before the revision."""

    table: str
    live: str
    """Its name in the live database; empty if a pending revision creates it."""
    lock: LockMode
    """The strongest lock that the transaction holds on it after the statement."""
    acquired: bool = True
    """Whether this statement acquired that lock."""
    rewritten: bool = False
    scanned: bool = False
    rows: int = 0
    """Rows that were inserted, updated or deleted."""
    key: str = ""
    """The column of its primary key; empty if there is none or it has several columns."""
    kind: str = "r"
    """See `Relation.kind`."""


@dataclass(frozen=True, kw_only=True)
class StatementEffects:
    """All effects of a statement."""

    tables: tuple[TableEffect, ...] = ()
    changes: tuple[Change, ...] = ()
    called_source: str = ""
    """Source of the functions that it may have called."""


@dataclass
class EffectReader:
    """Reads the effects of each statement of a revision."""

    connection: Connection
    relations: dict[int, Relation] = field(default_factory=dict)
    """Relations after the last statement, by oid."""
    existed: dict[int, Relation] = field(default_factory=dict)
    """Relations before the revision."""
    touched: set[int] | None = field(default_factory=set)
    """Oids that the revision locked; None if it had statements outside a transaction."""
    _live: dict[int, Relation] = field(default_factory=dict)
    _live_objects: frozenset[NamedObject] = frozenset()
    _locks: Mapping[int, LockMode] = field(default_factory=dict)
    _counts: dict[int, Counts] = field(default_factory=dict)

    def begin(self) -> None:
        """Begin a revision."""
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
        """End a revision.

        Returns:
            Changes of tables that were not locked, as by the renaming of their schema, and the
            objects of the live database that the revision dropped.
        """
        after = read_relations(self.connection)
        changes = self._advance(set(self.relations) | set(after), after)
        gone = self._live_objects - read_objects(self.connection)
        self._live_objects -= gone
        return changes, sorted(gone)

    def begin_transaction(self) -> None:
        """Reset the locks and counts, as a new transaction does."""
        self._flush()
        self._locks, self._counts = {}, {}

    def _flush(self) -> None:
        # Without it, the server flushes at most once a second, whatever transactions end.
        if server_major(self.connection) >= _FLUSHES_ON_DEMAND:
            self.connection.execute(text("SELECT pg_stat_force_next_flush()"))

    def begin_outside(self, *, committed: bool) -> list[str]:
        """Begin a statement outside the revision's transaction.

        Args:
            committed: whether the statement commits before its effects are read, so that the
                server's statistics have its counts.

        Returns:
            The names of all tables.
        """
        self.begin_transaction()
        self.touched = None
        self.relations = read_relations(self.connection)
        pending = {oid: relation.counts for oid, relation in self.relations.items()}
        self._counts = self._read_committed_counts() if committed else pending
        return [item.name for item in self.relations.values() if item.kind in "rp"]

    def read(self, sql: str) -> StatementEffects:
        """Return the effects of the last statement, in its transaction."""
        locks: dict[int, LockMode] = {}
        touched: set[int] = set()
        for lock in read_held_locks(self.connection):
            # The lock on an index that is dropped or rebuilt blocks queries of its table. The lock
            # on a new index does not.
            touched |= {lock.oid, lock.owner}
            owner = self.relations.get(lock.owner)
            is_index = lock.oid != lock.owner
            new_index = is_index and (owner is None or lock.oid not in owner.indexes)
            oid = lock.oid if new_index else lock.owner
            locks[oid] = max(lock.mode, locks.get(oid, lock.mode))
        if self.touched is not None:
            self.touched |= touched
        after = read_relations(self.connection, touched)
        counts = {oid: relation.counts for oid, relation in after.items()}
        tables = self._table_effects(locks, after, counts)
        self._locks = locks
        return StatementEffects(
            tables=tables,
            changes=self._advance(touched, after),
            called_source=read_called_source(self.connection, sql),
        )

    def read_committed(self, sql: str, locks: dict[int, LockMode]) -> StatementEffects:
        """Return the effects of the last statement, which ran outside a transaction.

        Args:
            sql: the statement.
            locks: the locks that were seen while it ran.
        """
        self._flush()
        after = read_relations(self.connection)
        for oid, now in after.items():
            old = self.relations.get(oid)
            if old is not None and _has_new_file(old, now):
                # A rewrite needs this lock, even if it was too short to be seen.
                locks[oid] = LockMode.ACCESS_EXCLUSIVE
        tables = self._table_effects(locks, after, self._read_committed_counts())
        changes = self._advance(set(self.relations) | set(after), after)
        return StatementEffects(
            tables=tables,
            changes=changes,
            called_source=read_called_source(self.connection, sql),
        )

    def _read_committed_counts(self) -> dict[int, Counts]:
        rows = self.connection.execute(_STATISTICS)
        return {row.oid: Counts(row.scans, row.rows) for row in rows}

    def _table_effects(
        self,
        locks: dict[int, LockMode],
        after: dict[int, Relation],
        counts: dict[int, Counts],
    ) -> tuple[TableEffect, ...]:
        effects = []
        for oid, lock in locks.items():
            old, previous, now = self.existed.get(oid), self.relations.get(oid), after.get(oid)
            if old is None:
                continue
            (scans, rows), (scans_before, rows_before) = (
                found.get(oid, _NOTHING) for found in (counts, self._counts)
            )
            effects.append(
                TableEffect(
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

    def _advance(self, oids: set[int], after: dict[int, Relation]) -> tuple[Change, ...]:
        """Take over the relations after a statement; return the changes of those that existed."""
        changes: list[Change] = []
        for oid in sorted(oids):
            old, new = self.relations.get(oid), after.get(oid)
            if oid in self.existed and old is not None:
                name = self.existed[oid].name
                found = compare_relations(old, new, self._live.get(oid))
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
    """Return whether the table was rewritten, or one of its indexes rebuilt in place."""
    return old.file != new.file or any(
        oid in new.indexes and new.indexes[oid].file != index.file
        for oid, index in old.indexes.items()
    )
