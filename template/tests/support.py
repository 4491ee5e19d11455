"""Helpers of fixtures and tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from alembic import command
from fastapi import FastAPI
from sqlalchemy.pool import NullPool

from alembic_safety.config import make_config
from alembic_safety.database.url import DatabaseURL
from core.config import get_settings
from core.database import create_engine
from core.project import ROOT
from main import create_app


async def run_alembic(url: DatabaseURL, name: str, *arguments: str) -> None:
    """Run an Alembic command on the database `url`."""
    engine = create_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(
            lambda sync: getattr(command, name)(make_config(ROOT, connection=sync), *arguments)
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
    """Return a client of `app` that gets a response, not an exception, for an unhandled error."""
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app, raise_app_exceptions=False),
        base_url="http://test",
        trust_env=False,
    )
