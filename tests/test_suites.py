"""A rendered project's test suite: when it runs the migrations, and what it leaves on the server."""

import re
from collections.abc import Callable
from dataclasses import replace
from textwrap import dedent

import psycopg
from psycopg.rows import TupleRow
from tests.support import NOTHING, Env, Project

from alembic_safety.database.url import DatabaseURL

REVISION = """
from pathlib import Path

from alembic import op

revision = "counted"
down_revision = "3f1c9b7d5a20"


def upgrade() -> None:
    with Path("runs").open("a") as file:
        file.write("run\\n")
    op.execute("CREATE TABLE counted ()")
    {more}


def downgrade() -> None:
    op.execute("DROP TABLE counted")
"""
TESTS = dedent("""
    import pytest
    from sqlalchemy import text


    @pytest.mark.parametrize("number", range(4))
    async def test_tables(session, number: int) -> None:
        assert await session.scalar(text("SELECT count(*) FROM counted")) == 0


    def test_copy(database_url) -> None:
        assert "_test_" in database_url.database
""")


def write(project: Project, more: str = "pass") -> None:
    project.write("migrations/versions/counted.py", REVISION.format(more=more))
    project.write("tests/test_suite.py", TESTS)


def run(project: Project, *options: str, expect: int = 0, env: Env = NOTHING) -> str:
    command = ("uv", "run", "python", "-m", "pytest", "-q", *options, "tests/test_suite.py")
    return project.run(*command, expect=expect, env=env).stdout


def runs(project: Project) -> int:
    return len(project.read("runs").splitlines())


def test_migrations_run_again_only_where_they_changed(render: Callable[..., Project]) -> None:
    project = render()
    write(project)
    run(project, "-n", "2")
    assert runs(project) == 1
    run(project)
    assert runs(project) == 1
    write(project, 'op.execute("CREATE TABLE another ()")')
    run(project)
    assert runs(project) == 2
    run(project, "--postgresql-drop-test-database")
    assert runs(project) == 3


def test_nothing_is_left_on_a_server_that_is_not_the_project_s_own(
    render: Callable[..., Project],
    database: psycopg.Connection[TupleRow],
    database_url: DatabaseURL,
) -> None:
    project = render()
    write(project)
    query = "SELECT datname FROM pg_database"
    before = database.execute(query).fetchall()
    run(project, "-n", "2", env={"DATABASE_URL": database_url.libpq})
    assert database.execute(query).fetchall() == before


def test_a_revision_that_fails_is_named_in_short(
    render: Callable[..., Project],
    database: psycopg.Connection[TupleRow],
    database_url: DatabaseURL,
) -> None:
    project = render()
    write(project, 'op.execute("SELECT nonsense")')
    query = "SELECT datname FROM pg_database"
    before = database.execute(query).fetchall()
    said = run(project, expect=1, env={"DATABASE_URL": database_url.libpq})
    assert "migrations/versions/counted.py:14, in upgrade: column" in said
    assert "Traceback" not in said
    assert "tests/conftest.py" not in said
    assert database.execute(query).fetchall() == before


def test_a_role_that_may_not_create_databases_is_one_message_whose_advice_helps(
    render: Callable[..., Project],
    database: psycopg.Connection[TupleRow],
    database_url: DatabaseURL,
) -> None:
    project = render()
    project.environment["DATABASE_URL"] = replace(database_url, user="tester").libpq
    database.execute("DROP ROLE IF EXISTS tester")
    database.execute("CREATE ROLE tester LOGIN")
    refused = project.run("uv", "run", "python", "-m", "pytest", "-q", expect=2)
    [line] = (refused.stdout + refused.stderr).strip().splitlines()
    assert "The tests need a role that may create databases" in line
    advice = re.search(r"ALTER ROLE \S+ CREATEDB", line)
    assert advice is not None
    database.execute(advice[0].encode())
    project.run("uv", "run", "python", "-m", "pytest", "-q", "tests/apps")
    database.execute("DROP ROLE tester")
