"""Migrated databases for test suites."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.inside.support import Project

from alembic_safety.database.url import DatabaseURL
from alembic_safety.testing import MigratedDatabases

Connection = psycopg.Connection[TupleRow]
PREFIX = f"kept_{os.getpid()}_"
FIRST, SECOND = (f"{PREFIX}migrated_{digit * 12}" for digit in "12")


@pytest.fixture
def connections(server_url: DatabaseURL) -> Iterator[tuple[Connection, Connection]]:
    """Those of two runs."""
    with (
        psycopg.connect(server_url.libpq, autocommit=True) as one,
        psycopg.connect(server_url.libpq, autocommit=True) as other,
    ):
        yield one, other
        MigratedDatabases(one, prefix=PREFIX, keep=0).drop_unused()


def migrated_database(
    connection: Connection, name: str, migrate: Callable[[str], None], *, keep: int
) -> AbstractContextManager[None]:
    return MigratedDatabases(connection, prefix=PREFIX, keep=keep).use(name, migrate)


@pytest.fixture
def connection(connections: tuple[Connection, Connection]) -> Connection:
    return connections[0]


class Migrations:
    """Make a table, and count how often."""

    def __init__(self, server: DatabaseURL) -> None:
        self.server = server
        self.runs = 0

    def __call__(self, database: str) -> None:
        with psycopg.connect(self.server.with_database(database).libpq) as connection:
            connection.execute("CREATE TABLE migrated ()")
        self.runs += 1


@pytest.fixture
def migrations(server_url: DatabaseURL) -> Migrations:
    return Migrations(server_url)


def databases(connection: Connection) -> set[str]:
    query = "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
    return {row[0] for row in connection.execute(query, [f"{PREFIX}migrated_"])}


def tables(server: DatabaseURL, database: str) -> list[str]:
    query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    with psycopg.connect(server.with_database(database).libpq) as connection:
        return [row[0] for row in connection.execute(query)]


def test_a_second_run_finds_it(
    connection: Connection, server_url: DatabaseURL, migrations: Migrations
) -> None:
    for _ in range(2):
        with migrated_database(connection, FIRST, migrations, keep=1):
            assert tables(server_url, FIRST) == ["migrated"]
    assert databases(connection) == {FIRST}
    assert migrations.runs == 1


def test_of_two_runs_at_once_one_makes_it_and_the_last_one_drops_it(
    connections: tuple[Connection, Connection], server_url: DatabaseURL, migrations: Migrations
) -> None:
    begun, both = threading.Event(), threading.Barrier(2, timeout=60)

    def migrate(database: str) -> None:
        begun.set()
        migrations(database)

    def run(connection: Connection) -> None:
        with migrated_database(connection, FIRST, migrate, keep=0):
            both.wait()
            assert tables(server_url, FIRST) == ["migrated"]
            both.wait()

    with ThreadPoolExecutor() as threads:
        first = threads.submit(run, connections[0])
        assert begun.wait(60)
        second = threads.submit(run, connections[1])
        first.result()
        second.result()
    assert migrations.runs == 1
    assert databases(connections[0]) == set()


def test_what_another_run_uses_is_not_dropped(
    connections: tuple[Connection, Connection], migrations: Migrations
) -> None:
    one, other = connections
    with migrated_database(one, FIRST, migrations, keep=1):
        with migrated_database(other, SECOND, migrations, keep=1):
            pass
        with migrated_database(other, FIRST, migrations, keep=0):
            pass
        assert databases(one) == {FIRST}
    assert migrations.runs == 2


def test_the_newest_stay(connection: Connection, migrations: Migrations) -> None:
    for name in (FIRST, SECOND):
        with migrated_database(connection, name, migrations, keep=1):
            pass
    assert databases(connection) == {SECOND}


def test_what_a_killed_run_left_is_not_used_and_goes(
    connection: Connection, server_url: DatabaseURL, migrations: Migrations
) -> None:
    for name in (FIRST, SECOND):
        connection.execute(f'CREATE DATABASE "{name}_new"'.encode())
        migrations(f"{name}_new")
    with migrated_database(connection, FIRST, migrations, keep=1):
        assert tables(server_url, FIRST) == ["migrated"]
    assert databases(connection) == {FIRST}
    assert migrations.runs == 3


def test_of_migrations_that_fail_nothing_is_left(
    connection: Connection, migrations: Migrations
) -> None:
    def fail(database: str) -> None:
        migrations(database)
        raise LookupError(database)

    with (
        pytest.raises(LookupError, match=FIRST),
        migrated_database(connection, FIRST, fail, keep=1),
    ):
        pass
    assert databases(connection) == set()
    with migrated_database(connection, FIRST, migrations, keep=1):
        pass


def test_databases_of_processes_that_ended_are_dropped(connection: Connection) -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    names = [f"abandoned_{pid}_shared" for pid in (ended.pid, os.getpid())]
    databases = MigratedDatabases(connection, prefix="abandoned_", keep=0)
    for name in names:
        connection.execute(f'CREATE DATABASE "{name}" IS_TEMPLATE true'.encode())
    try:
        databases.drop_abandoned()
        query = "SELECT datname FROM pg_database WHERE starts_with(datname, 'abandoned_')"
        assert [row[0] for row in connection.execute(query)] == names[1:]
    finally:
        connection.execute(f'ALTER DATABASE "{names[1]}" IS_TEMPLATE false'.encode())
        connection.execute(f'DROP DATABASE "{names[1]}"'.encode())


SRC = {
    "core/config.py": "",
    "core/models.py": "",
    "core/names.py": "from . import tables",
    "core/tables.py": "from apps.users import (\n    models,\n)",
    "apps/users/models.py": "",
    "apps/users/tables.sql": "",
    "apps/orders/models.py": "",
}


class Sources:
    """Revisions and a folder `src` of the test's own, and the name that they lead to."""

    def __init__(self, folder: Path, connection: Connection) -> None:
        self.src = folder / "src"
        for name, text in SRC.items():
            (self.src / name).parent.mkdir(parents=True, exist_ok=True)
            (self.src / name).write_text(text, encoding="utf-8")
        self.versions = folder / "versions"
        self.versions.mkdir()
        self.project = Project(self.versions, connection)
        self.project.write("a1")

    def name(self) -> str:
        databases = MigratedDatabases(self.project.connection, prefix=PREFIX, keep=0)
        return databases.name_for(self.project.config(), src=self.src)


@pytest.fixture
def sources(tmp_path: Path, connection: Connection) -> Sources:
    return Sources(tmp_path, connection)


def test_the_same_files_have_the_same_name(sources: Sources) -> None:
    before = sources.name()
    os.utime(sources.versions / "a1.py", (0, 0))
    (sources.versions / "__pycache__").mkdir()
    (sources.versions / "__pycache__" / "a1.pyc").touch()
    (sources.versions / ".#a1.py").symlink_to("nowhere")  # Emacs marks a file so that it edits
    assert sources.name() == before
    assert len(f"{before}_new") < 64


@pytest.mark.parametrize("file", ["versions/a1.py", "versions/data.csv", "src/core/config.py"])
def test_what_migrations_are_made_of_changes_the_name(sources: Sources, file: str) -> None:
    before = sources.name()
    with (sources.versions.parent / file).open("a", encoding="utf-8") as opened:
        opened.write("# changed\n")
    assert sources.name() != before


@pytest.mark.parametrize(
    ("module", "matters"),
    [
        ("from apps.users.models import User", True),
        ("import json, apps.users", True),
        ("import apps", True),
        ("from core.names import NAMES", True),
        ("from core import models", True),
        ("from core.models import Base, import_models", True),
        ('users = importlib.import_module("apps.users.models")', True),
        ("from core.config import get_settings", False),
        ("from apps.orders.models import Order", False),
        ("# apps", False),
    ],
)
@pytest.mark.parametrize("file", ["models.py", "tables.sql"])
def test_apps_matter_where_a_revision_imports_one(
    sources: Sources, module: str, file: str, *, matters: bool
) -> None:
    sources.project.write("b2", "a1", module=module)
    before = sources.name()
    (sources.src / "apps" / "users" / file).write_text("changed\n", encoding="utf-8")
    assert (sources.name() != before) is matters
