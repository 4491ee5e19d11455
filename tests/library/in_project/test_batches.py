"""Backfills in batches."""

import asyncio

import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy.pool import NullPool
from tests.inside.support import Project

from alembic_safety import batches
from core.config import get_settings
from core.database import create_engine

ROWS = """
op.execute("CREATE TABLE big (id {type} PRIMARY KEY, n int, done int NOT NULL DEFAULT 0)")
    op.execute("INSERT INTO big SELECT {value}, i FROM generate_series(1, 95) i")
"""
UPDATE = "UPDATE big SET done = done + 1 WHERE id BETWEEN :first AND :last"
IMPORT = "from alembic_safety.batches import in_batches"


def backfill(statement: str = UPDATE, **options: object) -> str:
    given = "".join(f", {key}={value!r}" for key, value in {"table": "big", **options}.items())
    return f"in_batches({statement!r}{given})"


def query(project: Project, statement: str) -> list[tuple[object, ...]]:
    with project.connection.transaction():
        return project.connection.execute(statement.encode()).fetchall()


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("int", "i"),
        ("bigint", "i * 1000000000::bigint"),
        ("uuid", "md5(i::text)::uuid"),
        ("text", "md5(i::text)"),
        ("timestamptz", "'2026-01-01'::timestamptz + i * interval '1 microsecond'"),
        ("numeric", "i / 7.0"),
        ("bytea", "decode(md5(i::text), 'hex')"),
    ],
)
def test_each_row_is_changed_once(
    project: Project, caplog: pytest.LogCaptureFixture, type_: str, value: str
) -> None:
    caplog.set_level("INFO")
    project.write("a1", None, ROWS.format(type=type_, value=value).strip())
    project.write("b2", "a1", backfill(size=10), module=IMPORT)
    project.run("upgrade", "head")
    assert query(project, "SELECT done, count(*) FROM big GROUP BY 1") == [(1, 95)]
    assert project.tables() == {"t_a1", "t_b2", "big"}, "where it stood is not needed any more"
    assert "big: 95" in caplog.text


def test_what_was_interrupted_goes_on_after_the_last_batch(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.write("a1", None, ROWS.format(type="int", value="i").strip())
    caplog.set_level("INFO")
    trigger = (
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.id = 55 THEN RAISE 'enough'; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER stop BEFORE UPDATE ON big FOR EACH ROW EXECUTE FUNCTION stop()"
    )
    project.write("b2", "a1", backfill(size=10), module=IMPORT, table=False)
    project.run("upgrade", "a1")
    with project.connection.transaction():
        project.connection.execute(trigger.encode())
    assert "enough" in project.refused("upgrade", "head")
    assert query(project, "SELECT done, count(*), max(id) FROM big GROUP BY 1 ORDER BY 1") == [
        (0, 45, 95),
        (1, 50, 50),
    ]
    with project.connection.transaction():
        project.connection.execute("DROP TRIGGER stop ON big")
    project.run("upgrade", "head")
    assert "resuming after 50" in caplog.text
    assert query(project, "SELECT done, count(*) FROM big GROUP BY 1") == [(1, 95)]


def test_after_a_downgrade_it_begins_anew(project: Project) -> None:
    project.write("a1", None, ROWS.format(type="int", value="i").strip())
    failing = "UPDATE big SET done = 1 / (id - 55) WHERE id BETWEEN :first AND :last"
    project.write("b2", "a1", backfill(failing, size=10), module=IMPORT, table=False)
    assert "division by zero" in project.refused("upgrade", "head")
    project.run("downgrade", "base")
    with project.connection.transaction():
        project.connection.execute("DROP TABLE big")
    project.run("upgrade", "a1")
    with project.connection.transaction():
        project.connection.execute("DELETE FROM big WHERE id = 55; UPDATE big SET done = 7")
    project.run("upgrade", "head")
    assert query(project, "SELECT count(*) FROM big WHERE done = 7") == [(0,)]


def test_a_caller_s_transaction_is_not_committed(project: Project) -> None:
    project.write("a1", None, ROWS.format(type="int", value="i").strip())
    project.run("upgrade", "head")
    project.write("b2", "a1", backfill(), module=IMPORT)

    async def upgrade() -> str:
        engine = create_engine(get_settings().url, poolclass=NullPool)
        async with engine.begin() as connection:
            return await connection.run_sync(
                lambda sync: project.refused("upgrade", "head", connection=sync)
            )

    assert "this connection is in a transaction of its caller" in asyncio.run(upgrade())


def test_autogenerate_does_not_see_where_it_stands(project: Project) -> None:
    with project.connection.transaction():
        project.connection.execute(f"CREATE TABLE {batches.TABLE} (job text)".encode())
    try:
        project.run("check")
    except CommandError as error:  # of the tables of apps, which this database does not have
        assert batches.TABLE not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (backfill("UPDATE big SET done = 1"), "needs the bounds :first and :last"),
        (backfill(key="n"), "has to be NOT NULL, and the first column of an index"),
        (backfill(key="nope"), "there is no column nope"),
        (backfill(table="nope"), "there is no column id of a table nope"),
    ],
)
def test_what_can_t_be_walked_along_is_refused(project: Project, call: str, message: str) -> None:
    project.write("a1", None, ROWS.format(type="int", value="i").strip())
    project.write("b2", "a1", call, module=IMPORT)
    assert message in project.refused("upgrade", "head")


def test_offline_it_is_one_statement(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.write("a1", None, ROWS.format(type="int", value="i").strip())
    project.write("b2", "a1", backfill(), module=IMPORT)
    command.upgrade(project.config(), "head", sql=True)
    printed = capsys.readouterr().out
    with project.connection.transaction():
        project.connection.execute(printed.replace("BEGIN;", "").replace("COMMIT;", "").encode())
    assert query(project, "SELECT done, count(*) FROM big GROUP BY 1") == [(1, 95)]


def test_a_mistake_shows_on_an_empty_table(project: Project) -> None:
    empty = 'op.execute("CREATE TABLE big (id int PRIMARY KEY)")'
    project.write("a1", None, empty)
    project.write("b2", "a1", backfill(), module=IMPORT)
    assert 'column "done" does not exist' in project.refused("upgrade", "head")
