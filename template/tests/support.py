"""What fixtures and tests both call."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from fastapi import FastAPI
from psycopg.rows import TupleRow
from sqlalchemy.pool import NullPool

from core.config import get_settings
from core.database import create_engine
from alembic_safety.database.url import DatabaseURL
from alembic_safety.config import make_config
from main import create_app


async def run_alembic(url: DatabaseURL, name: str, *arguments: str) -> None:
    """Run an Alembic command on the database `url`."""
    engine = create_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(
            lambda sync: getattr(command, name)(make_config(connection=sync), *arguments)
        )


@asynccontextmanager
async def started_app(url: DatabaseURL, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FastAPI]:
    """Start an application on the database `url`, and stop it."""
    monkeypatch.setenv("DATABASE_URL", url.libpq)
    get_settings.cache_clear()
    app = create_app()
    async with app.router.lifespan_context(app):
        yield app
    get_settings.cache_clear()


def make_client(app: FastAPI) -> httpx.AsyncClient:
    """Return a client of `app`, to which an unexpected error is an answer, as to real ones."""
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app, raise_app_exceptions=False),
        base_url="http://test",
        trust_env=False,
    )


REVISION = '''"""{revision}"""
import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = {down_revision!r}
{module}


def upgrade() -> None:
    {table}
    {upgrade}


def downgrade() -> None:
    op.execute("DROP TABLE IF EXISTS t_{revision}")
'''


class Project:
    """Revisions of the test's own, on an empty database."""

    def __init__(self, folder: Path, connection: psycopg.Connection[TupleRow]) -> None:
        self.folder = folder
        self.connection = connection

    def write(
        self,
        revision: str,
        down_revision: str | None = None,
        upgrade: str = "pass",
        *,
        module: str = "",
        table: bool = True,
    ) -> None:
        """Write a revision that makes the table `t_<revision>` and does what `upgrade` says."""
        create = f'op.create_table("t_{revision}", sa.Column("id", sa.Integer))'
        text = REVISION.format(
            revision=revision,
            down_revision=down_revision,
            upgrade=upgrade,
            module=module,
            table=create if table else "pass",
        )
        (self.folder / f"{revision}.py").write_text(text, encoding="utf-8")

    def config(self, **attributes: object) -> Config:
        config = make_config(**attributes)
        config.set_main_option("path_separator", "newline")
        config.set_main_option("version_locations", str(self.folder))
        return config

    def run(self, name: str, *arguments: str, **attributes: object) -> None:
        getattr(command, name)(self.config(**attributes), *arguments)

    def refused(self, name: str, *arguments: str, **attributes: object) -> str:
        with pytest.raises(CommandError) as error:
            self.run(name, *arguments, **attributes)
        return str(error.value)

    def tables(self) -> set[str]:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        with self.connection.transaction():
            rows = self.connection.execute(query)
            return {name for (name,) in rows if not name.startswith("alembic_version")}
