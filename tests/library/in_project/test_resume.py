"""Revisions of which an interrupted run has committed a part."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy.engine import make_url
from tests.inside.support import Project

from core.config import get_settings
from core.project import ROOT

INDEX = 'op.create_index("ix_t_a1_id", "t_a1", ["id"], postgresql_concurrently=True)'
ROWS = "op.execute('INSERT INTO t_a1 SELECT i FROM generate_series(1, 9) i')"
GATE = "op.execute('SELECT 1 / count(*) FROM gate')"
"""Fails until the table `gate` has a row."""
BUILDING = (
    "SELECT count(*) = 1 FROM pg_stat_activity"
    " WHERE query LIKE 'CREATE INDEX CONCURRENTLY%%' AND wait_event_type = 'Lock'"
    " AND datname = current_database()"
)
GONE = (
    "SELECT count(*) = 0 FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
INDEXES = (
    "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indrelid = 't_a1'::regclass"
)


def block(*statements: str) -> str:
    lines = "".join(f"\n        {statement}" for statement in statements)
    return f"with op.get_context().autocommit_block():{lines}"


def rows(project: Project, query: str) -> list[tuple[object, ...]]:
    with project.connection.transaction():
        return project.connection.execute(query.encode()).fetchall()


def wait_until(project: Project, query: str) -> None:
    deadline = time.monotonic() + 60
    while rows(project, query) != [(True,)]:
        assert time.monotonic() < deadline, query
        time.sleep(0.02)


@contextmanager
def runner(project: Project) -> Iterator["subprocess.Popen[str]"]:
    """Run `upgrade head` in a process of its own."""
    program = (
        "from alembic import command; from alembic_safety.config import make_config; "
        "from core.project import ROOT; "
        "config = make_config(ROOT); config.set_main_option('path_separator', 'newline'); "
        f"config.set_main_option('version_locations', {str(project.folder)!r}); "
        "command.upgrade(config, 'head')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def interrupted(project: Project, revision: str, *statements: str) -> str:
    """Write a revision and run it up to the end of its autocommit block; return the error."""
    project.write(revision, "a1", block(*statements, GATE), table=False)
    return project.refused("upgrade", "head")


@pytest.fixture(autouse=True)
def first_revision(project: Project) -> None:
    project.write("a1", None, f"{ROWS}; op.execute('CREATE TABLE gate (id int)')")
    project.run("upgrade", "head")


def open_gate(project: Project) -> None:
    with project.connection.transaction():
        project.connection.execute("INSERT INTO gate VALUES (1)")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_the_next_run_goes_on_after_one_that_was_killed_while_it_built_an_index(
    project: Project, caplog: pytest.LogCaptureFixture, number: signal.Signals
) -> None:
    project.write("b2", "a1", block(INDEX), table=False)
    with psycopg.connect(get_settings().url.libpq) as writer, runner(project) as process:
        writer.execute("INSERT INTO t_a1 VALUES (0)")  # the build waits for it
        wait_until(project, BUILDING)
        process.send_signal(number)
        process.wait(30)
        writer.rollback()
    wait_until(project, GONE)
    built = [("ix_t_a1_id", number != signal.SIGINT)]
    assert rows(project, INDEXES) == built
    project.run("upgrade", "head")
    assert rows(project, INDEXES) == [("ix_t_a1_id", True)]
    assert rows(project, "SELECT version_num FROM alembic_version") == [("b2",)]
    expected = "dropping the invalid index" if number == signal.SIGINT else "skipping: CREATE INDEX"
    assert expected in caplog.text


SLEEPING = (
    "SELECT count(*) = 1 FROM pg_stat_activity"
    " WHERE query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid() AND state = 'active'"
    " AND datname = current_database()"
)


def test_an_interruption_is_not_lost_in_the_cleanup_of_a_revision(project: Project) -> None:
    sleeps = "op.execute('SELECT pg_sleep(60)')"
    project.write(
        "b2", "a1", f"try:\n        {sleeps}\n    finally:\n        op.execute('SELECT 1')"
    )
    with runner(project) as process:
        wait_until(project, SLEEPING)
        process.send_signal(signal.SIGINT)
        _, output = process.communicate(timeout=30)
    assert output.rstrip().endswith("KeyboardInterrupt")
    assert rows(project, "SELECT version_num FROM alembic_version") == [("a1",)]
    assert rows(
        project, "SELECT count(*) FROM alembic_version_history WHERE error IS NOT NULL"
    ) == [(0,)]


def test_an_interruption_ends_the_pause_before_a_retry(project: Project) -> None:
    project.write("b2", "a1", "op.execute('ALTER TABLE t_a1 ADD x int')", table=False)
    with psycopg.connect(get_settings().url.libpq) as writer, runner(project) as process:
        writer.execute("INSERT INTO t_a1 VALUES (0)")
        assert process.stderr is not None
        tries = 0
        while tries < 4:  # from then on, a pause takes seconds
            tries += "retrying in" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.wait(30)
        output = process.stderr.read()
    assert "retrying" not in output
    assert output.rstrip().endswith("KeyboardInterrupt")


STATEMENTS = {
    "an index": ("SELECT", INDEX, "SELECT count(*) FROM pg_index WHERE indisvalid AND indexrelid = 'ix_t_a1_id'::regclass"),
    "an expression's index": (
        "SELECT",
        ('op.execute(\'CREATE UNIQUE INDEX CONCURRENTLY "Ix" ON public.t_a1'
        " (abs(t_a1.id) DESC NULLS LAST) INCLUDE (id) WITH (fillfactor = 70) WHERE t_a1.id > 3')"),
        "SELECT count(*) FROM pg_class WHERE relname = 'Ix'",
    ),
    "an index without a name": (
        "SELECT",
        "op.execute('CREATE INDEX CONCURRENTLY ON t_a1 (id)')",
        "SELECT count(*) FROM pg_index WHERE indrelid = 't_a1'::regclass",
    ),
    "a dropped index": (
        "CREATE INDEX gone ON t_a1 (id)",
        'op.drop_index("gone", "t_a1", postgresql_concurrently=True)',
        "SELECT 1 WHERE to_regclass('gone') IS NULL",
    ),
    "a value of an enum": (
        "CREATE TYPE mood AS ENUM ('good', 'bad')",
        "op.execute(\"ALTER TYPE mood ADD VALUE 'it''s so' BEFORE 'bad'\")",
        "SELECT count(*) FROM pg_enum WHERE enumlabel = 'it''s so'",
    ),
    "a constraint": (
        "ALTER TABLE t_a1 ADD CONSTRAINT ck CHECK (id > 0) NOT VALID",
        "op.execute('ALTER TABLE t_a1 VALIDATE CONSTRAINT ck')",
        "SELECT count(*) FROM pg_constraint WHERE conname = 'ck' AND convalidated",
    ),
    "a partition": (
        ("CREATE TABLE whole (id int) PARTITION BY RANGE (id);"
        "CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (9)"),
        "op.execute('ALTER TABLE whole DETACH PARTITION part CONCURRENTLY')",
        "SELECT count(*) FROM pg_class WHERE relname = 'part' AND NOT relispartition",
    ),
    "an index that is rebuilt": (
        "CREATE INDEX ix ON t_a1 (id)",
        "op.execute('REINDEX INDEX CONCURRENTLY ix')",
        "SELECT count(*) FROM pg_index WHERE indrelid = 't_a1'::regclass AND indisvalid",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", STATEMENTS)
def test_what_was_committed_and_not_recorded_is_not_done_twice(project: Project, kind: str) -> None:
    before, statement, check = STATEMENTS[kind]
    for prepared in before.split(";"):
        with project.connection.transaction():
            project.connection.execute(prepared.encode())
    assert "division by zero" in interrupted(project, "b2", statement)
    assert rows(project, check) == [(1,)]
    assert "division by zero" in project.refused("upgrade", "head")
    open_gate(project)
    project.run("upgrade", "head")
    assert rows(project, check) == [(1,)]
    assert rows(project, "SELECT version_num FROM alembic_version") == [("b2",)]


OTHERS = {
    "columns": "CREATE INDEX ix_t_a1_id ON t_a1 (id, id)",
    "order": "CREATE INDEX ix_t_a1_id ON t_a1 (id DESC)",
    "uniqueness": "CREATE UNIQUE INDEX ix_t_a1_id ON t_a1 (id)",
    "predicate": "CREATE INDEX ix_t_a1_id ON t_a1 (id) WHERE id > 1",
    "expression": "CREATE INDEX ix_t_a1_id ON t_a1 (abs(id))",
    "method": "CREATE INDEX ix_t_a1_id ON t_a1 USING hash (id)",
    "operator class": "CREATE INDEX ix_t_a1_id ON t_a1 USING brin (id int4_minmax_multi_ops)",
    "table": "CREATE INDEX ix_t_a1_id ON gate (id)",
}


@pytest.mark.parametrize("difference", OTHERS)
def test_another_index_of_the_name_is_refused_and_both_are_named(
    project: Project, difference: str
) -> None:
    with project.connection.transaction():
        project.connection.execute(OTHERS[difference].encode())
    project.write("b2", "a1", block(INDEX), table=False)
    message = project.refused("upgrade", "head")
    there = OTHERS[difference].partition(" ON ")[2].partition(" ")[0]
    assert "the index ix_t_a1_id exists with another definition: it is " in message
    assert f" on {there}, the revision builds btree (id) on t_a1. Rename one of them" in message
    assert rows(project, "SELECT version_num FROM alembic_version") == [("a1",)]
    # The advice holds.
    [advice] = [part for part in message.split("(") if part.startswith("DROP INDEX")]
    project.connection.autocommit = True
    project.connection.execute(advice.partition(")")[0].encode())
    project.connection.autocommit = False
    project.run("upgrade", "head")


def test_if_not_exists_keeps_another_index_with_a_warning(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    with project.connection.transaction():
        project.connection.execute("CREATE INDEX ix ON t_a1 (id DESC)")
    statement = "op.execute('CREATE INDEX CONCURRENTLY IF NOT EXISTS ix ON t_a1 (id)')"
    project.write("b2", "a1", block(statement), table=False)
    project.run("upgrade", "head")
    assert "the index ix exists with another definition" in caplog.text


def test_an_enum_value_at_another_place_is_refused(project: Project) -> None:
    with project.connection.transaction():
        project.connection.execute("CREATE TYPE mood AS ENUM ('good', 'fair', 'bad')")
    statement = "op.execute(\"ALTER TYPE mood ADD VALUE 'fair' AFTER 'bad'\")"
    project.write("b2", "a1", block(statement), table=False)
    message = project.refused("upgrade", "head")
    assert "the type mood has the value 'fair' at another place: it has good, fair, bad" in message


def test_a_detachment_that_was_interrupted_is_finished(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    for statement in STATEMENTS["a partition"][0].split(";"):
        with project.connection.transaction():
            project.connection.execute(statement.encode())
    project.write("b2", "a1", block(STATEMENTS["a partition"][1]), table=False)
    with psycopg.connect(get_settings().url.libpq) as reader:
        reader.execute("SELECT * FROM whole")
        # It marks the partition, and then waits for the reader.
        message = project.refused("upgrade", "head", statement_timeout="500ms", lock_timeout="off")
        assert "statement timeout" in message
    assert rows(project, "SELECT inhdetachpending FROM pg_inherits") == [(True,)]
    project.run("upgrade", "head")
    assert rows(project, STATEMENTS["a partition"][2]) == [(1,)]
    assert "finishing the detachment of part" in caplog.text


def test_the_copies_of_an_interrupted_reindex_are_dropped(project: Project) -> None:
    with project.connection.transaction():
        project.connection.execute("CREATE INDEX ix ON t_a1 (id)")
    project.write("b2", "a1", block("op.execute('REINDEX TABLE CONCURRENTLY t_a1')"), table=False)
    with psycopg.connect(get_settings().url.libpq) as writer:
        writer.execute("INSERT INTO t_a1 VALUES (0)")
        project.refused("upgrade", "head", statement_timeout="500ms", lock_timeout="off")
    assert ("ix_ccnew", False) in rows(project, INDEXES)
    project.run("upgrade", "head")
    assert rows(project, INDEXES) == [("ix", True)]


def test_a_statement_in_the_revision_s_transaction_is_never_skipped(project: Project) -> None:
    with project.connection.transaction():
        project.connection.execute("CREATE TYPE mood AS ENUM ('good')")
    project.write("b2", "a1", "op.execute(\"ALTER TYPE mood ADD VALUE 'good'\")", table=False)
    assert 'enum label "good" already exists' in project.refused("upgrade", "head")


def test_without_the_right_to_compare_the_run_stops_and_says_so(project: Project) -> None:
    database = rows(project, "SELECT current_database()")[0][0]
    with project.connection.transaction():
        project.connection.execute("CREATE INDEX ix_t_a1_id ON t_a1 (id)")
        for statement in (
            "DROP ROLE IF EXISTS plain",
            f'REVOKE TEMPORARY ON DATABASE "{database}" FROM PUBLIC',
            "CREATE ROLE plain LOGIN",
            "GRANT ALL ON SCHEMA public TO plain",
            *(f"ALTER TABLE {table} OWNER TO plain" for table in ("t_a1", "alembic_version")),
            "ALTER TABLE alembic_version_history OWNER TO plain",
        ):
            project.connection.execute(statement.encode())
    project.write("b2", "a1", block(INDEX), table=False)
    url = make_url(get_settings().url.libpq).set(username="plain")
    os.environ["DATABASE_URL"] = url.render_as_string(hide_password=False)
    get_settings.cache_clear()
    try:
        message = project.refused("upgrade", "head")
    finally:
        with project.connection.transaction():
            project.connection.execute("REASSIGN OWNED BY plain TO CURRENT_USER")
            project.connection.execute("DROP OWNED BY plain")
            project.connection.execute("DROP ROLE plain")
    assert "the index ix_t_a1_id of t_a1 exists and can't be compared" in message
    assert "permission denied to create temporary tables" in message
