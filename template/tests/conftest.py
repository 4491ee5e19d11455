"""The databases of the tests.

All of them are on the server of the settings (the project's own, or `DATABASE_URL`'s), in
databases made for this run and dropped after it; the configured database is never touched.
The migrations run once, into a template:

- `session` and `client` work in one clone of it that all tests share; what a test does there is
  rolled back. This is the one to use: it costs about a millisecond.
- `database_url` and `live_client` have a clone of their own, where commits are real.
- `empty_database_url` is a database in which nothing ever ran.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psycopg
import pytest
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
from tests.support import Project, make_client, run_alembic, started_app

from core.apps import AppImportError
from core.config import Environment, SettingsError, get_settings
from core.database import create_engine, create_read_sessionmaker
from core.database_url import DatabaseURL
from core.embedded_postgres import EmbeddedPostgresError
from core.models import import_models
from core.project import load_project
from main import create_app

PREFIX = f"{load_project().name}_test_"
NAME = f"{PREFIX}{os.getpid()}"
SERVER = pytest.StashKey[DatabaseURL]()


def pytest_configure(config: pytest.Config) -> None:
    """Find the server, and keep the tests away from the configured database."""
    try:
        settings = get_settings()
        if settings.environment is Environment.PROD:
            pytest.exit("the tests do not run with ENVIRONMENT=prod", returncode=2)
        server = settings.url.with_database("postgres")
        with psycopg.connect(server.libpq, autocommit=True) as connection:
            if settings.uses_own_server and not hasattr(config, "workerinput"):
                _drop_leftovers(connection)
            for name in ("host", "port", "user", "password"):
                value = str(getattr(connection.info, name))
                setattr(config.option, f"postgresql_{name}", value)
    except (EmbeddedPostgresError, SettingsError, psycopg.OperationalError) as error:
        pytest.exit(str(error), returncode=2)
    config.stash[SERVER] = server
    try:
        import_models()
    except AppImportError as error:
        pytest.exit(str(error), returncode=2)
    os.environ["ENVIRONMENT"] = "test"
    os.environ["OTEL_SDK_DISABLED"] = "true"  # tests are nobody's traces
    os.environ["DATABASE_URL"] = server.with_database(f"{NAME}_shared").libpq
    os.environ.pop("SQLALCHEMY_DATABASE_URI", None)
    get_settings.cache_clear()


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


def migrate(**server: str) -> None:
    """Bring a database to head; pytest-postgresql calls it for the template."""
    url = DatabaseURL(
        user=server["user"],
        password=server["password"],
        hosts="",
        database=server["dbname"],
        query=(("host", server["host"]), ("port", str(server["port"]))),
    )
    asyncio.run(run_alembic(url, "upgrade", "head"))


postgresql_noproc = factories.postgresql_noproc(dbname=NAME, load=[migrate])
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


@pytest.fixture
def project(
    empty_database_url: DatabaseURL,
    postgresql_empty: psycopg.Connection[TupleRow],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Project]:
    """Revisions of the test's own, on an empty database that is the configured one."""
    monkeypatch.setenv("DATABASE_URL", empty_database_url.libpq)
    get_settings.cache_clear()
    yield Project(tmp_path, postgresql_empty)
    get_settings.cache_clear()
