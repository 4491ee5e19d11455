"""The databases of the tests.

All of them are on the server of the settings (the project's own, or `DATABASE_URL`'s), in
databases made for this run and dropped after it; the configured database is never touched.
They are copies of one that the migrations made; see `tests/migrated.py` for how long that one stays:

- `session` and `client` work in one copy that all tests share; what a test does there is
  rolled back. This is the one to use: it costs a few milliseconds.
- `database_url` and `live_client` have a copy of their own, where commits are real.
- `empty_database_url` is a database in which nothing ever ran.
"""

import asyncio
import gc
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import httpx
import psycopg
import pytest
from alembic.util import CommandError
from fastapi import FastAPI
from psycopg.rows import TupleRow
from pytest_postgresql import factories
from pytest_postgresql.executors import NoopExecutor
from pytest_postgresql.janitor import DatabaseJanitor
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
)
from tests.migrated import KEPT, PREFIX, drop_unused, migrated_database, migrated_name
from tests.support import make_client, run_alembic, started_app

from alembic_safety.config import make_config
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import EmbeddedPostgresError
from core.apps import AppImportError
from core.config import Environment, SettingsError, get_settings
from core.database import create_engine, create_read_sessionmaker
from core.models import import_models
from core.project import ROOT
from main import create_app

NAME = f"{PREFIX}{os.getpid()}"
SERVER = pytest.StashKey[DatabaseURL]()
OWN_SERVER = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Find the server, and keep the tests away from the configured database."""
    try:
        settings = get_settings()
        if settings.environment is Environment.PROD:
            pytest.exit("the tests do not run with ENVIRONMENT=prod", returncode=2)
        server = settings.url.with_database("postgres")
        with psycopg.connect(server.libpq, autocommit=True) as connection:
            if not hasattr(config, "workerinput"):
                if settings.uses_own_server:
                    _drop_leftovers(connection)
                if config.option.postgresql_drop_test_database:
                    drop_unused(connection, keep=0)
            for name in ("host", "port", "user", "password"):
                value = str(getattr(connection.info, name))
                setattr(config.option, f"postgresql_{name}", value)
    except (EmbeddedPostgresError, SettingsError, psycopg.OperationalError) as error:
        pytest.exit(str(error), returncode=2)
    config.stash[SERVER] = server
    worker = getattr(config, "workerinput", {})
    config.stash[OWN_SERVER] = worker.get("own_server", settings.uses_own_server)
    try:
        import_models()
    except AppImportError as error:
        pytest.exit(str(error), returncode=2)
    os.environ["ENVIRONMENT"] = "test"
    os.environ["OTEL_SDK_DISABLED"] = "true"  # tests are nobody's traces
    os.environ["DATABASE_URL"] = server.with_database(f"{NAME}_shared").libpq
    os.environ.pop("SQLALCHEMY_DATABASE_URI", None)
    get_settings.cache_clear()
    # What was imported stays to the end; each collection would go through all of it again, pytest's
    # own after the last test and the interpreter's at its exit too.
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist whose server it is: its environment names one in any case."""
    node.workerinput["own_server"] = node.config.stash[OWN_SERVER]


def _drop_leftovers(connection: psycopg.Connection[TupleRow]) -> None:
    """Drop the databases of runs that were killed; on the project's own server only."""
    names = [row[0] for row in connection.execute("SELECT datname FROM pg_database")]
    for name in names:
        match = re.match(re.escape(PREFIX) + r"(\d+)", name)
        if match and not _is_running(int(match[1])):
            with suppress(psycopg.Error):
                connection.execute(f'ALTER DATABASE "{name}" IS_TEMPLATE false'.encode())
                connection.execute(f'DROP DATABASE "{name}"'.encode())


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class MigratedServer(NoopExecutor):
    """The server, as pytest-postgresql's fixtures take it; they copy the migrated database."""

    def __init__(self, *, migrated: str, **server: Any) -> None:
        super().__init__(**server)
        self.migrated = migrated

    @property
    def template_dbname(self) -> str:
        return self.migrated


@pytest.fixture(scope="session")
def postgresql_noproc(pytestconfig: pytest.Config) -> Iterator[MigratedServer]:
    """The server, on which the migrated database is until the end of the run."""
    server, keep = pytestconfig.stash[SERVER], KEPT if pytestconfig.stash[OWN_SERVER] else 0

    def migrate(database: str) -> None:
        try:
            asyncio.run(run_alembic(server.with_database(database), "upgrade", "head"))
        except CommandError as error:
            pytest.fail(str(error), pytrace=False)  # it names the revision; each test repeats it

    with psycopg.connect(server.libpq, autocommit=True) as connection:
        name = migrated_name(connection, make_config(ROOT))
        with migrated_database(connection, name, migrate, keep=keep):
            yield MigratedServer(
                migrated=name,
                dbname=NAME,
                options="",
                **{
                    key: getattr(pytestconfig.option, f"postgresql_{key}")
                    for key in ("host", "port", "user", "password")
                },
            )


postgresql = factories.postgresql("postgresql_noproc")
postgresql_empty_noproc = factories.postgresql_noproc(dbname=f"{NAME}_empty")
postgresql_empty = factories.postgresql("postgresql_empty_noproc")


@pytest.fixture(scope="session")
def server_url(pytestconfig: pytest.Config) -> DatabaseURL:
    """The address of the server."""
    return pytestconfig.stash[SERVER]


@pytest.fixture
def database_url(
    server_url: DatabaseURL, postgresql: psycopg.Connection[tuple[object, ...]]
) -> DatabaseURL:
    """A migrated database of the test's own."""
    return server_url.with_database(postgresql.info.dbname)


@pytest.fixture
def empty_database_url(
    server_url: DatabaseURL, postgresql_empty: psycopg.Connection[tuple[object, ...]]
) -> DatabaseURL:
    """An empty database of the test's own."""
    return server_url.with_database(postgresql_empty.info.dbname)


@pytest.fixture(scope="session")
def shared_database_url(
    server_url: DatabaseURL, postgresql_noproc: NoopExecutor
) -> Iterator[DatabaseURL]:
    """The migrated database that tests share."""
    url = server_url.with_database(f"{postgresql_noproc.dbname}_shared")
    janitor = DatabaseJanitor(
        user=postgresql_noproc.user,
        password=postgresql_noproc.password,
        host=postgresql_noproc.host,
        port=postgresql_noproc.port,
        dbname=url.database,
        template_dbname=postgresql_noproc.template_dbname,
    )
    with janitor:
        yield url


@pytest.fixture(scope="session")
async def shared_engine(shared_database_url: DatabaseURL) -> AsyncIterator[AsyncEngine]:
    """The engine of the shared database."""
    engine = create_engine(shared_database_url, pool_size=1, max_overflow=0)
    yield engine
    await engine.dispose()


@pytest.fixture
async def connection(shared_engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection whose transaction is rolled back after the test."""
    async with shared_engine.connect() as connection:
        transaction = await connection.begin()
        yield connection
        await transaction.rollback()


@pytest.fixture
def sessionmaker(connection: AsyncConnection) -> async_sessionmaker[AsyncSession]:
    """What makes sessions whose commits release a savepoint of the test's transaction."""
    return async_sessionmaker(
        connection, join_transaction_mode="create_savepoint", expire_on_commit=False
    )


@pytest.fixture
async def session(sessionmaker: async_sessionmaker[AsyncSession]) -> AsyncIterator[AsyncSession]:
    """A session on the shared database; nothing of it stays."""
    async with sessionmaker() as session:
        yield session


@pytest.fixture(scope="session")
def app() -> FastAPI:
    """The application."""
    return create_app()


@pytest.fixture
async def client(
    app: FastAPI, sessionmaker: async_sessionmaker[AsyncSession], connection: AsyncConnection
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application on the shared database; nothing of it stays."""
    app.state.sessionmaker = sessionmaker
    app.state.read_sessionmaker = create_read_sessionmaker(connection)
    async with make_client(app) as client:
        yield client


@pytest.fixture
async def live_client(
    database_url: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that was started, with an engine, on a database of its own."""
    async with started_app(database_url, monkeypatch) as app, make_client(app) as client:
        yield client
