"""Checks of all revisions."""

import asyncio
from collections.abc import Callable

import pytest
from alembic import command
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.pool import NullPool

from alembic_safety.config import make_config
from alembic_safety.database.url import DatabaseURL
from core.database import create_engine
from core.project import ROOT

# Everything a schema is made of, as text, but for Alembic's and the record's own tables; equal
# text means an equal schema.
SCHEMA = text(
    """
    SELECT 'relation', c.relname::text, c.relkind::text, ''
    FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relname NOT LIKE 'alembic\\_version%'
    UNION ALL
    SELECT 'column', a.attrelid::regclass::text || '.' || a.attname,
           format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END,
           coalesce(pg_get_expr(d.adbin, d.adrelid), '')
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
      AND c.relname NOT LIKE 'alembic\\_version%'
    UNION ALL
    SELECT 'index', indexname::text, indexdef, '' FROM pg_indexes
    WHERE schemaname = 'public' AND tablename NOT LIKE 'alembic\\_version%'
    UNION ALL
    SELECT 'constraint', conname::text, pg_get_constraintdef(oid), '' FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text NOT LIKE 'alembic\\_version%'
    UNION ALL
    SELECT 'type', t.typname::text, t.typtype::text,
           coalesce((SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder)
                     FROM pg_enum WHERE enumtypid = t.oid), '')
    FROM pg_type t WHERE t.typnamespace = 'public'::regnamespace AND t.typtype IN ('e', 'd', 'r')
    UNION ALL
    SELECT 'function', p.proname::text, pg_get_function_identity_arguments(p.oid), md5(p.prosrc)
    FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
      AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = p.oid AND deptype = 'e')
    UNION ALL
    SELECT 'trigger', tgrelid::regclass::text || '.' || tgname, pg_get_triggerdef(oid), ''
    FROM pg_trigger WHERE NOT tgisinternal
    ORDER BY 1, 2, 3, 4
    """
)


def on(url: DatabaseURL, run: Callable[[Connection], None]) -> None:
    """Run a function on a connection to the database `url`."""

    async def connect() -> None:
        engine = create_engine(url, poolclass=NullPool)
        async with engine.connect() as connection:
            await connection.run_sync(run)

    asyncio.run(connect())


def schema(connection: Connection) -> list[tuple[str, ...]]:
    rows = [tuple(row) for row in connection.execute(SCHEMA)]
    connection.rollback()  # Alembic must find no transaction begun: it would leave it open
    return rows


def current(connection: Connection) -> set[str | None]:
    heads = MigrationContext.configure(connection).get_current_heads()
    connection.rollback()
    return set(heads)


def test_there_is_one_head() -> None:
    heads = ScriptDirectory.from_config(make_config(ROOT)).get_heads()
    assert len(heads) <= 1, "join them: uv run alembic merge heads -m 'Merge'"


def test_models_and_revisions_say_the_same(database_url: DatabaseURL) -> None:
    on(database_url, lambda connection: command.check(make_config(ROOT, connection=connection)))


def test_each_revision_goes_up_and_down_and_up_again(empty_database_url: DatabaseURL) -> None:
    revisions = list(ScriptDirectory.from_config(make_config(ROOT)).walk_revisions())

    def stairway(connection: Connection) -> None:
        config = make_config(ROOT, connection=connection)
        for revision in reversed(revisions):
            before, heads = schema(connection), current(connection)
            command.upgrade(config, revision.revision)
            after = schema(connection)
            if revision.is_merge_point:
                continue
            command.downgrade(config, str(revision.down_revision or "base"))
            # Where another branch starts at the same revision, that one went down too.
            if heads <= {revision.down_revision}:
                assert schema(connection) == before, f"{revision.path}: downgrade leaves something"
            for head in [*map(str, heads), revision.revision]:
                command.upgrade(config, head)
            assert schema(connection) == after, f"{revision.path}: another schema the second time"

    on(empty_database_url, stairway)


def test_downgrade_to_base_leaves_nothing_behind(database_url: DatabaseURL) -> None:
    def reset(connection: Connection) -> None:
        command.downgrade(make_config(ROOT, connection=connection), "base")
        assert schema(connection) == []

    on(database_url, reset)


@pytest.mark.parametrize("name", ["upgrade", "downgrade"])
def test_every_revision_prints_as_sql(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    heads = ScriptDirectory.from_config(make_config(ROOT)).get_heads()
    if heads:
        revisions = f"base:{heads[0]}" if name == "upgrade" else f"{heads[0]}:base"
        getattr(command, name)(make_config(ROOT), revisions, sql=True)
        assert "alembic_version" in capsys.readouterr().out
