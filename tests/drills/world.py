"""What drills are made in: a PostgreSQL of their own, revisions, and runners of plain Alembic."""

import importlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from types import MappingProxyType

import psycopg
from psycopg.rows import TupleRow

from core import embedded_postgres
from core.config import get_settings
from core.database_url import DatabaseURL
from core.migrations import batches, record
from core.project import ROOT

BASE = "base"
TIMEOUT = 120
"""Seconds that a runner has."""
_NOTHING: Mapping[str, str] = MappingProxyType({})


class DrillError(Exception):
    """Something that was promised did not hold."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything is done."""

    quick: bool

    def of(self, full: int, quick: int) -> int:
        """Return one of two numbers."""
        return quick if self.quick else full


def require(condition: object, message: str) -> None:
    """Raise DrillError with `message` unless `condition` holds."""
    if not condition:
        raise DrillError(message)


class Server:
    """A PostgreSQL in a folder; it is stopped, and gone, when the drills have ended."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / ".postgres"
        self.folder = folder
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.url = embedded_postgres.start("postgres", home=self.home)

    def stop(self) -> None:
        embedded_postgres.stop(home=self.home)

    def crash(self) -> None:
        """End the server as a crash would, without a checkpoint."""
        os.kill(self._pid(), signal.SIGQUIT)
        while (self.home / "data" / "postmaster.pid").exists():
            time.sleep(0.02)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Stop every process of the server where it stands; afterwards they go on."""
        psutil = importlib.import_module("psutil")  # the wheel of the server brings it
        postmaster = psutil.Process(self._pid())
        postmaster.suspend()  # first: it starts no others then
        processes = [postmaster, *postmaster.children(recursive=True)]
        try:
            for process in processes[1:]:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def _pid(self) -> int:
        return int((self.home / "data" / "postmaster.pid").read_text().split()[0])

    def start(self) -> None:
        embedded_postgres.start("postgres", home=self.home)

    def new_database(self, like: str | None = None) -> DatabaseURL:
        """Make a database and return its address."""
        with self._lock:
            name = f"drill{next(self._numbers)}"
            template = f" TEMPLATE {like}" if like else ""
            self.run(self.url, f"CREATE DATABASE {name}{template}")
        return self.url.with_database(name)

    def run(self, url: DatabaseURL, statements: str) -> None:
        """Run statements outside of a transaction."""
        with connect(url) as connection:
            connection.execute(statements.encode())

    def rows(self, url: DatabaseURL, query: str) -> list[TupleRow]:
        """Return what a query gives."""
        with connect(url) as connection:
            return connection.execute(query.encode()).fetchall()

    def dump(self, url: DatabaseURL, *, data: bool = False) -> str:
        """Return the database as SQL, without the tables that are about migrations."""
        own = [record.TABLE, batches.TABLE] + ([] if data else ["alembic_version"])
        command = [
            str(embedded_postgres.binaries() / "pg_dump"),
            url.libpq,
            *(f"--exclude-table={table}" for table in own),
            *([] if data else ["--schema-only"]),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        # A key that is another one each time.
        return re.sub(r"^\\(un)?restrict .*\n", "", done.stdout, flags=re.MULTILINE)

    def revision(self, url: DatabaseURL) -> str:
        """Return the revision that a database is at."""
        if self.rows(url, "SELECT to_regclass('alembic_version')") == [(None,)]:
            return BASE
        rows = self.rows(url, "SELECT version_num FROM alembic_version")
        return rows[0][0] if rows else BASE

    def wait_until(self, url: DatabaseURL, query: str) -> None:
        """Wait until a query that gives a boolean gives true."""
        deadline = time.monotonic() + TIMEOUT
        while self.rows(url, query) != [(True,)]:
            require(time.monotonic() < deadline, f"{url.database}: in vain waited for {query}")
            time.sleep(0.05)

    def wait_for_runners(self, url: DatabaseURL) -> None:
        """Wait until the server has noticed that killed runners are gone."""
        self.wait_until(
            url,
            "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            f" AND datname = '{url.database}'",
        )


def connect(url: DatabaseURL) -> "psycopg.Connection[TupleRow]":
    """Return a connection outside of a transaction."""
    return psycopg.connect(url.libpq, autocommit=True)


@contextmanager
def transaction(url: DatabaseURL, statement: str) -> Iterator["psycopg.Connection[TupleRow]"]:
    """Keep a transaction open, in which `statement` ran."""
    with psycopg.connect(url.libpq, application_name="drill") as connection:
        connection.execute(statement.encode())
        yield connection
        connection.rollback()


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A revision to write."""

    id: str
    parent: str | None
    upgrade: str
    downgrade: str = "pass"


class Scripts:
    """A folder of revisions, and this project's migrations/env.py, or a stock one, to run them."""

    def __init__(
        self,
        folder: Path,
        revisions: Iterable[Revision],
        *,
        env: str = "",
        beside: Iterable[Path] = (),
    ) -> None:
        self.folder = folder
        versions = folder / "versions"
        versions.mkdir(parents=True)
        location = ROOT / "migrations"
        if env:
            location = folder
            (folder / "env.py").write_text(env, encoding="utf-8")
        lines = [
            "[tool.alembic]",
            f"script_location = {_toml(location)}",
            f"prepend_sys_path = [{_toml(ROOT / 'src')}]",
            f"version_locations = [{', '.join(map(_toml, [versions, *beside]))}]",
        ]
        (folder / "pyproject.toml").write_text("\n".join(lines), encoding="utf-8")
        for revision in revisions:
            self.write(revision)

    def write(self, revision: Revision) -> None:
        """Write a revision's file."""
        text = (
            f'"""Revision {revision.id}"""\nimport sqlalchemy as sa\nfrom alembic import op\n'
            f"revision = {revision.id!r}\ndown_revision = {revision.parent!r}\n"
            f"def upgrade():\n{indent(revision.upgrade, '    ')}\n"
            f"def downgrade():\n{indent(revision.downgrade, '    ')}\n"
        )
        path = self.folder / "versions" / f"{revision.id}.py"
        path.write_text(text, encoding="utf-8")

    def begin(
        self, url: DatabaseURL, *arguments: str, environment: Mapping[str, str] = _NOTHING
    ) -> "subprocess.Popen[str]":
        """Start plain Alembic on a database."""
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "alembic",
                "-c",
                str(self.folder / "pyproject.toml"),
                *arguments,
            ],
            cwd=ROOT,
            env=runner_environment(url, environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def upgrade(self, url: DatabaseURL, environment: Mapping[str, str] = _NOTHING) -> str:
        """Bring a database to head; return what Alembic said.

        Raises:
            DrillError: it failed.
        """
        runner = self.begin(url, "upgrade", "head", environment=environment)
        _, said = runner.communicate(timeout=TIMEOUT)
        require(runner.returncode == 0, f"upgrade of {url.database} failed:\n{said}")
        return said


def runner_environment(url: DatabaseURL, more: Mapping[str, str] = _NOTHING) -> dict[str, str]:
    """Return the environment of a process that works on `url`."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MIGRATION_", "DATABASE_", "SQLALCHEMY_", "METRICS_", "UVICORN_"))
    }
    return {**ours, "ENVIRONMENT": "test", "DATABASE_URL": url.libpq, **more}


@contextmanager
def configured(url: DatabaseURL, **variables: str) -> Iterator[None]:
    """Make `url` the database of this process."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(
        {**runner_environment(url), **{k: v for k, v in before.items() if k == "PATH"}}
    )
    os.environ.update(variables)
    get_settings.cache_clear()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        get_settings.cache_clear()


def _toml(path: Path) -> str:
    return json.dumps(str(path).replace("%", "%%"))
