"""Fixtures of the library's tests, next to those of the project they run in."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.inside.support import Project

from alembic_safety import cli
from alembic_safety.database.url import DatabaseURL
from core.config import get_settings


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


@pytest.fixture
def commands(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the program's commands work on the test's revisions."""
    monkeypatch.setattr(cli, "make_config", lambda _folder: project.config())
