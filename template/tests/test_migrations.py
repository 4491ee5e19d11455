"""Checks of all revisions."""

import asyncio
from collections.abc import Callable

import pytest
from alembic import command
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.pool import NullPool

from alembic_safety.config import make_config
from alembic_safety.database.url import DatabaseURL
from alembic_safety.testing import read_schema
from core.database import create_engine
from core.project import ROOT


def on(url: DatabaseURL, run: Callable[[Connection], None]) -> None:
    """Run a function on a connection to the database `url`."""

    async def connect() -> None:
        engine = create_engine(url, poolclass=NullPool)
        async with engine.connect() as connection:
            await connection.run_sync(run)

    asyncio.run(connect())


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
            before, heads = read_schema(connection), current(connection)
            command.upgrade(config, revision.revision)
            after = read_schema(connection)
            if revision.is_merge_point:
                continue
            command.downgrade(config, str(revision.down_revision or "base"))
            # Where another branch starts at the same revision, that one went down too.
            if heads <= {revision.down_revision}:
                assert read_schema(connection) == before, (
                    f"{revision.path}: downgrade leaves something"
                )
            for head in [*map(str, heads), revision.revision]:
                command.upgrade(config, head)
            assert read_schema(connection) == after, (
                f"{revision.path}: another schema the second time"
            )

    on(empty_database_url, stairway)


def test_downgrade_to_base_leaves_nothing_behind(empty_database_url: DatabaseURL) -> None:
    def there_and_back(connection: Connection) -> None:
        before = read_schema(connection)
        command.upgrade(make_config(ROOT, connection=connection), "head")
        command.downgrade(make_config(ROOT, connection=connection), "base")
        assert read_schema(connection) == before

    on(empty_database_url, there_and_back)


@pytest.mark.parametrize("name", ["upgrade", "downgrade"])
def test_every_revision_prints_as_sql(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    heads = ScriptDirectory.from_config(make_config(ROOT)).get_heads()
    if heads:
        revisions = f"base:{heads[0]}" if name == "upgrade" else f"{heads[0]}:base"
        getattr(command, name)(make_config(ROOT), revisions, sql=True)
        assert "alembic_version" in capsys.readouterr().out
