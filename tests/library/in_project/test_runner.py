"""Migrations that run at once, that meet locks, that build indexes; and their record."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy.pool import NullPool
from tests.inside.support import Project

from alembic_safety.database import history as record
from alembic_safety.database.lock import lock_key
from core.config import get_settings
from core.database import create_engine
from core.project import ROOT, load_project

HELD = """
    SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
    WHERE l.locktype = 'advisory' AND d.datname = current_database()
"""
PATIENT = {"lock_timeout": "100ms"}


@contextmanager
def another_session(
    *statements: str,
    seconds: float | None = None,
    until: Callable[[], bool] = lambda: True,
) -> Iterator[int]:
    """Run statements in a transaction of another session, which ends with the block or earlier.

    Earlier is after `seconds`, but not before `until` returns True.
    """
    url = get_settings().url.libpq
    with psycopg.connect(url, application_name="somebody") as connection:
        for statement in statements:
            connection.execute(statement.encode())

        def end() -> None:
            deadline = time.monotonic() + 30
            while not until() and time.monotonic() < deadline:
                time.sleep(0.05)
            connection.rollback()

        timer = threading.Timer(seconds or 0, end)
        if seconds is not None:
            timer.start()
        yield connection.info.backend_pid
        if seconds is not None:
            timer.join()


def tried_again(caplog: pytest.LogCaptureFixture) -> Callable[[], bool]:
    return lambda: "retrying" in caplog.text


def take_lock(project: Project) -> str:
    row = project.connection.execute("SELECT current_database()").fetchone()
    assert row is not None
    project.connection.commit()
    return f"SELECT pg_advisory_xact_lock({lock_key(row[0], 'alembic_version')})"


def read_record(project: Project) -> list[record.Entry]:
    """Return the rows of the record."""

    async def read() -> list[record.Entry]:
        engine = create_engine(get_settings().url, poolclass=NullPool)
        async with engine.connect() as connection:
            return await connection.run_sync(record.read)

    return asyncio.run(read())


def entries(project: Project) -> list[tuple[str, str]]:
    """Return revision and direction of each row of the record."""
    return [
        (entry.revision, entry.direction + (" failed" if entry.error else ""))
        for entry in read_record(project)
    ]


def one(project: Project, query: str) -> Any:
    with project.connection.transaction():
        row = project.connection.execute(query.encode()).fetchone()
    return row[0] if row else None


def test_who_waits_says_for_whom_and_gives_up(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.write("a1")
    with another_session(take_lock(project)) as pid:
        message = project.refused("upgrade", "head", lock_wait="300ms")
    assert f"pid {pid} (somebody, since " in message
    assert "Nothing was changed" in message
    assert f"waiting for pid {pid} (somebody" in caplog.text
    assert project.tables() == set()


def test_who_waited_goes_on_when_the_other_has_ended(project: Project) -> None:
    project.write("a1")
    with another_session(take_lock(project), seconds=0.4):
        project.run("upgrade", "head", lock_wait="20s")
    assert project.tables() == {"t_a1"}
    assert one(project, HELD) == 0


def test_nothing_is_reverted_but_what_was_there_before_the_wait(project: Project) -> None:
    project.write("a1")
    project.write("b2", "a1")
    project.run("upgrade", "head")
    with another_session(take_lock(project), seconds=1.0):

        def revert_meanwhile() -> None:
            with psycopg.connect(get_settings().url.libpq) as connection:
                connection.execute("UPDATE alembic_version SET version_num = 'a1'")

        timer = threading.Timer(0.7, revert_meanwhile)
        timer.start()
        message = project.refused("downgrade", "-1")
        timer.join()
    assert "other revisions would be reverted now. Nothing was changed" in message
    assert project.tables() == {"t_a1", "t_b2"}


@pytest.mark.parametrize("concurrently", [False, True])
def test_of_runners_at_once_one_applies_and_all_succeed(
    project: Project, *, concurrently: bool
) -> None:
    index = "CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_b2 ON t_a1 (id)"
    built = f"with op.get_context().autocommit_block(): op.execute('{index}')"
    project.write("a1")
    project.write("b2", "a1", built if concurrently else "pass")
    project.write("c3", "b2")
    program = (
        "from alembic import command; from alembic_safety.config import make_config; "
        "from core.project import ROOT; "
        "config = make_config(ROOT); config.set_main_option('path_separator', 'newline'); "
        f"config.set_main_option('version_locations', {str(project.folder)!r}); "
        "command.upgrade(config, 'head')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    runners = [
        subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    for runner in runners:
        _, error = runner.communicate(timeout=60)
        assert runner.returncode == 0, error.decode()
    assert entries(project) == [("a1", "upgrade"), ("b2", "upgrade"), ("c3", "upgrade")]
    assert one(project, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0


def test_a_table_that_is_held_is_tried_again(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    project.write("b2", "a1", "op.add_column('t_a1', sa.Column('name', sa.Text))")
    with another_session("SELECT FROM t_a1", seconds=0, until=tried_again(caplog)) as pid:
        project.run("upgrade", "head", lock_timeout="400ms")
    assert "t_b2" in project.tables()
    assert (
        f"a table is locked by pid {pid} (somebody, idle in transaction, its transaction "
        in caplog.text
    )
    assert "SELECT FROM t_a1" in caplog.text
    assert entries(project) == [("a1", "upgrade"), ("b2", "upgrade")]


def test_when_tries_are_used_up_what_was_committed_stays(project: Project) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    project.write("b2", "a1")
    project.write("c3", "b2", "op.add_column('t_a1', sa.Column('name', sa.Text))")
    with another_session("SELECT FROM t_a1"):
        message = project.refused("upgrade", "head", lock_retries=1, **PATIENT)
    assert "in each of 2 attempts" in message
    assert "pg_terminate_backend" in message
    assert project.tables() == {"t_a1", "t_b2"}
    assert entries(project) == [
        ("a1", "upgrade"),
        ("b2", "upgrade"),
        ("c3", "upgrade failed"),
    ]


def test_a_relative_target_is_not_counted_anew_by_another_try(project: Project) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    project.write("b2", "a1")
    project.write("c3", "b2", "op.add_column('t_a1', sa.Column('name', sa.Text))")
    project.write("d4", "c3")
    with another_session("SELECT FROM t_a1", seconds=0.5):
        project.run("upgrade", "+2", **PATIENT)
    assert one(project, "SELECT version_num FROM alembic_version") == "c3"


def test_a_revision_s_own_timeouts_are_its_own(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    show = "print('lock_timeout', op.get_bind().exec_driver_sql('SHOW lock_timeout').scalar())"
    project.write("a1", None, show, module="lock_timeout = '7s'\nstatement_timeout = '1min'")
    project.write("b2", "a1", show)
    project.run("upgrade", "head", lock_timeout="2s")
    assert capfd.readouterr().out.splitlines() == ["lock_timeout 7s", "lock_timeout 2s"]


@pytest.mark.parametrize(
    ("declared", "expected"),
    [("lock_timeout = 7", "a duration such as"), ("statement_timeout = '600h'", "at most 596h")],
)
def test_a_wrong_timeout_of_any_revision_is_named_before_the_first_one_runs(
    project: Project, declared: str, expected: str
) -> None:
    project.write("a1")
    project.write("b2", "a1", module=declared)
    message = project.refused("upgrade", "head")
    name = declared.partition(" ")[0]
    assert f"b2.py: {name}: expected {expected}" in message
    assert project.tables() == set()


BUILD = "with op.get_context().autocommit_block(): op.execute('{}')".format
UNIQUE = "CREATE UNIQUE INDEX CONCURRENTLY {} uq_b2 ON t_a1 (id)".format


def test_timeouts_that_a_revision_sets_by_sql_end_with_it(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    show = (
        "print(*(op.get_bind().exec_driver_sql(f'SHOW {name}').scalar()"
        " for name in ('lock_timeout', 'statement_timeout')))"
    )
    project.write("a1", None, f"{show}\n    op.execute('SET lock_timeout = 0')")
    project.write("b2", "a1", f"{show}\n    op.execute('SET LOCAL statement_timeout = 5000')")
    project.write("c3", "b2", show, module="lock_timeout = '7s'")
    committed = BUILD("SET statement_timeout = 9000")
    project.write("d4", "c3", f"{show}\n    {committed}")
    project.write("e5", "d4", show)
    project.run("upgrade", "head", lock_timeout="2s", statement_timeout="1min")
    shown = capfd.readouterr().out.splitlines()
    assert shown == ["2s 1min", "2s 1min", "7s 1min", "2s 1min", "2s 1min"]


@pytest.mark.parametrize("guard", ["", "IF NOT EXISTS"])
def test_an_invalid_index_of_an_earlier_try_is_dropped_and_never_stamped(
    project: Project, caplog: pytest.LogCaptureFixture, guard: str
) -> None:
    project.write("a1", None, "op.execute('INSERT INTO t_a1 VALUES (1), (1), (2)')")
    project.write("b2", "a1", BUILD(UNIQUE(guard)), table=False)
    message = project.refused("upgrade", "head")
    assert "could not create unique index" in message
    assert one(project, "SELECT version_num FROM alembic_version") == "a1"
    assert (
        one(project, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'uq_b2'::regclass")
        is False
    )
    # Still wrong: it must not be skipped over and stamped.
    assert "could not create unique index" in project.refused("upgrade", "head")
    assert "dropping the invalid index uq_b2" in caplog.text
    with project.connection.transaction():
        project.connection.execute("DELETE FROM t_a1 WHERE id = 1")
    project.run("upgrade", "head")
    assert one(project, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'uq_b2'::regclass")


IS_VALID = "SELECT bool_and(indisvalid) FROM pg_index WHERE indexrelid = to_regclass('uq_b2')"


def test_an_index_whose_building_met_a_lock_timeout_is_built_anew(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    project.write("b2", "a1", BUILD(UNIQUE("IF NOT EXISTS")), table=False)
    statement = "INSERT INTO t_a1 VALUES (1)"
    with another_session(statement, seconds=0, until=tried_again(caplog)):
        project.run("upgrade", "head", lock_timeout="300ms")
    assert "retrying" in caplog.text
    assert "dropping the invalid index uq_b2" in caplog.text
    assert one(project, IS_VALID) is True


def test_an_index_whose_building_ran_out_of_time_is_built_anew(project: Project) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    project.write("b2", "a1", BUILD(UNIQUE("IF NOT EXISTS")), table=False)
    with another_session("INSERT INTO t_a1 VALUES (1)"):
        message = project.refused("upgrade", "head", statement_timeout="300ms", lock_timeout="off")
    assert "canceling statement due to statement timeout" in message
    assert one(project, IS_VALID) is False
    assert one(project, "SELECT version_num FROM alembic_version") == "a1"
    project.run("upgrade", "head")
    assert one(project, IS_VALID) is True


def test_the_lock_is_held_through_an_autocommit_block(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    held = f"print(op.get_bind().exec_driver_sql({HELD!r}).scalar())"
    project.write("a1", None, BUILD("SELECT 1") + f"; {held}\n    {held}")
    project.write("b2", "a1", held)
    project.run("upgrade", "head")
    assert capfd.readouterr().out.split() == ["1", "1", "1"]
    assert one(project, HELD) == 0


def test_timeouts_outlive_the_rollback_of_a_try(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    fails = (
        "print('lock_timeout', op.get_bind().exec_driver_sql('SHOW lock_timeout').scalar())\n"
        "    tries.append(1)\n    if len(tries) == 1: op.execute("
        "\"DO $$ BEGIN RAISE 'held' USING ERRCODE = '55P03'; END $$\")"
    )
    project.write("a1", None, fails, module="tries: list[int] = []")
    project.run("upgrade", "head", lock_timeout="1234ms")
    assert capfd.readouterr().out.splitlines() == ["lock_timeout 1234ms"] * 2


def test_another_invalid_index_is_reported_and_left(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.write("a1", None, "op.execute('INSERT INTO t_a1 VALUES (1), (1)')")
    project.run("upgrade", "head")
    project.connection.autocommit = True
    with pytest.raises(psycopg.errors.UniqueViolation):
        project.connection.execute("CREATE UNIQUE INDEX CONCURRENTLY mine ON t_a1 (id)")
    project.connection.autocommit = False
    project.write("b2", "a1")
    project.run("upgrade", "head")
    assert "invalid indexes, which PostgreSQL maintains but does not use: mine" in caplog.text
    assert (
        one(project, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'mine'::regclass") is False
    )


def test_the_record_says_what_was_done(project: Project) -> None:
    project.write("a1")
    project.write("b2", "a1", "raise RuntimeError('halfway')")
    project.refused("upgrade", "head")
    project.run("downgrade", "base")
    project.run("stamp", "a1")
    assert entries(project) == [
        ("a1", "upgrade"),
        ("b2", "upgrade failed"),
        ("a1", "downgrade"),
        ("a1", "stamp"),
    ]
    row = one(project, "SELECT to_jsonb(h) FROM alembic_version_history h LIMIT 1")
    assert row["who"]
    assert row["host"]
    assert row["code_version"] == load_project().version


def test_a_failure_is_recorded_with_its_reason(project: Project) -> None:
    project.write("a1", None, "op.execute(\"INSERT INTO nowhere VALUES ('secret')\")")
    project.refused("upgrade", "head")
    [entry] = read_record(project)
    assert entry.error == 'relation "nowhere" does not exist'
    assert (entry.revision, entry.direction) == ("a1", "upgrade")
    assert project.tables() == set()


def test_a_session_that_was_ended_is_a_failure_too(project: Project) -> None:
    project.write("a1", None, 'op.execute("SELECT pg_terminate_backend(pg_backend_pid())")')
    project.refused("upgrade", "head")
    assert entries(project) == [("a1", "upgrade failed")]


def test_a_record_of_an_earlier_version_of_the_template_goes_on(project: Project) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    with project.connection.transaction():
        project.connection.execute("ALTER TABLE alembic_version_history DROP COLUMN error")
    assert entries(project) == [("a1", "upgrade")]
    project.write("b2", "a1", "raise RuntimeError('halfway')")
    project.refused("upgrade", "head")
    assert entries(project) == [("a1", "upgrade"), ("b2", "upgrade failed")]


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE alembic_version_history DROP COLUMN error",
        "ALTER TABLE Alembic_Version_History RENAME TO something_else",
    ],
)
def test_a_revision_may_alter_the_record_s_table(project: Project, statement: str) -> None:
    project.write("a1")
    project.write("b2", "a1", f"op.execute('{statement}')")
    project.write("c3", "b2")
    project.run("upgrade", "head")
    assert entries(project)[-2:] == [("b2", "upgrade"), ("c3", "upgrade")]


HELD_AT_COMMIT = """
    tries.append(1)
    if len(tries) > 1:
        return
    op.execute(
        "CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE 'held' USING ERRCODE = '55P03'; END $$"
    )
    op.execute(
        "CREATE CONSTRAINT TRIGGER held AFTER INSERT ON t_a1 DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION held()"
    )
    op.execute("INSERT INTO t_a1 VALUES (1)")
"""


def test_a_try_that_fails_at_its_commit_takes_the_record_s_table_along(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.write("a1", None, HELD_AT_COMMIT, module="tries: list[int] = []")
    project.write("b2", "a1")
    project.run("upgrade", "head")
    assert tried_again(caplog)()
    assert entries(project) == [("a1", "upgrade"), ("b2", "upgrade")]


def test_a_table_can_be_read_again_after_it_was_altered(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    """A statement that was kept prepared would be refused: its result has other columns now."""
    read = "print(*op.get_bind().execute(sa.text('SELECT * FROM t_a1')).keys())"
    alter = "op.execute('ALTER TABLE t_a1 ADD COLUMN name text')"
    project.write("a1", None, f"{read}\n    {alter}\n    {read}")
    project.run("upgrade", "head")
    assert capfd.readouterr().out.splitlines() == ["id", "id name"]


def test_a_caller_s_rollback_takes_the_record_along(project: Project) -> None:
    project.write("a1")

    async def upgrade() -> None:
        engine = create_engine(get_settings().url, poolclass=NullPool)
        async with engine.connect() as connection:
            transaction = await connection.begin()
            await connection.run_sync(lambda sync: project.run("upgrade", "head", connection=sync))
            await transaction.rollback()

    asyncio.run(upgrade())
    assert project.tables() == set()
    assert entries(project) == []


def test_a_caller_s_timeouts_stay_as_they_are(project: Project) -> None:
    project.write("a1", module="lock_timeout = '7s'")

    async def upgrade() -> str:
        engine = create_engine(
            get_settings().url, poolclass=NullPool, server_settings={"lock_timeout": "5s"}
        )
        async with engine.connect() as connection:
            await connection.run_sync(lambda sync: project.run("upgrade", "head", connection=sync))
            return str((await connection.exec_driver_sql("SHOW lock_timeout")).scalar())

    assert asyncio.run(upgrade()) == "5s"
    assert project.tables() == {"t_a1"}


def test_requests_never_wait_long_behind_a_migration(project: Project) -> None:
    """Somebody holds a table, a revision wants it: who comes after waits a lock timeout at most."""
    project.write("a1")
    project.run("upgrade", "head")
    project.write("b2", "a1", "op.add_column('t_a1', sa.Column('name', sa.Text))")
    waits: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        with psycopg.connect(get_settings().url.libpq, autocommit=True) as connection:
            while not stop.is_set():
                started = time.monotonic()
                connection.execute("SELECT count(*) FROM t_a1")
                waits.append(time.monotonic() - started)
                time.sleep(0.02)

    asking = threading.Thread(target=ask)
    with another_session("SELECT FROM t_a1"):
        asking.start()
        project.refused("upgrade", "head", lock_retries=2, lock_timeout="300ms")
        stop.set()
        asking.join()
    assert max(waits) < 1.3
    assert max(waits) > 0.1, "the migration never stood in anybody's way: nothing was tested"
