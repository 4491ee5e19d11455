"""The surroundings of a drill: a rendered project, a PostgreSQL server, and runners of plain Alembic."""

import itertools
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

import psutil  # type: ignore[import-untyped]
import psycopg
from psycopg.rows import TupleRow
from sqlalchemy import URL, make_url
from tests.support import NOTHING, Env, Project

from alembic_safety import embedded

BASE = "base"
LOCK_TIMEOUT = 2.0
"""Seconds: `lock_timeout` in the rendered pyproject.toml."""
TIMEOUT = 120
"""Seconds that a runner may take."""
MIGRATION_TABLES = ("alembic_version_history", "alembic_backfill")


class DrillError(Exception):
    """A promise was not kept."""


def require(condition: object, message: str) -> None:
    """Raise DrillError with `message` unless `condition` is true."""
    if not condition:
        raise DrillError(message)


class Server:
    """A PostgreSQL server of the drill's own."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / ".postgres"
        self.binaries = embedded.binaries()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.url = make_url(embedded.start(self.home, "postgres"))

    def start(self) -> None:
        embedded.start(self.home, "postgres")

    def stop(self) -> None:
        embedded.stop(self.home)

    def crash(self) -> None:
        """Stop the server without a checkpoint."""
        os.kill(self._pid(), signal.SIGQUIT)
        while (self.home / "data" / "postmaster.pid").exists():
            time.sleep(0.02)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Suspend every process of the server until the block ends."""
        postmaster = psutil.Process(self._pid())
        postmaster.suspend()  # first, so that it starts no others
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

    def new_database(self, like: str | None = None) -> URL:
        """Create a database, from the template database `like` if given, and return its URL."""
        with self._lock:
            name = f"drill{next(self._numbers)}"
            template = f" TEMPLATE {like}" if like else ""
            self.run(self.url, f"CREATE DATABASE {name}{template}")
        return self.url.set(database=name)

    def run(self, url: URL, statements: str) -> None:
        """Run statements outside a transaction."""
        with connect(url) as connection:
            connection.execute(statements.encode())

    def rows(self, url: URL, query: str) -> list[TupleRow]:
        """Return the rows of a query."""
        with connect(url) as connection:
            return connection.execute(query.encode()).fetchall()

    def dump(self, url: URL, *, data: bool = False) -> str:
        """Return the database as SQL, without the tables that migrations keep for themselves."""
        excluded = [*MIGRATION_TABLES, *([] if data else ["alembic_version"])]
        command = [
            str(self.binaries / "pg_dump"),
            libpq(url),
            *(f"--exclude-table={table}" for table in excluded),
            *([] if data else ["--schema-only"]),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        # \restrict has a random key.
        return re.sub(r"^\\(un)?restrict .*\n", "", done.stdout, flags=re.MULTILINE)

    def revision(self, url: URL) -> str:
        """Return the current revision of a database."""
        if self.rows(url, "SELECT to_regclass('alembic_version')") == [(None,)]:
            return BASE
        rows = self.rows(url, "SELECT version_num FROM alembic_version")
        return rows[0][0] if rows else BASE

    def wait_until(self, url: URL, query: str) -> None:
        """Wait until a query returns true."""
        deadline = time.monotonic() + TIMEOUT
        while self.rows(url, query) != [(True,)]:
            require(time.monotonic() < deadline, f"{url.database}: never true: {query}")
            time.sleep(0.05)

    def wait_for_runners(self, url: URL) -> None:
        """Wait until the server has ended the sessions of killed runners."""
        self.wait_until(
            url,
            "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            f" AND datname = '{url.database}'",
        )


def libpq(url: URL) -> str:
    """Return the URL with its password."""
    return url.render_as_string(hide_password=False)


def connect(url: URL) -> "psycopg.Connection[TupleRow]":
    """Return a connection in autocommit mode."""
    return psycopg.connect(libpq(url), autocommit=True)


@contextmanager
def transaction(url: URL, statement: str) -> Iterator["psycopg.Connection[TupleRow]"]:
    """Run `statement` in a transaction that stays open until the block ends."""
    with psycopg.connect(libpq(url), application_name="drill") as connection:
        connection.execute(statement.encode())
        yield connection
        connection.rollback()


@dataclass(frozen=True, kw_only=True)
class World:
    """A rendered project and a server; `quick` asks for fewer rounds."""

    project: Project
    server: Server
    folder: Path
    quick: bool

    def of(self, full: int, quick: int) -> int:
        """Return one of two numbers, by `quick`."""
        return quick if self.quick else full

    @property
    def python(self) -> str:
        """The interpreter of the project's environment."""
        environment = self.project.environment["UV_PROJECT_ENVIRONMENT"]
        return str(Path(environment) / "bin" / "python")

    def environment(self, url: URL, more: Env = NOTHING) -> dict[str, str]:
        """Return the environment of a process of the project that uses the database `url`."""
        foreign = ("DATABASE_", "SQLALCHEMY_", "METRICS_", "UVICORN_")
        ours = {
            name: value
            for name, value in self.project.environment.items()
            if not name.startswith(foreign)
        }
        return {**ours, "ENVIRONMENT": "test", "DATABASE_URL": libpq(url), **more}


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A revision to write."""

    id: str
    parent: str | None
    upgrade: str
    downgrade: str = "pass"


class Scripts:
    """A folder of revisions, run by the project's migrations/env.py or by `env`."""

    def __init__(
        self,
        world: World,
        name: str,
        revisions: Iterable[Revision],
        *,
        env: str = "",
        beside: Iterable[Path] = (),
    ) -> None:
        self.world = world
        self.folder = world.folder / name
        versions = self.folder / "versions"
        versions.mkdir(parents=True)
        location = world.project.path / "migrations"
        if env:
            location = self.folder
            (self.folder / "env.py").write_text(env, encoding="utf-8")
        lines = [
            "[tool.alembic]",
            f"script_location = {_toml(location)}",
            f"prepend_sys_path = [{_toml(world.project.path / 'src')}]",
            f"version_locations = [{', '.join(map(_toml, [versions, *beside]))}]",
        ]
        self.config = self.folder / "pyproject.toml"
        self.config.write_text("\n".join(lines), encoding="utf-8")
        for revision in revisions:
            self.write(revision)

    @property
    def alembic(self) -> list[str]:
        """The command of plain Alembic for these revisions."""
        return [self.world.python, "-m", "alembic", "-c", str(self.config)]

    def write(self, revision: Revision) -> None:
        """Write the file of a revision."""
        text = (
            f'"""Revision {revision.id}"""\nimport sqlalchemy as sa\nfrom alembic import op\n'
            f"revision = {revision.id!r}\ndown_revision = {revision.parent!r}\n"
            f"def upgrade():\n{indent(revision.upgrade, '    ')}\n"
            f"def downgrade():\n{indent(revision.downgrade, '    ')}\n"
        )
        path = self.folder / "versions" / f"{revision.id}.py"
        path.write_text(text, encoding="utf-8")

    def begin(
        self, url: URL, *arguments: str, environment: Mapping[str, str] = NOTHING
    ) -> "subprocess.Popen[str]":
        """Start plain Alembic on a database."""
        return subprocess.Popen(
            [*self.alembic, *arguments],
            cwd=self.world.project.path,
            env=self.world.environment(url, environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def upgrade(self, url: URL) -> str:
        """Upgrade a database to head and return what Alembic printed.

        Raises:
            DrillError: the upgrade failed.
        """
        runner = self.begin(url, "upgrade", "head")
        _, said = runner.communicate(timeout=TIMEOUT)
        require(runner.returncode == 0, f"upgrade of {url.database} failed:\n{said}")
        return said


def _toml(path: Path) -> str:
    return json.dumps(str(path).replace("%", "%%"))
