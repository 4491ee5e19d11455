"""Fixtures of the library's tests, next to those of the project they run in."""

import os
import pty
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.inside.support import Project, Terminal

from alembic_safety import loader
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
    monkeypatch.setattr(loader, "make_config", lambda _folder: project.config())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Make standard input a terminal, and return a function that types into it."""
    keyboard, screen = pty.openpty()
    with os.fdopen(screen) as stdin, os.fdopen(keyboard, "wb", buffering=0) as keys:
        monkeypatch.setattr(sys, "stdin", stdin)

        def type_text(text: str) -> None:
            keys.write(text.encode())

        yield type_text
