"""SIGINT and SIGTERM end every command at once, and leave nothing behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.stock import LIBRARY, StockProject
from tests.support import is_alive, wait_until

from alembic_safety.backup.clients import find_client
from alembic_safety.database.lock import VERSION_TABLE, lock_key
from alembic_safety.database.url import DatabaseURL

Database = psycopg.Connection[TupleRow]
Started = Callable[["subprocess.Popen[str]"], object]
DEADLINE = 60.0
"""Seconds after which a command hangs."""
SLEEP = 'op.execute("SELECT pg_sleep(60)")'
# Sleeps in every database but the original one.
SLOW_TABLE = """
    CREATE FUNCTION slow() RETURNS int LANGUAGE sql AS
        $$ SELECT 1 FROM pg_sleep(CASE current_database() WHEN '{}' THEN 0 ELSE 60 END) $$;
    CREATE TABLE slow (id int CHECK (slow() = id));
    INSERT INTO slow VALUES (1);
"""


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    def waits() -> object:
        assert process.poll() is None, process.communicate()
        return condition()

    wait_until(waits)


@dataclass
class Scene:
    """A project, and what a command waits for."""

    project: StockProject
    database: Database
    other: Database
    """A session whose open transaction holds locks."""
    environment: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    started: Started = bool
    """Whether the process of the command waits."""

    @property
    def temporary(self) -> Path:
        return Path(self.project.environment["TMPDIR"])

    def databases(self) -> set[str]:
        rows = self.database.execute("SELECT datname FROM pg_database")
        return {row[0] for row in rows}

    def runs(self, query: str) -> bool:
        """Return whether a session runs a statement that contains `query`."""
        found = self.database.execute(
            "SELECT FROM pg_stat_activity WHERE state = 'active' AND query ILIKE %s"
            " AND pid <> pg_backend_pid()",
            [f"%{query}%"],
        )
        return found.rowcount > 0


Prepare = Callable[[Scene], tuple[list[str], Started]]


def statement(scene: Scene) -> tuple[list[str], Started]:
    scene.project.revise("a1", None, SLEEP, "pass")
    return ["alembic", "upgrade", "head"], lambda _: scene.runs("pg_sleep")


def downgrade(scene: Scene) -> tuple[list[str], Started]:
    scene.project.revise("a1", None, "pass", SLEEP)
    scene.project.alembic("upgrade", "head")
    return ["alembic", "downgrade", "base"], lambda _: scene.runs("pg_sleep")


def concurrently(scene: Scene) -> tuple[list[str], Started]:
    scene.database.execute("CREATE TABLE t (id int)")
    index = 'op.execute("CREATE INDEX CONCURRENTLY ix ON t (id)")'
    block = f"with op.get_context().autocommit_block():\n        {index}"
    scene.project.revise("a1", None, block, "pass")
    scene.other.execute("INSERT INTO t VALUES (1)")
    return ["alembic", "upgrade", "head"], lambda _: scene.runs("CREATE INDEX CONCURRENTLY")


def lock(scene: Scene) -> tuple[list[str], Started]:
    scene.project.revise("a1", None, "pass", "pass")
    key = lock_key(scene.database.info.dbname, VERSION_TABLE)
    scene.other.execute("SELECT pg_advisory_lock(%s)", [key])
    return ["alembic", "upgrade", "head"], says("waiting for pid")


def pause(scene: Scene) -> tuple[list[str], Started]:
    scene.database.execute("CREATE TABLE t (id int)")
    scene.project.revise("a1", None, 'op.execute("ALTER TABLE t ADD x int")', "pass")
    scene.other.execute("INSERT INTO t VALUES (1)")
    scene.environment = {"MIGRATION_LOCK_TIMEOUT": "10ms"}
    return ["alembic", "upgrade", "head"], says("(5 of 10)")


def batches(scene: Scene) -> tuple[list[str], Started]:
    scene.database.execute("CREATE TABLE t (id int PRIMARY KEY, x int)")
    scene.database.execute("INSERT INTO t SELECT generate_series(1, 1000)")
    update = "UPDATE t SET x = 1 WHERE id BETWEEN :first AND :last"
    call = f'in_batches("{update}", table="t", size=1, pause=0.5)'
    body = f"from alembic_safety import in_batches\n    {call}"
    scene.project.revise("a1", None, body, "pass")
    count = "SELECT count(*) > 1 FROM t WHERE x = 1"
    return [
        "alembic",
        "upgrade",
        "head",
    ], lambda _: scene.database.execute(count).fetchone() == (True,)


def imports(scene: Scene, *command: str) -> tuple[list[str], Started]:
    marker = scene.project.path / "importing"
    scene.project.revise("a1", None, "pass", "pass")
    file = scene.project.revisions()[0]
    sleeping = f"import time\nopen({str(marker)!r}, 'w').close()\ntime.sleep(60)\n"
    file.write_text(sleeping + file.read_text(encoding="utf-8"), encoding="utf-8")
    return [*(command or ("alembic", "upgrade", "head"))], lambda _: marker.exists()


def dump(scene: Scene, *command: str) -> tuple[list[str], Started]:
    scene.database.execute("CREATE TABLE t (id int)")
    scene.project.revise("a1", None, "pass", "pass")
    scene.other.execute("LOCK TABLE t")
    scene.environment = {"MIGRATION_BACKUP": "full"}
    found = [*(command or ("alembic", "upgrade", "head"))]
    return found, lambda _: scene.runs("LOCK TABLE public.t IN ACCESS SHARE MODE")


def backup(scene: Scene) -> tuple[list[str], Started]:
    return dump(scene, "alembic_safety", "backup")


def restore(scene: Scene) -> tuple[list[str], Started]:
    scene.database.execute(SLOW_TABLE.format(scene.database.info.dbname).encode())
    taken = scene.project.safety("backup").stdout.strip()
    return ["alembic_safety", "restore", taken], lambda _: scene.runs("COPY public.slow")


def plan(scene: Scene) -> tuple[list[str], Started]:
    scene.project.revise("a1", None, SLEEP, "pass")
    return ["alembic_safety", "plan"], lambda _: scene.runs("pg_sleep")


def plan_dump(scene: Scene) -> tuple[list[str], Started]:
    """Plan with a pg_dump that hangs, in a child of its own."""
    scene.project.revise("a1", None, "pass", "pass")
    marker = scene.project.path / "dumping"
    real = find_client("pg_dump", None, server_major=18)
    exits = f"""case "$*" in *--version*) exec "{real}" "$@";; esac"""
    hangs = f"touch '{marker}'; sleep 60; exit 0"
    fake = scene.project.write("bin/pg_dump", f"#!/bin/sh\n{exits}\n{hangs}\n")
    fake.chmod(0o755)
    path = f"{fake.parent}{os.pathsep}{scene.project.environment['PATH']}"
    scene.environment = {"PATH": path}
    return ["alembic_safety", "plan"], lambda _: marker.exists()


def check(scene: Scene) -> tuple[list[str], Started]:
    scene.project.revise("a1", None, SLEEP, "pass")
    return ["alembic_safety", "check"], lambda _: scene.runs("pg_sleep")


def check_imports(scene: Scene) -> tuple[list[str], Started]:
    return imports(scene, "alembic_safety", "check")


def status_imports(scene: Scene) -> tuple[list[str], Started]:
    return imports(scene, "alembic_safety", "status")


def says(text: str) -> Started:
    def said(process: "subprocess.Popen[str]") -> bool:
        assert process.stderr is not None
        return text in process.stderr.readline()

    return said


SCENES: dict[str, Prepare] = {
    scene.__name__: scene
    for scene in (
        statement, downgrade, concurrently, lock, pause, batches, imports, dump, backup, restore,
        plan, plan_dump, check, check_imports, status_imports,
    )
}  # fmt: skip
ON_PSYCOPG = ("statement", "concurrently", "lock", "pause", "batches", "imports", "plan")


@pytest.fixture(
    params=[
        *(f"{name}-asyncpg" for name in SCENES),
        *(f"{name}-psycopg" for name in ON_PSYCOPG),
    ]
)
def scene(
    request: pytest.FixtureRequest, tmp_path: Path, database: Database, database_url: DatabaseURL
) -> Iterator[Scene]:
    name, driver = request.param.split("-")
    project = StockProject(tmp_path / "shop", "generic", database_url, driver)
    project.environment["TMPDIR"] = str(tmp_path / "temporary")
    (tmp_path / "temporary").mkdir()
    with psycopg.connect(database_url.libpq) as other:
        scene = Scene(project, database, other)
        scene.command, scene.started = SCENES[name](scene)
        yield scene
        other.rollback()


@contextmanager
def running(scene: Scene) -> Iterator["subprocess.Popen[str]"]:
    """Start the command of a scene, and wait until it waits."""
    with subprocess.Popen(
        [sys.executable, "-m", *scene.command],
        cwd=scene.project.path,
        env={**scene.project.environment, **scene.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for(lambda: scene.started(process), process)
            yield process
        except BaseException:
            process.kill()
            raise


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_and_leaves_nothing(scene: Scene, number: signal.Signals) -> None:
    databases, files = scene.databases(), scene.project.files()
    with running(scene) as process:
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + number, said
    assert said.splitlines()[-1].startswith("Interrupted."), said
    assert "Traceback" not in said
    assert not any(map(is_alive, children))
    assert scene.databases() == databases
    assert scene.project.files() - files <= {"importing", "dumping"}
    assert list(scene.temporary.iterdir()) == []
    scene.other.execute("SELECT pg_advisory_unlock_all()")
    key = lock_key(scene.database.info.dbname, VERSION_TABLE)
    taken = scene.database.execute("SELECT pg_try_advisory_lock(%s)", [key])
    assert taken.fetchone() == (True,)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["click", "alembic", "sqlalchemy"])
def test_a_signal_during_the_program_s_imports_ends_it(
    tmp_path: Path, module: str, number: signal.Signals
) -> None:
    slow = 'import time\nprint("importing", flush=True)\ntime.sleep(60)\n'
    (tmp_path / f"{module}.py").write_text(slow, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "-m", "alembic_safety", "status"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{LIBRARY / 'src'}"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=DEADLINE)
    assert (process.returncode, said) == (128 + number, "Interrupted.\n")


@pytest.mark.parametrize(
    "scene", ["plan-asyncpg", "check-psycopg", "restore-asyncpg"], indirect=True
)
def test_what_a_killed_command_leaves_is_named_and_removed(scene: Scene) -> None:
    safety, databases = scene.project.safety, scene.databases()
    assert "Nothing to clean up." in safety("cleanup").stdout
    with running(scene) as process:
        [left] = scene.databases() - databases
        # As long as its owner lives, a temporary database is nobody else's.
        assert "Left by" not in safety("status").stdout
        assert "Nothing to clean up." in safety("cleanup").stdout
        process.kill()
        process.wait()
    says = f"Left by killed commands: {left}; run `alembic-safety cleanup`."
    wait_until(lambda: says in safety("status").stdout)
    assert f"Removed: database {left}\n" in safety("cleanup").stdout
    assert scene.databases() == databases
    assert list(scene.temporary.iterdir()) == []
    assert "Left by" not in safety("status").stdout


@pytest.mark.parametrize("scene", ["plan-asyncpg"], indirect=True)
def test_the_next_plan_removes_what_a_killed_one_left(scene: Scene) -> None:
    databases = scene.databases()
    with running(scene) as process:
        process.kill()
        process.wait()
    wait_until(lambda: "Left by" in scene.project.safety("status").stdout)
    scene.project.revise("a1", None, "pass", "pass")
    scene.project.safety("plan")
    assert scene.databases() == databases


@pytest.mark.parametrize("scene", ["plan_dump-asyncpg"], indirect=True)
def test_the_dump_of_a_killed_plan_is_removed_when_pg_dump_has_ended(scene: Scene) -> None:
    with running(scene) as process:
        writers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
    assert "Nothing to clean up." in scene.project.safety("cleanup").stdout
    for writer in writers:
        writer.kill()
    [folder] = scene.temporary.iterdir()
    assert scene.project.safety("cleanup").stdout == f"Removed: {folder}\n"
    assert list(scene.temporary.iterdir()) == []
