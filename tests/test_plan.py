"""`make migrate-plan` finds what is unsafe, and lets what is safe pass."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import dedent

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.conftest import Render
from tests.corpus import BASE, PAIRS
from tests.servers import installed, running
from tests.squawk import squawk_finds
from tests.support import Project

from alembic_safety.database.url import DatabaseURL

# Each case on a schema made anew, all in one process.
PROGRAM = dedent('''
    import asyncio, itertools, json, pathlib, sys, tempfile, textwrap, types
    sys.path.insert(0, "src")
    import asyncpg
    from alembic_safety.database.url import DatabaseURL
    from alembic_safety.config import make_config
    from alembic_safety.plan import rehearsal
    from alembic_safety.plan.rules import judge
    from alembic_safety.plan.scratch import Scratch
    from alembic_safety.plan.sizes import Sizes

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

    CLEAR = """
        DO $$ DECLARE name text; BEGIN
            FOR name IN SELECT nspname FROM pg_namespace
                WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
            LOOP EXECUTE format('DROP SCHEMA %I CASCADE', name); END LOOP;
            CREATE SCHEMA public;
            FOR name IN SELECT amname FROM pg_am WHERE oid >= 16384
            LOOP EXECUTE format('DROP ACCESS METHOD %I', name); END LOOP;
        END $$;
    """

    def as_sql(item):
        """Return a revision's statements as `alembic upgrade --sql` would print them."""
        lines = []
        for inside, group in itertools.groupby(item.statements, lambda s: s.in_transaction):
            sql = [statement.sql.rstrip("; ") + ";" for statement in group if statement.sql]
            lines += ["BEGIN;", *sql, "COMMIT;"] if inside else sql
        return "\\n".join(lines)

    async def run(server, admin, base, revisions):
        with tempfile.TemporaryDirectory() as folder:
            for index, body in enumerate(revisions):
                parent = f"r{index - 1}" if index else None
                text = textwrap.dedent(REVISION).format(
                    f"r{index}", parent, textwrap.indent(body, "    "))
                pathlib.Path(folder, f"r{index}.py").write_text(text)

            def config(**attributes):
                made = make_config(pathlib.Path.cwd(), **attributes)
                made.set_main_option("path_separator", "newline")
                made.set_main_option("version_locations", folder)
                return made

            project = types.SimpleNamespace(make_config=config)
            copy = Scratch(url=server, server="", shared=False)
            await admin.execute(CLEAR + base)
            done = await rehearsal.rehearse(project, copy, "head", downgrades=False)
        reasons = [r for item in done for r in judge(item, Sizes(tables=None), {})]
        return {
            "error": "".join(item.error for item in done),
            "found": [reason.key for reason in reasons],
            "sql": [as_sql(item) for item in done],
        }

    async def main():
        server = DatabaseURL.parse(sys.argv[1])
        admin = await asyncpg.connect(server.libpq)
        given = json.load(sys.stdin)
        results = [await run(server, admin, given["base"], case) for case in given["cases"]]
        await admin.close()
        print(json.dumps(results))

    asyncio.run(main())
''')


@pytest.fixture(params=["wheel", 15])
def corpus_server(request: pytest.FixtureRequest) -> Iterator[tuple[DatabaseURL, int]]:
    """A database for the corpus, and its server's major version."""
    if request.param == "wheel":
        server: DatabaseURL = request.getfixturevalue("server")
        yield server.with_database(make_corpus(server)), 18
        return
    if request.param not in installed():
        pytest.skip(f"PostgreSQL {request.param} is not in /usr/lib/postgresql")
    with running(installed()[request.param], "-c", "fsync=off") as older:
        url = f"postgresql://postgres@/postgres?host={older.folder}&port={older.port}"
        server = DatabaseURL.parse(url)
        yield server.with_database(make_corpus(server)), request.param


def make_corpus(server: DatabaseURL) -> str:
    """Make a database for the corpus; return its name."""
    with psycopg.connect(server.libpq, autocommit=True) as connection:
        connection.execute("CREATE DATABASE corpus")
    return "corpus"


@dataclass
class Score:
    """Of how many unsafe operations something was found, and of how many safe ones."""

    pairs: int
    found: int = 0
    false: int = 0

    def __str__(self) -> str:
        precision = self.found / max(self.found + self.false, 1)
        return f"recall {self.found / self.pairs:.2f}, precision {precision:.2f}"


def test_what_is_unsafe_is_found_and_what_is_safe_passes(
    render: Render, corpus_server: tuple[DatabaseURL, int], capsys: pytest.CaptureFixture[str]
) -> None:
    url, version = corpus_server
    project = render(example_app=False)
    pairs = [pair for pair in PAIRS if version >= pair.since]
    cases = [case for pair in pairs for case in ([pair.unsafe], list(pair.safe))]
    given = json.dumps({"base": BASE, "cases": cases})
    done = project.run("uv", "run", "python", "-c", PROGRAM, url.libpq, stdin=given)
    results = json.loads(done.stdout)
    wrong = []
    ours, squawk = Score(len(pairs)), Score(len(pairs))
    for pair, unsafe, safe in zip(pairs, results[::2], results[1::2], strict=True):
        if unsafe["error"] or safe["error"]:
            wrong.append(f"{pair.name}: {unsafe['error']}{safe['error']}")
        if pair.finds in unsafe["found"]:
            ours.found += 1
        else:
            wrong.append(f"{pair.name}: found {unsafe['found']}, not {pair.finds}")
        if safe["found"]:
            ours.false += 1
            wrong.append(f"{pair.name}: the safe way is called {safe['found']}")
        squawk.found += any(squawk_finds(sql, version) for sql in unsafe["sql"])
        squawk.false += any(squawk_finds(sql, version) for sql in safe["sql"])
    with capsys.disabled():
        print(f"\n{len(pairs)} pairs on PostgreSQL {version}: {ours}; squawk: {squawk}")
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
    command = ["uv", "run", "python", "-m", "alembic_safety", "plan", *arguments]
    done = project.run(*command, expect=expect, env={"PYTHONPATH": "src"})
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def keys(value: object) -> Iterator[str]:
    """Yield the keys of a JSON document, those of tables' names left out."""
    if isinstance(value, list):
        for item in value:
            yield from keys(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "users":
                yield key
            yield from keys(item)


def databases(database: psycopg.Connection[TupleRow]) -> list[str]:
    return [name for (name,) in database.execute("SELECT datname FROM pg_database ORDER BY 1")]


def test_the_plan_says_what_is_unsafe_and_the_safe_way_and_changes_nothing(
    migrated: Project, database: psycopg.Connection[TupleRow]
) -> None:
    write(migrated, INDEX)
    before = databases(database)
    printed = plan(migrated, expect=3)
    said = unwrapped(printed)
    assert "blocks writes: an index of users is built under SHARE" in said
    assert "(20,000 rows) read at about 200 MB/s" in said
    assert 'op.execute("CREATE INDEX CONCURRENTLY ix_name ON public.users' in said
    assert "Unsafe: aaaa00000001." in said
    assert "\033" not in said, "no colour in a pipe"
    assert databases(database) == before
    assert database.execute("SELECT to_regclass('ix_name')").fetchone() == (None,)
    assert migrated.make("migrate-plan", expect=2).stdout
    document = json.loads(plan(migrated, "--format=json", expect=3))
    assert document["safe"] is False
    documented = migrated.read("packages/alembic-safety/docs/plan-and-gate.md")
    assert [key for key in keys(document) if f"`{key}`" not in documented] == []
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


SLEEP = "SELECT pg_sleep(60)"


def start_plan(project: Project) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["uv", "run", "python", "-m", "alembic_safety", "plan"],
        cwd=project.path,
        env={**project.environment, "PYTHONPATH": "src"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until_it_sleeps(database: psycopg.Connection[TupleRow]) -> None:
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = %s"
    for _ in range(300):
        if database.execute(sleeping, [SLEEP]).fetchone() != (0,):
            return
        time.sleep(0.1)
    pytest.fail("the revision does not run")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_plan_that_is_stopped_leaves_nothing(
    migrated: Project, database: psycopg.Connection[TupleRow], end: signal.Signals
) -> None:
    before = databases(database)
    write(migrated, "op.execute('SELECT pg_sleep(60)')")
    process = start_plan(migrated)
    wait_until_it_sleeps(database)
    os.killpg(process.pid, end)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in said
    assert databases(database) == before


def test_the_live_database_is_not_touched(
    migrated: Project, database: psycopg.Connection[TupleRow], database_url: DatabaseURL
) -> None:
    write(migrated, INDEX)
    everything = "SELECT coalesce(sum(hashtext(users::text)), 0), count(*) FROM users"
    before = database.execute(everything).fetchone(), schema(migrated, database_url)
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname LIKE 'test%'"
    there = databases(database), database.execute(sessions).fetchone()
    with psycopg.connect(database_url.libpq) as holder:
        tables = holder.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND oid > 16384")
        names = ", ".join(name for (name,) in tables.fetchall())
        # It lets ACCESS SHARE through, and nothing else.
        holder.execute(f"LOCK TABLE {names} IN EXCLUSIVE MODE".encode())
        plan(migrated, expect=3)
        plan(migrated, "--with-data", expect=3)
        holder.rollback()
    assert (database.execute(everything).fetchone(), schema(migrated, database_url)) == before
    assert (databases(database), database.execute(sessions).fetchone()) == there


def schema(project: Project, url: DatabaseURL) -> str:
    """Return a dump of the schema."""
    code = (
        "import sys, subprocess; sys.path.insert(0, 'src')\n"
        "from alembic_safety.backup.clients import find_client\n"
        "program = find_client('pg_dump', None, server_major=18)\n"
        f"subprocess.run([program, '--schema-only', '-d', {url.libpq!r}], check=True)"
    )
    lines = project.python(code).stdout.splitlines()
    # A key of psql's, another one each time.
    return "\n".join(line for line in lines if not line.startswith(("\\restrict", "\\unrestrict")))


NEEDS_DATA = (
    "op.execute(\"DO $$ BEGIN IF NOT EXISTS (SELECT FROM users) THEN RAISE EXCEPTION 'no users'; "
    'END IF; END $$")'
)


def test_a_revision_that_needs_data_is_said(migrated: Project) -> None:
    write(migrated, NEEDS_DATA, "pass")
    said = plan(migrated, expect=1)
    assert "no users" in said
    assert "the copy has no rows; WITH_DATA=1 copies them" in unwrapped(said)
    assert "All of it is safe." in migrated.make("migrate-plan", "WITH_DATA=1").stdout


def test_a_lost_connection_is_said_and_nothing_is_left(
    migrated: Project, database: psycopg.Connection[TupleRow]
) -> None:
    before = databases(database)
    write(migrated, "op.execute('SELECT pg_sleep(60)')")
    process = start_plan(migrated)
    wait_until_it_sleeps(database)
    database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = %s", [SLEEP]
    )
    out, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the connection was lost" in unwrapped(out)
    assert "Traceback" not in error
    assert databases(database) == before


def test_a_full_disk_is_said_and_nothing_is_left(
    migrated: Project, database: psycopg.Connection[TupleRow], tmp_path: Path
) -> None:
    small = tmp_path / "small disk"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=64k none '{small}'"
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount], check=False).returncode != 0:
        pytest.skip("no small disk can be made here: unshare and mount may not")
    before = databases(database)
    write(migrated, INDEX)
    python = f"{migrated.environment['UV_PROJECT_ENVIRONMENT']}/bin/python"
    command = f"{mount} && exec '{python}' -m alembic_safety plan --with-data"
    environment = {"PYTHONPATH": "src", "TMPDIR": str(small)}
    done = migrated.run("unshare", "--mount", "sh", "-c", command, expect=1, env=environment)
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert databases(database) == before


def test_it_is_rehearsed_where_plan_database_url_says(
    migrated: Project, database: psycopg.Connection[TupleRow], database_url: DatabaseURL
) -> None:
    write(migrated, INDEX)
    migrated.environment["PLAN_DATABASE_URL"] = database_url.with_database("postgres").libpq
    assert "on PLAN_DATABASE_URL's server." in unwrapped(plan(migrated, expect=3))
    database.execute("CREATE ROLE reader LOGIN")
    try:
        reader = replace(database_url, user="reader").libpq
        migrated.environment["PLAN_DATABASE_URL"] = reader
        said = plan(migrated, expect=1)
    finally:
        database.execute("DROP ROLE reader")
    assert "PLAN_DATABASE_URL: no database could be created: permission denied" in said


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
        assert "on the project's own server." in unwrapped(plan(migrated, expect=3))
    finally:
        database.execute("DROP OWNED BY planner; DROP ROLE planner")
