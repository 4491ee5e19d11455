"""Scope of the comparison by `alembic revision --autogenerate` and `alembic check`."""

import logging
from collections.abc import MutableMapping
from functools import cached_property
from typing import Any, Literal

import alembic_postgresql_enum
from alembic import context
from alembic.operations.ops import MigrationScript
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, MetaData, text

from alembic_safety import batches
from alembic_safety.database import history

logger = logging.getLogger("alembic.autogenerate")

# Partitions, foreign tables and tables of extensions, which models usually do not declare.
_UNMANAGED_RELATIONS = text(
    """
    SELECT n.nspname, c.relname
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relispartition
       OR c.relkind = 'f'
       OR EXISTS (
            SELECT FROM pg_catalog.pg_depend d
            WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
       )
    """
)

_EXTENSION_TYPES = text(
    """
    SELECT t.typname
    FROM pg_catalog.pg_type t JOIN pg_catalog.pg_depend d ON d.objid = t.oid
    WHERE d.classid = 'pg_catalog.pg_type'::regclass AND d.deptype = 'e'
    """
)

_NameType = Literal[
    "schema", "table", "column", "index", "unique_constraint", "foreign_key_constraint",
    "check_constraint",
]  # fmt: skip
_ParentNames = MutableMapping[
    Literal["schema_name", "table_name", "schema_qualified_table_name"], str | None
]


def comparison_options(connection: Connection, metadata: list[MetaData]) -> dict[str, Any]:
    """Return the arguments of `context.configure` for a comparison.

    Args:
        connection: a connection to the database.
        metadata: metadata of the models.
    """
    comparison = _Comparison(connection, metadata)
    alembic_postgresql_enum.set_configuration(
        alembic_postgresql_enum.Config(
            # Type checkers do not know the operations of this plugin in new revisions.
            add_type_ignore=True,
            include_name=lambda name: name not in comparison.extension_types,
        )
    )

    def process_revision_directives(
        _context: MigrationContext, _revision: object, directives: list[MigrationScript]
    ) -> None:
        script = directives[0]
        if _is_written(script) and script.upgrade_ops is not None and script.upgrade_ops.is_empty():
            directives.clear()
            logger.warning(
                "no revision written: the models and the database have the same schema "
                "(`alembic revision` without --autogenerate writes an empty one)"
            )

    return {
        "target_metadata": comparison.metadata,
        "include_schemas": bool(comparison.schemas - {None}),
        "include_name": comparison.includes,
        "compare_type": True,
        "compare_server_default": True,
        "process_revision_directives": process_revision_directives,
    }


def _is_written(script: MigrationScript) -> bool:
    """Return whether the script is written to a file, by `revision` and not by `check`."""
    # Without a command line, `command.revision` has a message and `command.check` has none.
    written: bool = getattr(context.config.cmd_opts, "autogenerate", script.message is not None)
    return written


class _Comparison:
    def __init__(self, connection: Connection, metadata: list[MetaData]) -> None:
        self.metadata = metadata
        self._tables = {name: table for part in metadata for name, table in part.tables.items()}
        self.schemas = {table.schema for table in self._tables.values()}
        self._connection = connection

    @cached_property
    def _unmanaged(self) -> set[tuple[str, str]]:
        return {(schema, name) for schema, name in self._connection.execute(_UNMANAGED_RELATIONS)}

    @cached_property
    def extension_types(self) -> set[str]:
        """Names of the types that belong to extensions."""
        return set(self._connection.scalars(_EXTENSION_TYPES))

    def includes(self, name: str | None, kind: _NameType, parents: _ParentNames) -> bool:
        """Return whether to compare an object of the database; Alembic's `include_name` hook."""
        if kind == "schema":
            return name is None or name in self.schemas
        if kind == "table" and name in {history.TABLE, batches.TABLE}:
            return False
        if kind != "table" or parents["schema_qualified_table_name"] in self._tables:
            return True
        schema = parents["schema_name"] or self._connection.dialect.default_schema_name
        return (schema, name) not in self._unmanaged
