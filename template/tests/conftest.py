"""Fixtures for tests on a real PostgreSQL.

docs/development.md lists them. The configured database is never touched: those of the tests are made
on its server, and dropped after the run.
"""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from alembic.util import CommandError
from fastapi import FastAPI
from pytest_postgresql import factories
from pytest_postgresql.executors import NoopExecutor
from pytest_postgresql.janitor import DatabaseJanitor
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
)
from tests.support import make_client, run_alembic, started_app

from alembic_safety.config import make_config
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import EmbeddedPostgresError
from alembic_safety.testing import MigratedDatabases
from core.apps import AppImportError
from core.config import Environment, SettingsError, get_settings
from core.database import create_engine, create_read_sessionmaker
from core.models import import_models
from core.project import ROOT, load_project
from main import create_app

PREFIX = f"{load_project().name[:32]}_test_"
NAME = f"{PREFIX}{os.getpid()}"
KEPT = 3
"""Number of migrated databases that stay on the project's own server."""
SERVER = pytest.StashKey[DatabaseURL]()
OWN_SERVER = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Find the server, and point the settings at a database for tests."""
    try:
        settings = get_settings()
        if settings.environment is Environment.PROD:
            pytest.exit("the tests do not run with ENVIRONMENT=prod", returncode=2)
        server = settings.url.with_database("postgres")
        with psycopg.connect(server.libpq, autocommit=True) as connection:
            right = "SELECT quote_ident(rolname) FROM pg_roles WHERE rolname = current_user"
            if role := connection.execute(f"{right} AND NOT (rolcreatedb OR rolsuper)").fetchone():
                pytest.exit(
                    f"The tests need a role that may create databases: ALTER ROLE {role[0]} CREATEDB",
                    returncode=2,
                )
            databases = MigratedDatabases(connection, prefix=PREFIX, keep=0)
            if not hasattr(config, "workerinput"):
                if settings.uses_own_server:
                    databases.drop_abandoned()
                if config.option.postgresql_drop_test_database:
                    databases.drop_unused()
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
    gc.freeze()  # exclude the imported modules from garbage collection


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a pytest-xdist worker whether the server is the project's own."""
    node.workerinput["own_server"] = node.config.stash[OWN_SERVER]


class MigratedServer(NoopExecutor):
    """Server whose new databases are copies of the migrated one."""

    def __init__(self, *, migrated: str, **server: Any) -> None:
        super().__init__(**server)
        self.migrated = migrated

    @property
    def template_dbname(self) -> str:
        return self.migrated


@pytest.fixture(scope="session")
def postgresql_noproc(pytestconfig: pytest.Config) -> Iterator[MigratedServer]:
    """Server with a migrated database, which stays until the end of the run."""
    server, keep = pytestconfig.stash[SERVER], KEPT if pytestconfig.stash[OWN_SERVER] else 0
    made_by = (Path(__file__), Path(__file__).with_name("support.py"))

    def migrate(database: str) -> None:
        try:
            asyncio.run(run_alembic(server.with_database(database), "upgrade", "head"))
        except CommandError as error:
            pytest.fail(str(error), pytrace=False)  # the message names the revision

    with psycopg.connect(server.libpq, autocommit=True) as connection:
        databases = MigratedDatabases(connection, prefix=PREFIX, keep=keep)
        name = databases.name_for(make_config(ROOT), src=ROOT / "src", also=made_by)
        with databases.use(name, migrate):
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
    """Return the URL of the server."""
    return pytestconfig.stash[SERVER]


@pytest.fixture
def database_url(
    server_url: DatabaseURL, postgresql: psycopg.Connection[tuple[object, ...]]
) -> DatabaseURL:
    """Return the URL of a migrated database for this test."""
    return server_url.with_database(postgresql.info.dbname)


@pytest.fixture
def empty_database_url(
    server_url: DatabaseURL, postgresql_empty: psycopg.Connection[tuple[object, ...]]
) -> DatabaseURL:
    """Return the URL of an empty database for this test."""
    return server_url.with_database(postgresql_empty.info.dbname)


@pytest.fixture(scope="session")
def shared_database_url(
    server_url: DatabaseURL, postgresql_noproc: NoopExecutor
) -> Iterator[DatabaseURL]:
    """Return the URL of the migrated database that tests share."""
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
    """Return the engine of the shared database."""
    engine = create_engine(shared_database_url, pool_size=1, max_overflow=0)
    yield engine
    await engine.dispose()


@pytest.fixture
async def connection(shared_engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Return a connection whose transaction is rolled back after the test."""
    async with shared_engine.connect() as connection:
        transaction = await connection.begin()
        yield connection
        await transaction.rollback()


@pytest.fixture
def sessionmaker(connection: AsyncConnection) -> async_sessionmaker[AsyncSession]:
    """Return a factory of sessions whose commits release a savepoint of the test's transaction."""
    return async_sessionmaker(
        connection, join_transaction_mode="create_savepoint", expire_on_commit=False
    )


@pytest.fixture
async def session(sessionmaker: async_sessionmaker[AsyncSession]) -> AsyncIterator[AsyncSession]:
    """Return a session on the shared database; it is rolled back after the test."""
    async with sessionmaker() as session:
        yield session


@pytest.fixture(scope="session")
def app() -> FastAPI:
    """Return the application."""
    return create_app()


@pytest.fixture
async def client(
    app: FastAPI, sessionmaker: async_sessionmaker[AsyncSession], connection: AsyncConnection
) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of the application on the shared database; it is rolled back after the test."""
    app.state.sessionmaker = sessionmaker
    app.state.read_sessionmaker = create_read_sessionmaker(connection)
    async with make_client(app) as client:
        yield client


@pytest.fixture
async def live_client(
    database_url: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of a started application with its own engine and database."""
    async with started_app(database_url, monkeypatch) as app, make_client(app) as client:
        yield client
