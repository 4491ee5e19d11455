"""Backups before revisions run, and the way back."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.inside.servers import another_server, proxy
from tests.inside.support import Project, Terminal

from alembic_safety import cli as migrations
from alembic_safety import programs
from alembic_safety.backup import clients as postgres_client
from alembic_safety.backup.clients import find_client
from alembic_safety.database.lock import lock_key
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import ClientProgramError
from core.config import get_settings

NAME = re.compile(r"(?P<database>.+)_(?P<revision>\w+)_\d{8}T\d{6}Z(\.schema)?\.dump")
AWKWARD = """
    CREATE TYPE mood AS ENUM ('it''s fine', 'so-so; really', '"quoted"');
    CREATE TABLE "odd ""t"" x" (
        id int GENERATED ALWAYS AS IDENTITY (START 41) PRIMARY KEY,
        "a ; b" text, mood mood, big text, raw bytea, doc jsonb, tags text[]
    );
    INSERT INTO "odd ""t"" x" ("a ; b", mood, big, raw, doc, tags)
    SELECT CASE WHEN i % 3 > 0 THEN E'it''s "x"\\t\\\\ \\n; -- é' || i END,
           (enum_range(NULL::mood))[1 + i % 3], repeat(md5(i::text), 20 * i),
           decode(md5(i::text), 'hex'), jsonb_build_object('k', i, 'n', NULL),
           ARRAY['a,b', NULL, '{}']
    FROM generate_series(1, 60) i;
    CREATE SEQUENCE odd START 7 INCREMENT -3 MINVALUE -1000 MAXVALUE 100;
    SELECT nextval('odd'), nextval('odd');
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the backups of the test go."""
    folder = tmp_path / "backups"
    monkeypatch.setenv("MIGRATION_BACKUP_FOLDER", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _clean_up(project: Project) -> Iterator[None]:
    """Skip where no pg_dump fits the server, and drop the databases that a test restored."""
    version = project.connection.info.server_version // 10000
    project.connection.rollback()
    try:
        find_client("pg_dump", get_settings().url, server_major=version)
    except ClientProgramError as error:
        pytest.skip(str(error))
    yield
    for name in databases(project):
        if name != get_settings().url.database:
            run_elsewhere(project, f'DROP DATABASE "{name}" WITH (FORCE)')


def in_prod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "prod")
    get_settings.cache_clear()


def elsewhere(project: Project, database: str = "postgres") -> "psycopg.Connection[TupleRow]":
    url = get_settings().url.with_database(database)
    return psycopg.connect(url.libpq, autocommit=True, client_encoding="utf8")


def run_elsewhere(project: Project, statement: str) -> list[TupleRow]:
    with elsewhere(project) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def databases(project: Project) -> list[str]:
    """Return the test's database, and what was made of it."""
    query = "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY datname"
    ours = get_settings().url.database
    rows = run_elsewhere(project, query)
    return [name for (name,) in rows if name == ours or name.startswith(f"{ours}_")]


def content(url: DatabaseURL) -> dict[str, Any]:
    """Return the schema's objects, every row of every table, and where sequences stand.

    The record of migrations, in which failures and backups stand too, is left out.
    """
    with psycopg.connect(url.libpq) as connection:
        relations = connection.execute(
            "SELECT c.oid::regclass::text, c.relkind = 'S' FROM pg_class c WHERE c.relnamespace = "
            "'public'::regnamespace AND c.relkind IN ('r', 'S') "
            "AND c.relname NOT LIKE 'alembic_version_history%' ORDER BY 1"
        ).fetchall()
        return {
            name: connection.execute(
                f"SELECT {'last_value' if sequence else 't::text'} FROM {name} t ORDER BY 1".encode()  # noqa: S608
            ).fetchall()
            for name, sequence in relations
        }


def test_in_prod_everything_is_backed_up_before_revisions_run(
    project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("a1", None, "op.execute('INSERT INTO t_a1 VALUES (1)')")
    project.run("upgrade", "head")
    assert not folder.exists(), "in test nothing is backed up"
    in_prod(monkeypatch)
    project.write("b2", "a1", "op.execute('DELETE FROM t_a1')")
    project.run("upgrade", "head")
    [file] = folder.iterdir()
    match = NAME.fullmatch(file.name)
    assert match is not None
    assert match["database"] == get_settings().url.database
    assert match["revision"] == "a1"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert recorded(project) == [("a1", None), ("b2", file.name)]
    project.run("upgrade", "head")
    project.run("stamp", "a1")
    assert list(folder.iterdir()) == [file], "nothing was pending"
    assert migrations.main(["restore", "latest"]) == 0
    [_, restored] = databases(project)
    rows = content(get_settings().url.with_database(restored))
    assert rows["t_a1"] == [("(1)",)]
    assert "t_b2" not in rows


def recorded(project: Project) -> list[TupleRow]:
    with project.connection.transaction():
        query = "SELECT revision, backup FROM alembic_version_history ORDER BY id"
        return project.connection.execute(query).fetchall()


def test_a_backup_by_hand_is_recorded_where_there_is_a_record(
    project: Project, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert migrations.main(["backup"]) == 0
    assert content(get_settings().url) == {}
    project.write("a1")
    project.run("upgrade", "head")
    assert migrations.main(["backup"]) == 0
    name = Path(capsys.readouterr().out.splitlines()[-1]).name
    assert recorded(project) == [("a1", None), ("a1", name)]
    assert migrations.main(["history"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "  backup     a1  " in last
    assert f"  backup {name}" in last


def test_of_the_schema_alone_there_are_no_rows(project: Project, folder: Path) -> None:
    project.write("a1", None, "op.execute('INSERT INTO t_a1 VALUES (1)')")
    project.run("upgrade", "head")
    project.write("b2", "a1")
    project.run("upgrade", "head", backup="schema")
    [file] = folder.iterdir()
    assert migrations.main(["restore", str(file), "--into", f"{databases(project)[0]}_new"]) == 0
    [_, restored] = databases(project)
    assert content(get_settings().url.with_database(restored))["t_a1"] == []


def test_latest_is_the_newest_backup_with_rows(
    project: Project, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("a1", None, "op.execute('INSERT INTO t_a1 VALUES (1)')")
    project.run("upgrade", "head")
    assert migrations.main(["backup"]) == 0
    assert migrations.main(["backup", "--kind", "schema"]) == 0
    name = databases(project)[0]
    assert migrations.main(["restore", "latest", "--into", f"{name}_new"]) == 0
    assert content(get_settings().url.with_database(f"{name}_new"))["t_a1"] == [("(1)",)]
    assert f"The backup was restored into the database {name}_new." in capsys.readouterr().out
    [schema] = folder.glob("*.schema.dump")
    assert migrations.main(["restore", schema.name, "--into", f"{name}_empty"]) == 0
    said = f"The schema was restored, without rows, into the database {name}_empty."
    assert said in capsys.readouterr().out


def test_a_schema_alone_does_not_take_the_place_of_data(
    project: Project, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert migrations.main(["backup", "--kind", "schema"]) == 0
    name = get_settings().url.database
    assert migrations.main(["restore", "latest", "--confirm", name]) == 1
    assert "there is no full backup of the database" in capsys.readouterr().err
    [file] = folder.iterdir()
    assert migrations.main(["restore", str(file), "--confirm", name]) == 1
    assert "has no rows, so it can't replace" in capsys.readouterr().err
    assert databases(project) == [name]


def test_a_backup_as_the_options_have_it_and_where_something_is_pending(
    project: Project,
    folder: Path,
    commands: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    project.write("a1")

    def run(*arguments: str) -> tuple[str, str]:
        assert migrations.main(arguments) == 0
        captured = capsys.readouterr()
        return captured.out.strip(), captured.err

    said = run("backup", "--kind=pending")
    assert (said[0], "No backup: the option backup is off" in said[1]) == ("", True)
    in_prod(monkeypatch)
    taken, _ = run("backup", "--kind=pending")
    assert Path(taken).parent == folder
    assert run("backup-path", "latest")[0] == taken == run("backup-path", Path(taken).name)[0]
    project.run("upgrade", "head", backup="off")
    said = run("backup", "--kind=pending")
    assert (said[0], "No backup: no revision is pending." in said[1]) == ("", True)
    assert run("backup", "--kind=auto")[0].endswith(".dump")
    assert run("backup-path")[0] == str(folder)
    assert migrations.main(["backup-path", "nothing"]) == 1
    assert "there is no backup nothing" in capsys.readouterr().err


def fake_pg_dump(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program in pg_dump's place; `$file` is where it writes to."""
    program = folder / "pg_dump"
    find = 'for a in "$@"; do case "$a" in --file=*) file="${a#--file=}";; esac; done'
    program.write_text(f"#!/bin/sh\n{find}\n{script}\n")
    program.chmod(0o755)

    def find_fake(name: str, url: DatabaseURL, *, server_major: int | None = None) -> str:
        if name == "pg_dump":
            return str(program)
        return find_client(name, url, server_major=server_major)

    monkeypatch.setattr("alembic_safety.backup.dump.find_client", find_fake)


@pytest.mark.parametrize(
    "failure",
    [
        ("echo half >$file; echo 'No space left on device' >&2; exit 1", "No space left on device"),
        ("echo half >$file; kill -9 $$", "pg_dump was terminated by signal 9"),
        ("echo half >$file", "does not appear to be a valid archive"),
    ],
)
def test_where_the_backup_fails_nothing_is_migrated(
    project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch, failure: tuple[str, str]
) -> None:
    script, expected = failure
    fake_pg_dump(folder.parent, monkeypatch, script)
    project.write("a1")
    message = project.refused("upgrade", "head", backup="full")
    assert expected in message
    assert "nothing was changed" in message
    assert content(get_settings().url) == {}
    assert list(folder.iterdir()) == []


@contextmanager
def diverted(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *programs: str, user: str | None = None
) -> Iterator[DatabaseURL]:
    """Configure a proxy that takes these programs to another server; yield that server's URL."""
    ours = get_settings().url

    def choose(first: bytes) -> DatabaseURL:
        return other if any(f"\0{name}\0".encode() in first for name in programs) else ours

    with another_server(folder, ours.database) as other, proxy(choose) as port:
        with psycopg.connect(other.libpq) as connection:
            for name in {ours.user, user or ours.user} - {other.user}:
                connection.execute(f'CREATE ROLE "{name}" LOGIN SUPERUSER'.encode())
        url = DatabaseURL.parse(
            f"postgresql://{user or ours.user}@127.0.0.1:{port}/{ours.database}"
            "?sslmode=disable&gssencmode=disable"  # the first message says which program it is
        )
        monkeypatch.setenv("DATABASE_URL", replace(url, password=ours.password).libpq)
        get_settings.cache_clear()
        try:
            yield other
        finally:
            monkeypatch.setenv("DATABASE_URL", ours.libpq)
            get_settings.cache_clear()


TWO_SERVERS = re.compile(
    r"leads to two servers: this process is connected to one \((.+), port \d+, database oid \d+\), "
    r"pg_(?:dump|restore) to another \((.+), port \d+, database oid \d+\); use a URL of a single server"
)


@pytest.mark.parametrize(
    "case",
    [
        (("psql", "pg_dump"), TWO_SERVERS),
        # The proxy changes its mind after psql was asked.
        (("pg_dump",), re.compile("pg_dump reached another server|server version mismatch")),
    ],
)
def test_where_pg_dump_reaches_another_server_nothing_is_migrated(
    project: Project,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: tuple[tuple[str, ...], re.Pattern[str]],
) -> None:
    programs, says = case
    project.write("a1")
    with diverted(monkeypatch, folder.parent / "other", *programs) as other:
        message = project.refused("upgrade", "head", backup="full")
        assert says.search(message), message
        assert "nothing was changed" in message
        assert project.tables() == set()
        assert content(other) == {}
        assert migrations.main(["backup"]) == 1
        assert says.search(capsys.readouterr().err)
    assert list(folder.glob("*")) + list(folder.glob(".*")) == []


def test_where_both_reach_one_server_through_a_proxy_it_is_migrated(
    project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("a1")
    with diverted(monkeypatch, folder.parent / "other") as other:
        project.run("upgrade", "head", backup="full")
        assert project.tables() == {"t_a1"}
        assert content(other) == {}
    assert len(list(folder.iterdir())) == 1


def test_a_role_that_may_not_read_the_system_identifier_is_told_apart_all_the_same(
    project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, role = get_settings().url, f"limited_{os.getpid()}"
    password = f"PASSWORD '{url.password}'" if url.password else ""
    project.connection.execute(
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC;"
        f"CREATE ROLE {role} LOGIN {password}; GRANT ALL ON SCHEMA public TO {role}".encode()
    )
    project.connection.commit()
    project.write("a1")
    try:
        with diverted(monkeypatch, folder.parent / "other", "psql", "pg_dump", user=role):
            match = TWO_SERVERS.search(project.refused("upgrade", "head", backup="full"))
            assert match is not None
            assert "system identifier" not in match[0]
            assert match[1] != match[2]
            assert project.tables() == set()
        monkeypatch.setenv("DATABASE_URL", replace(url, user=role).libpq)
        get_settings.cache_clear()
        project.run("upgrade", "head", backup="full")
        assert len(list(folder.iterdir())) == 1
    finally:
        monkeypatch.setenv("DATABASE_URL", url.libpq)
        get_settings.cache_clear()
        project.connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
        project.connection.commit()


def test_where_pg_restore_reaches_another_server_no_database_is_made(
    project: Project,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert migrations.main(["backup"]) == 0
    ours = databases(project)
    name = get_settings().url.database
    with diverted(monkeypatch, folder.parent / "other", "psql", "pg_restore") as other:
        for arguments in ([], ["--confirm", name]):
            assert migrations.main(["restore", "latest", *arguments]) == 1
            assert TWO_SERVERS.search(capsys.readouterr().err)
        assert databases(project) == ours
        with psycopg.connect(other.libpq) as connection:
            query = "SELECT count(*) FROM pg_database WHERE datname LIKE %s"
            assert connection.execute(query, [f"{name}%"]).fetchone() == (1,)


def test_a_dump_that_takes_long_outlives_the_timeouts_of_its_session(
    project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_elsewhere(
        project,
        f'ALTER DATABASE "{get_settings().url.database}"'
        " SET idle_in_transaction_session_timeout = '1s'",
    )
    real = find_client(
        "pg_dump",
        get_settings().url,
        server_major=project.connection.info.server_version // 10000,
    )
    fake_pg_dump(folder.parent, monkeypatch, f'sleep 1.5; exec {real} "$@"')
    project.write("a1")
    project.run("upgrade", "head", backup="full")
    assert len(list(folder.iterdir())) == 1


def test_a_long_dump_says_how_far_it_is(
    project: Project,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(programs, "PROGRESS_INTERVAL", 0.1)
    fake_pg_dump(folder.parent, monkeypatch, "printf 12345 >$file; sleep 0.5; exit 1")
    project.write("a1")
    project.refused("upgrade", "head", backup="full")
    assert "backing up: 5 B after 0 s" in caplog.text


def test_a_folder_that_can_t_be_made_is_named(
    project: Project, folder: Path, tmp_path: Path
) -> None:
    folder.write_text("a file")
    project.write("a1")
    message = project.refused("upgrade", "head", backup="full")
    assert f"{folder}: File exists" in message
    assert content(get_settings().url) == {}


def test_the_password_is_in_the_environment_and_in_no_argument(
    project: Project, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "s3cret @/"  # noqa: S105
    fake_pg_dump(tmp_path, monkeypatch, f'echo "$@" "$PGPASSWORD" >{tmp_path}/seen; exit 1')
    url = get_settings().url
    monkeypatch.setenv("DATABASE_URL", replace(url, password=secret).libpq)
    get_settings.cache_clear()
    assert migrations.main(["backup"]) == 1
    arguments, password = (tmp_path / "seen").read_text().strip().rsplit(f"/{url.database}", 1)
    assert password.endswith(secret)
    assert "s3cret" not in arguments


def test_the_newest_stay(project: Project, folder: Path) -> None:
    folder.mkdir()
    name = get_settings().url.database
    old = [folder / f"{name}_a1_202001{day}T000000Z.dump" for day in ("01", "02", "03")]
    others = folder / "other_a1_20200101T000000Z.dump"
    for file in (*old, others, folder / "notes.txt"):
        file.touch()
    project.write("a1")
    project.run("upgrade", "head", backup="full", backup_keep="2")
    names = {file.name for file in folder.iterdir()}
    assert {others.name, "notes.txt", old[2].name} < names
    assert len(names) == 4


def test_schemas_do_not_push_full_backups_out(project: Project, folder: Path) -> None:
    project.write("a1")
    for kind in ("full", "schema", "schema"):
        project.run("stamp", "base")
        project.run("upgrade", "head", backup=kind, backup_keep="1")
        with project.connection.transaction():
            project.connection.execute("DROP TABLE t_a1")
    suffixes = sorted("".join(file.suffixes[-2:]) for file in folder.iterdir())
    assert len(suffixes) == 2
    assert [suffix.endswith(".schema.dump") for suffix in suffixes].count(True) == 1


def test_what_a_killed_backup_left_is_removed(project: Project, folder: Path) -> None:
    folder.mkdir()
    (folder / ".shop_a1_20200101T000000Z.dump.partial").touch()
    assert migrations.main(["backup"]) == 0
    [file] = folder.iterdir()
    assert NAME.fullmatch(file.name)


def test_two_backups_in_one_second_have_two_names(project: Project, folder: Path) -> None:
    assert migrations.main(["backup"]) == 0
    assert migrations.main(["backup"]) == 0
    assert len(list(folder.iterdir())) == 2


def test_an_older_client_is_named_as_the_cause(
    project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_client, "major_version", lambda _path: 9)
    project.write("a1")
    message = project.refused("upgrade", "head", backup="full")
    major = project.connection.info.server_version // 10000
    assert f"pg_dump 9 is older than the server, which is PostgreSQL {major}" in message
    assert f"postgresql-client-{major}" in message
    assert project.tables() == set()


def test_without_client_programs_the_message_says_what_to_install(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda _program: None)
    monkeypatch.setattr(postgres_client, "_FOLDERS", ())
    assert migrations.main(["backup"]) == 1
    assert "there is no pg_dump here; install" in capsys.readouterr().err


def test_the_list_says_what_is_whole(
    project: Project, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert migrations.main(["backups"]) == 0
    assert "There are no backups" in capsys.readouterr().out
    project.connection.execute(AWKWARD.encode())
    project.connection.commit()
    assert migrations.main(["backup"]) == 0
    assert migrations.main(["backups"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"  base  full +[\d.]+ kB  .*\.dump  verified$", line)
    [file] = folder.iterdir()
    os.truncate(file, file.stat().st_size - 500)
    assert migrations.main(["backups"]) == 1
    assert "BROKEN (pg_restore: error: could not read from input file" in capsys.readouterr().out
    assert migrations.main(["restore", str(file)]) == 1
    assert "was not restored" in capsys.readouterr().err
    assert databases(project) == [get_settings().url.database]


def test_a_restored_database_equals_the_one_backed_up(
    project: Project, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = get_settings().url
    project.connection.execute(AWKWARD.encode())
    project.connection.commit()
    run_elsewhere(project, f"ALTER DATABASE \"{url.database}\" SET work_mem = '7MB'")
    run_elsewhere(project, f"COMMENT ON DATABASE \"{url.database}\" IS 'x\nALTER DATABASE y'")
    assert migrations.main(["backup"]) == 0
    assert migrations.main(["restore", "latest"]) == 0
    [_, restored] = databases(project)
    assert f"The backup was restored into the database {restored}." in capsys.readouterr().out
    assert content(url.with_database(restored)) == content(url)
    with elsewhere(project, restored) as connection:
        assert connection.execute("SHOW work_mem").fetchone() == ("7MB",)
        comment = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s"
        assert connection.execute(comment, [restored]).fetchone() == ("x\nALTER DATABASE y",)
    assert migrations.main(["restore", "latest"]) == 1
    assert f"there is a database {restored} already" in capsys.readouterr().err


def test_over_the_present_database_only_with_its_name_and_the_old_one_stays(
    project: Project, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = get_settings().url
    project.write("a1", None, "op.execute('INSERT INTO t_a1 VALUES (1)')")
    project.run("upgrade", "head")
    assert migrations.main(["backup"]) == 0
    before = content(url)
    with project.connection.transaction():
        project.connection.execute("INSERT INTO t_a1 VALUES (2)")
    assert migrations.main(["restore", "latest", "--confirm", "another"]) == 1
    assert "'another' is not the name of the database" in capsys.readouterr().err
    assert content(url) != before
    # project.connection is open: a service that was not stopped.
    assert migrations.main(["restore", "latest", "--confirm", url.database]) == 0
    assert content(url) == before
    [_, kept] = databases(project)
    assert kept.startswith(f"{url.database}_before_restore_")
    assert content(url.with_database(kept))["t_a1"] == [("(1)",), ("(2)",)]


def test_nothing_is_put_in_the_place_of_a_database_that_is_being_migrated(
    project: Project, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = get_settings().url
    assert migrations.main(["backup"]) == 0
    with elsewhere(project, url.database) as connection:
        connection.execute(
            f"SELECT pg_advisory_lock({lock_key(url.database, 'alembic_version')})".encode()
        )
        assert migrations.main(["restore", "latest", "--confirm", url.database]) == 1
    assert f"is migrating the database {url.database}" in capsys.readouterr().err
    assert databases(project) == [url.database]


def test_roles_that_the_server_does_not_have_are_left_out(
    project: Project, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    role = f"owner_of_{os.getpid()}"
    run_elsewhere(project, f"CREATE ROLE {role}")
    project.connection.execute(f"CREATE TABLE t (id int); ALTER TABLE t OWNER TO {role}".encode())
    project.connection.execute("INSERT INTO t VALUES (7)")
    run_elsewhere(project, f"ALTER DATABASE \"{get_settings().url.database}\" SET work_mem = '7MB'")
    project.connection.commit()
    assert migrations.main(["backup"]) == 0
    project.connection.execute("DROP TABLE t")
    project.connection.commit()
    run_elsewhere(project, f"DROP ROLE {role}")
    assert migrations.main(["restore", "latest"]) == 0
    assert "retrying without owners and privileges" in caplog.text
    assert f'role "{role}" does not exist' in caplog.text
    [_, restored] = databases(project)
    assert content(get_settings().url.with_database(restored)) == {"t": [("(7)",)]}


def test_settings_of_roles_in_a_database_stay_with_each_database(
    project: Project, folder: Path
) -> None:
    role, name = f"role_of_{os.getpid()}", get_settings().url.database
    in_database = f'ALTER ROLE {role} IN DATABASE "{name}" SET search_path ='
    run_elsewhere(project, f"CREATE ROLE {role}")
    try:
        run_elsewhere(project, f"{in_database} 'backed_up'")
        assert migrations.main(["backup"]) == 0
        run_elsewhere(project, f"{in_database} 'changed'")
        assert migrations.main(["restore", "latest"]) == 0
        query = (
            "SELECT s.setrole::regrole::text, d.datname, s.setconfig[1] FROM pg_db_role_setting s"
            " JOIN pg_database d ON d.oid = s.setdatabase ORDER BY 2"
        )
        settings = [row[1:] for row in run_elsewhere(project, query) if row[0] == role]
        [_, restored] = databases(project)
        assert settings == [(name, "search_path=changed"), (restored, "search_path=backed_up")]
        run_elsewhere(project, f'DROP DATABASE "{restored}"')
    finally:
        run_elsewhere(project, f'ALTER ROLE {role} IN DATABASE "{name}" RESET ALL')
        run_elsewhere(project, f"DROP ROLE {role}")


def test_other_encodings_and_names_come_back(
    project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{get_settings().url.database}_caf\u00e9"
    major = project.connection.info.server_version // 10000
    provider = "LOCALE_PROVIDER libc" if major > 14 else ""
    run_elsewhere(
        project,
        f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C' {provider}",
    )
    run_elsewhere(project, f"COMMENT ON DATABASE \"{name}\" IS 'kept'")
    with elsewhere(project, name) as connection:
        connection.execute("CREATE TABLE \"\u00e9\" AS SELECT '\u00fc\u00df'::text AS t".encode())
    url = get_settings().url.with_database(name)
    monkeypatch.setenv("DATABASE_URL", url.libpq)
    get_settings.cache_clear()
    assert migrations.main(["backup"]) == 0
    assert migrations.main(["restore", "latest", "--into", f"{name}_new"]) == 0
    with elsewhere(project, f"{name}_new") as connection:
        assert connection.execute("SHOW server_encoding").fetchone() == ("LATIN1",)
        assert connection.execute('SELECT * FROM "\u00e9"').fetchall() == [("\u00fc\u00df",)]
    comment = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = "
    assert run_elsewhere(project, f"{comment}'{name}_new'") == [("kept",)]


def test_a_backup_that_does_not_exist_is_named(
    project: Project, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert migrations.main(["restore", "latest"]) == 1
    assert f"there is no full backup of the database {get_settings().url.database}" in (
        capsys.readouterr().err
    )
    assert migrations.main(["restore", "x.dump"]) == 1
    assert "there is no backup x.dump; `alembic-safety backups` lists" in capsys.readouterr().err


def test_in_prod_a_downgrade_wants_the_database_s_name(
    project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    in_prod(monkeypatch)
    name = get_settings().url.database
    message = project.refused("downgrade", "base")
    assert f"this reverts a1 in the database {name}" in message
    assert message.endswith(f"To confirm, set CONFIRM={name} in the environment")
    monkeypatch.setenv("CONFIRM", "another")
    assert "'another' is not the name of the database" in project.refused("downgrade", "-1")
    assert project.tables() == {"t_a1"}
    assert not folder.exists()
    monkeypatch.setenv("CONFIRM", name)
    project.run("downgrade", "-1")
    assert project.tables() == set()
    assert len(list(folder.iterdir())) == 1, "what a downgrade loses is backed up"


def test_in_prod_a_terminal_is_asked(
    project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch, terminal: Terminal
) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    in_prod(monkeypatch)
    terminal(f"no\n{get_settings().url.database}\n")
    assert "'no' is not the name of the database" in project.refused("downgrade", "base")
    project.run("downgrade", "base")
    assert project.tables() == set()
