"""The library in projects that `alembic init` made, on each driver, as its README says."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.stock import StockProject

from alembic_safety.database.url import DatabaseURL

KINDS = ("generic", "async", "pyproject", "pyproject_async")
DRIVERS = ("asyncpg", "psycopg", "psycopg2")


@pytest.fixture(params=[f"{kind}-{driver}" for kind in KINDS for driver in DRIVERS])
def project(
    request: pytest.FixtureRequest, tmp_path: Path, database_url: DatabaseURL
) -> StockProject:
    kind, driver = request.param.split("-")
    return StockProject(tmp_path / "shop", kind, database_url, driver)


def applied(database: psycopg.Connection[TupleRow]) -> list[tuple[str, str]]:
    query = "SELECT revision, direction FROM alembic_version_history ORDER BY id"
    return [(row[0], row[1]) for row in database.execute(query)]


def test_a_stock_project_has_every_measure(
    project: StockProject, database: psycopg.Connection[TupleRow]
) -> None:
    project.alembic("revision", "--autogenerate", "-m", "Create orders", "--rev-id=a1")
    assert "op.create_table('orders'" in "".join(file.read_text() for file in project.revisions())

    # Of two runners at once, one applies the revision.
    with ThreadPoolExecutor() as threads:
        for runner in [threads.submit(project.alembic, "upgrade", "head") for _ in range(2)]:
            runner.result()
    assert applied(database) == [("a1", "upgrade")]
    assert "a1 (head)" in project.alembic("current").stdout
    project.alembic("check")

    # A held table is waited for, and its holder is named.
    database.execute("INSERT INTO orders (number) SELECT n::text FROM generate_series(1, 100) n")
    add = 'op.execute("ALTER TABLE orders ADD COLUMN note text")'
    project.revise("b2", "a1", add, 'op.drop_column("orders", "note")')
    project.environment |= {"MIGRATION_LOCK_TIMEOUT": "600ms", "MIGRATION_LOCK_RETRIES": "20"}
    with subprocess.Popen(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=project.path,
        env=project.environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as upgrading:
        with database.transaction():
            database.execute("SELECT count(*) FROM orders")
            assert upgrading.stderr is not None
            retrying = next(line for line in upgrading.stderr if "retrying in" in line)
        upgrading.stderr.read()
    assert f"a table is locked by pid {database.info.backend_pid}" in retrying
    assert upgrading.returncode == 0
    assert applied(database)[-1] == ("b2", "upgrade")

    project.safety("status")
    backup = project.safety("backup").stdout.strip()
    restored = project.safety("restore", "--into", f"{database.info.dbname}_b", backup).stdout
    assert f"restored into the database {database.info.dbname}_b" in restored
    database.execute(f'DROP DATABASE "{database.info.dbname}_b"'.encode())

    project.revise("c3", "b2", 'op.create_index("ix", "orders", ["number"])', 'op.drop_index("ix")')
    planned = project.safety("plan", expect=None)
    assert planned.returncode == 0, planned.stderr
    assert "ix" in planned.stdout
    checked = project.safety("check", expect=1).stdout
    assert re.search(r"ok +up, down, up +3 revisions", checked), checked
    project.alembic("downgrade", "-1")
    assert applied(database)[-1] == ("b2", "downgrade")


@pytest.mark.parametrize("driver", DRIVERS)
def test_only_asyncpg_refuses_several_statements_at_once(
    tmp_path: Path, database_url: DatabaseURL, database: psycopg.Connection[TupleRow], driver: str
) -> None:
    project = StockProject(tmp_path / "shop", "generic", database_url, driver)
    project.revise("a1", None, 'op.execute("CREATE TABLE a (); CREATE TABLE b ()")', "pass")
    done = project.alembic("upgrade", "head", expect=None)
    if driver == "asyncpg":
        assert done.returncode == 1
        assert "cannot insert multiple commands into a prepared statement" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert applied(database) == [("a1", "upgrade")]


def test_a_project_of_several_databases_is_refused_and_works_as_the_message_says(
    tmp_path: Path, database_url: DatabaseURL, database: psycopg.Connection[TupleRow]
) -> None:
    project = StockProject(tmp_path / "shop", "multidb", database_url, "psycopg")
    said = project.alembic("upgrade", "head", expect=1).stderr
    assert "databases = engine1, engine2: a multidb project is not supported" in said
    assert len(said.splitlines()) == 1
    assert "a multidb project is not supported" in project.safety("status", expect=1).stderr

    ini = re.sub(r"(?m)^databases", "# databases", project.read("alembic.ini"))
    location = "script_location = %(here)s/migrations"
    project.write("alembic.ini", re.sub(r"(?m)^\[engine1\]$", rf"[engine1]\n{location}", ini))
    project.revise("a1", None, 'op.execute("CREATE TABLE a ()")', 'op.execute("DROP TABLE a")')
    project.alembic("-n", "engine1", "upgrade", "head")
    assert applied(database) == [("a1", "upgrade")]
    assert "a1 (head)" in project.alembic("-n", "engine1", "current").stdout


def test_a_wrong_url_is_one_line_without_its_password(
    tmp_path: Path, database_url: DatabaseURL
) -> None:
    project = StockProject(tmp_path / "shop", "generic", database_url, "asyncpg")
    ini = re.sub(
        r"(?m)^(sqlalchemy.url =).*", r"\1 mysql://u:secret@db/app", project.read("alembic.ini")
    )
    project.write("alembic.ini", ini)
    for run in (project.alembic, project.safety):
        said = run(*(["current"] if run == project.alembic else ["status"]), expect=1).stderr
        assert "the database URL has the scheme 'mysql'; expected one of postgresql" in said
        assert len(said.splitlines()) == 1
        assert "secret" not in said


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_plan_shows_statements_as_they_were_written(
    tmp_path: Path, database_url: DatabaseURL, driver: str
) -> None:
    project = StockProject(tmp_path / "shop", "generic", database_url, driver)
    query = "SELECT '100%' WHERE 'a' LIKE 'a%'"
    project.revise("a1", None, f'op.execute("{query}")', "pass")
    planned = project.safety("plan", "--format=json").stdout
    assert query in planned
    assert "%%" not in planned
