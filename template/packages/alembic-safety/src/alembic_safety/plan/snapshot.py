"""Snapshots of a database's relations and other named objects, read from the catalogs."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from alembic_safety import batches
from alembic_safety.database import history
from alembic_safety.database.lock import VERSION_TABLE
from alembic_safety.sql import RELATION_NAME

OWN_TABLES = frozenset({VERSION_TABLE, history.TABLE, batches.TABLE})
"""Tables of Alembic and of this engine, which no revision changes."""
FIRST_USER_OID = 16384
"""FirstNormalObjectId: objects with lower ids belong to PostgreSQL."""
_CALLS_NOTHING = re.compile(r"\s*(ALTER|CREATE|DROP|COMMENT|GRANT|REVOKE)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table."""

    name: str
    type: str
    required: bool
    """Whether it is NOT NULL."""
    filled: bool
    """Whether an INSERT that omits it gets a value: a default, identity or generated value."""
    always: bool
    """Whether an INSERT may not give it a value."""

    @property
    def missing(self) -> bool:
        """True if an INSERT without the column fails."""
        return self.required and not self.filled


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """A constraint of a table."""

    name: str
    kind: str
    """`pg_constraint.contype`: c check, f foreign key, n not null, p primary key, u unique, x
    exclusion."""
    validated: bool
    definition: str
    """As SQL."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """An index of a table."""

    name: str
    unique: bool
    definition: str
    """As SQL."""
    file: int | None

    @property
    def enforces(self) -> str:
        """The unique columns or expressions, without the index's name; empty if not unique."""
        return self.definition.partition(" USING ")[2] if self.unique else ""


class Counts(NamedTuple):
    """Work on a table, as counted by the server's statistics."""

    scans: int
    """Sequential scans."""
    rows: int
    """Rows inserted, updated or deleted."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A table or view."""

    oid: int
    name: str
    """Qualified with its schema unless that is public."""
    kind: str
    """`pg_class.relkind`: r table, p partitioned table, v view, m materialized view, f foreign
    table."""
    file: int | None
    """A rewrite of the table changes it."""
    parent: int | None
    """The table that it is a partition of."""
    secured: bool
    """Whether row level security is enabled."""
    columns: dict[int, Column]
    constraints: dict[int, Constraint]
    indexes: dict[int, Index]
    counts: Counts

    @property
    def key(self) -> str:
        """The column of the primary key; empty if there is none or it has several columns."""
        for constraint in self.constraints.values():
            columns = re.fullmatch(r'PRIMARY KEY \((\w+|"[^"]+")\)', constraint.definition)
            if columns:
                return columns[1]
        return ""

    def column(self, name: str) -> Column | None:
        """Return the column of that name."""
        return next((column for column in self.columns.values() if column.name == name), None)


@dataclass(frozen=True, kw_only=True, order=True)
class NamedObject:
    """An object besides relations that code can name: an enum's value, a function, a sequence."""

    kind: str
    name: str
    value: str = ""
    """Of an enum."""


_RELATIONS = text(
    f"""
    SELECT c.oid, c.relkind::text AS kind, pg_relation_filenode(c.oid) AS file,
        {RELATION_NAME} AS name,
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


def read_relations(
    connection: Connection, oids: Iterable[int] | None = None
) -> dict[int, Relation]:
    """Return the tables and views by oid: all of the database, or those of `oids` that exist."""
    parameters = {"first": FIRST_USER_OID, "oids": None if oids is None else list(oids)}
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


def read_objects(connection: Connection) -> frozenset[NamedObject]:
    """Return the functions, sequences and enum values of the database."""
    rows = connection.execute(_OBJECTS, {"first": FIRST_USER_OID})
    return frozenset(NamedObject(kind=row.kind, name=row.name, value=row.value) for row in rows)


def read_called_source(connection: Connection, sql: str) -> str:
    """Return the source of the functions that a statement may call, directly or not."""
    if _CALLS_NOTHING.match(sql):
        return ""
    return str(connection.scalar(_SOURCES, {"first": FIRST_USER_OID, "sql": sql}))
