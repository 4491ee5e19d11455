"""`make migrate-plan` finds what is unsafe, and lets what is safe pass."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from textwrap import dedent

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.conftest import Render
from tests.corpus import BASE, PAIRS
from tests.support import Project

from core.database_url import DatabaseURL

# Each case on a database of its own, all in one process.
PROGRAM = dedent('''
    import asyncio, json, pathlib, sys, tempfile, textwrap
    sys.path.insert(0, "src")
    import asyncpg
    from core.config import get_settings
    from core.migrations.config import make_config
    from core.migrations.plan import rehearsal
    from core.migrations.plan.verdicts import Sizes, judge

    REVISION = """
    import sqlalchemy as sa
    from alembic import op
    revision = {0!r}
    down_revision = {1!r}
    def upgrade():
    {2}
    def downgrade():
        pass
    """

    async def run(server, number, revisions):
        with tempfile.TemporaryDirectory() as folder:
            for index, body in enumerate(revisions):
                parent = f"r{index - 1}" if index else None
                text = textwrap.dedent(REVISION).format(
                    f"r{index}", parent, textwrap.indent(body, "    "))
                pathlib.Path(folder, f"r{index}.py").write_text(text)

            def config(**attributes):
                made = make_config(**attributes)
                made.set_main_option("path_separator", "newline")
                made.set_main_option("version_locations", folder)
                return made

            rehearsal.make_config = config
            connection = await asyncpg.connect(server.with_database("postgres").libpq)
            name = f"case{number}"
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE {server.database}")
            url = server.with_database(name)
            done = await rehearsal.rehearse(url, "head", downgrades=False)
            await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
            await connection.close()
        reasons = [r for item in done for r in judge(item, Sizes(tables=None), {})]
        return {"error": "".join(item.error for item in done), "found": [r.key for r in reasons]}

    async def main():
        server = get_settings().url
        cases = json.load(sys.stdin)
        print(json.dumps([await run(server, n, case) for n, case in enumerate(cases)]))

    asyncio.run(main())
''')


@pytest.fixture
def planned(
    render: Render, database_url: DatabaseURL, database: psycopg.Connection[TupleRow]
) -> Project:
    """A project whose database has the corpus's tables."""
    project = render(example_app=False)
    project.environment["DATABASE_URL"] = database_url.libpq
    database.execute(BASE.encode())
    database.close()
    return project


def test_what_is_unsafe_is_found_and_what_is_safe_passes(
    planned: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [case for pair in PAIRS for case in ([pair.unsafe], list(pair.safe))]
    done = planned.run("uv", "run", "python", "-c", PROGRAM, stdin=json.dumps(cases))
    results = json.loads(done.stdout)
    wrong = []
    found = false = 0
    for pair, unsafe, safe in zip(PAIRS, results[::2], results[1::2], strict=True):
        if unsafe["error"] or safe["error"]:
            wrong.append(f"{pair.name}: {unsafe['error']}{safe['error']}")
        if pair.finds in unsafe["found"]:
            found += 1
        else:
            wrong.append(f"{pair.name}: found {unsafe['found']}, not {pair.finds}")
        if safe["found"]:
            false += 1
            wrong.append(f"{pair.name}: the safe way is called {safe['found']}")
    with capsys.disabled():
        print(f"\n{len(PAIRS)} pairs: recall {found / len(PAIRS):.2f}, "
              f"precision {found / max(found + false, 1):.2f}")  # fmt: skip
    assert not wrong, "\n".join(wrong)


REVISION = """
import sqlalchemy as sa
from alembic import op
revision = "aaaa00000001"
down_revision = "3f1c9b7d5a20"
{module}
def upgrade():
    {upgrade}
def downgrade():
    {downgrade}
"""
INDEX = "op.create_index('ix_name', 'users', ['full_name'])"


@pytest.fixture
def migrated(project: Project, database: psycopg.Connection[TupleRow]) -> Project:
    """A project whose database is migrated, and has more than a few users."""
    project.alembic("upgrade", "head")
    database.execute(
        "INSERT INTO users (id, email, full_name) SELECT gen_random_uuid(), i || '@example.com', 'x'"
        " FROM generate_series(1, 20000) i"
    )
    database.execute("ANALYZE users")
    return project


def write(
    project: Project, upgrade: str, downgrade: str = "op.drop_index('ix_name')", module: str = ""
) -> None:
    text = REVISION.format(upgrade=upgrade, downgrade=downgrade, module=module)
    project.write("migrations/versions/20990101_0000_aaaa00000001_try.py", text)


def plan(project: Project, *arguments: str, expect: int) -> str:
    command = ["uv", "run", "python", "-m", "core.migrations", "plan", *arguments]
    done = project.run(*command, expect=expect, env={"PYTHONPATH": "src"})
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def databases(database: psycopg.Connection[TupleRow]) -> list[str]:
    return [name for (name,) in database.execute("SELECT datname FROM pg_database ORDER BY 1")]


def test_the_plan_says_what_is_unsafe_and_the_safe_way_and_changes_nothing(
    migrated: Project, database: psycopg.Connection[TupleRow]
) -> None:
    write(migrated, INDEX)
    before = databases(database)
    printed = plan(migrated, expect=3)
    said = unwrapped(printed)
    assert "blocks writes: an index is built under SHARE on users" in said
    assert "(20,000 rows) read at about 200 MB/s" in said
    assert 'op.execute("CREATE INDEX CONCURRENTLY ix_name ON public.users' in said
    assert "Unsafe: aaaa00000001." in said
    assert "\033" not in said, "no colour in a pipe"
    assert databases(database) == before
    assert database.execute("SELECT to_regclass('ix_name')").fetchone() == (None,)
    assert migrated.make("migrate-plan", expect=2).stdout
    document = json.loads(plan(migrated, "--format=json", expect=3))
    assert document["safe"] is False
    [revision] = document["revisions"]
    assert revision["verdicts"] == ["blocks writes"]
    [statement] = revision["statements"]
    assert statement["tables"] == [
        {"table": "users", "lock": "SHARE", "rewritten": False, "scanned": True, "rows": 0}
    ]
    assert "| `aaaa00000001` |" in plan(migrated, "--format=markdown", expect=3)


def test_what_is_acknowledged_or_small_passes_and_is_listed(migrated: Project) -> None:
    write(migrated, INDEX, module="acknowledged = {'blocks writes:users': 'window on 12 May'}")
    said = unwrapped(plan(migrated, expect=0))
    assert "(acknowledged: window on 12 May)" in said
    write(
        migrated, INDEX, module="acknowledged = {'blocks writes:users': ' ', 'rewrites:users': 'x'}"
    )
    said = unwrapped(plan(migrated, expect=3))
    assert "'blocks writes:users' is acknowledged without a reason" in said
    assert "'rewrites:users' is acknowledged and does not happen" in said
    write(migrated, INDEX)
    migrated.environment["MIGRATION_PLAN_SMALL_ROWS"] = "1000000"
    assert "(let through: the table is small)" in unwrapped(plan(migrated, expect=0))


def test_a_downgrade_that_does_not_bring_the_schema_back_is_said(migrated: Project) -> None:
    write(migrated, "op.add_column('users', sa.Column('note', sa.Text))", "pass")
    said = unwrapped(plan(migrated, expect=3))
    assert "cannot be undone: the downgrade leaves column users.note" in said


def test_a_revision_that_raises_is_said_and_leaves_nothing(
    migrated: Project, database: psycopg.Connection[TupleRow]
) -> None:
    before = databases(database)
    write(migrated, "op.execute('SELECT 1 / 0')")
    said = plan(migrated, expect=1)
    assert "the rehearsal failed: " in said
    assert "division by zero" in said
    assert databases(database) == before


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_plan_that_is_stopped_leaves_nothing(
    migrated: Project, database: psycopg.Connection[TupleRow], end: signal.Signals
) -> None:
    before = databases(database)
    write(migrated, "op.execute('SELECT pg_sleep(60)')")
    process = subprocess.Popen(
        ["uv", "run", "python", "-m", "core.migrations", "plan"],
        cwd=migrated.path,
        env={**migrated.environment, "PYTHONPATH": "src"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"
    for _ in range(300):
        if database.execute(sleeping).fetchone() != (0,):
            break
        time.sleep(0.1)
    os.killpg(process.pid, end)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in said
    assert databases(database) == before


def test_nothing_pending_is_said(migrated: Project) -> None:
    assert "Nothing is pending" in plan(migrated, expect=0)


def test_without_the_right_to_make_databases_the_project_s_own_server_does_it(
    migrated: Project, database: psycopg.Connection[TupleRow], database_url: DatabaseURL
) -> None:
    write(migrated, INDEX)
    database.execute("CREATE ROLE planner LOGIN")
    try:
        database.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO planner")
        database.execute("GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO planner")
        migrated.environment["DATABASE_URL"] = replace(database_url, user="planner").libpq
        assert "on the project's own server." in plan(migrated, expect=3)
    finally:
        database.execute("DROP OWNED BY planner; DROP ROLE planner")
