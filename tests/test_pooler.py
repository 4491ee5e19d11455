"""A real PgBouncer between the service and PostgreSQL."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.conftest import Render
from tests.support import free_port

from alembic_safety.database.url import DatabaseURL
from alembic_safety.embedded.account import find_account

PGBOUNCER = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"


class Pooler:
    """A PgBouncer in front of the server."""

    def __init__(self, server: DatabaseURL, folder: Path) -> None:
        self.server = server
        self.folder = folder

    def start(self, mode: str, **options: object) -> DatabaseURL:
        """Start it and return the address of the database through it."""
        if not Path(PGBOUNCER).exists():
            pytest.skip("pgbouncer is not installed (Debian's package pgbouncer)")
        port = free_port()
        socket_folder = Path(self.server.hosts[0][0])
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": mode,
            "default_pool_size": 2,
            **options,
        }
        file = self.folder / "pgbouncer.ini"
        file.write_text(
            f"[databases]\n* = host={socket_folder} port=5432 user=postgres\n[pgbouncer]\n"
            + "".join(f"{key} = {value}\n" for key, value in settings.items())
        )
        # PgBouncer refuses to run as root, and the socket's folder is closed to other users.
        account = find_account(self.folder / "data")
        self.log = (self.folder / "pgbouncer.log").open("w")
        self.process = subprocess.Popen(
            [*account.command, PGBOUNCER, "/dev/stdin"],
            stdin=file.open(),
            stdout=self.log,
            stderr=self.log,
            **account.options,
        )
        url = DatabaseURL(
            user="postgres",
            password=None,
            hosts=(("127.0.0.1", port),),
            database=self.server.database,
        )
        for _ in range(100):
            try:
                psycopg.connect(url.libpq).close()
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.folder / "pgbouncer.log").read_text()
                time.sleep(0.05)
            else:
                return url
        raise AssertionError((self.folder / "pgbouncer.log").read_text())


@pytest.fixture
def pooler(database_url: DatabaseURL, tmp_path: Path) -> Iterator[Pooler]:
    pooler = Pooler(database_url, tmp_path)
    yield pooler
    if hasattr(pooler, "process"):
        pooler.process.terminate()
        pooler.process.wait()
        pooler.log.close()


def tables(database: psycopg.Connection[TupleRow]) -> set[str]:
    query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    return {name for (name,) in database.execute(query)}


@pytest.mark.parametrize("options", [{}, {"default_pool_size": 1}, {"server_round_robin": 1}])
def test_migrations_refuse_transaction_mode_and_take_the_direct_address(
    render: Render,
    pooler: Pooler,
    database: psycopg.Connection[TupleRow],
    options: dict[str, object],
) -> None:
    project = render()
    project.environment["DATABASE_URL"] = pooler.start("transaction", **options).libpq
    for command in (["upgrade", "head"], ["current"], ["check"]):
        done = project.alembic(*command, expect=1)
        assert "through a pooler in transaction mode" in done.stderr
        assert "Set MIGRATION_DATABASE_URL" in done.stderr
        assert "Traceback" not in done.stderr
    done = project.make("backup", expect=2)
    assert "through a pooler in transaction mode" in done.stderr
    assert tables(database) == set()
    leaked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    assert database.execute(leaked).fetchone() == (0,)
    project.environment["MIGRATION_DATABASE_URL"] = pooler.server.libpq
    project.alembic("upgrade", "head")
    assert "users" in tables(database)
    assert "The database is at head." in project.make("migrate-status").stdout


def test_migrations_run_through_session_mode(
    render: Render, pooler: Pooler, database: psycopg.Connection[TupleRow]
) -> None:
    project = render()
    # Of three connections one is the runner's, one looks who stands in its way.
    project.environment["DATABASE_URL"] = pooler.start("session", default_pool_size=3).libpq
    done = project.alembic("upgrade", "head")
    assert "Running upgrade" in done.stderr
    assert "users" in tables(database)


def test_a_pooler_that_can_t_be_told_is_refused(render: Render, pooler: Pooler) -> None:
    project = render()
    project.environment["DATABASE_URL"] = pooler.start("session", default_pool_size=1).libpq
    done = project.alembic("upgrade", "head", expect=1)
    assert "through a pooler of an unknown mode" in done.stderr


REQUESTS = dedent("""
    import asyncio, json, sys
    sys.path.insert(0, "src")
    import httpx
    from sqlalchemy import text
    from main import create_app

    async def main():
        app = create_app()
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                async def use(number):
                    made = await client.post("/users", json={"email": f"u{number}@example.com",
                                                             "full_name": "x"})
                    read = await client.get(made.headers["location"])
                    ready = await client.get("/health/ready")
                    return [made.status_code, read.status_code, ready.status_code]
                answers = await asyncio.gather(*map(use, range(60)))
            # A type that asyncpg has to look up, by a query of its own, before it can answer.
            async with app.state.sessionmaker() as session:
                moods = await session.scalars(text("SELECT unnest(enum_range(NULL::mood))"))
                return answers, moods.all()

    print(json.dumps(asyncio.run(main())))
""")


def test_the_application_runs_through_transaction_mode(
    render: Render, pooler: Pooler, database: psycopg.Connection[TupleRow]
) -> None:
    project = render()
    project.environment["DATABASE_URL"] = pooler.server.libpq
    project.alembic("upgrade", "head")
    database.execute("CREATE TYPE mood AS ENUM ('glad', 'sad')")
    project.environment |= {
        "DATABASE_URL": pooler.start("transaction", default_pool_size=2).libpq,
        "DATABASE_POOLER": "transaction",
        "DATABASE_POOL_TIMEOUT": "30",
        "LOG_LEVEL": "WARNING",
    }
    for _ in range(2):  # the second process meets the connections that the first one used
        database.execute("TRUNCATE users")
        answers, moods = json.loads(project.python(REQUESTS).stdout)
        assert answers == [[201, 200, 200]] * 60
        assert moods == ["glad", "sad"]
