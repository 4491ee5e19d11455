"""Backups that fail half-way, and backups that are restored."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from sqlalchemy import URL
from tests.drills.world import (
    TIMEOUT,
    Revision,
    Scripts,
    Server,
    World,
    connect,
    require,
    transaction,
)

# Values that are hard to dump, by column.
_VALUES = (
    (
        "NULL",
        "''",
        "'it''s'",
        "E'tab\\tnew\\nline\\\\'",
        "'; DROP TABLE x; --'",
        "'\\.'",
        "'é ü 漢字 🙂'",
        "repeat('large ', 40000)",
        "'NULL'",
        "'{\"a\": [1, null]}'",
    ),
    ("NULL", "'so-so'", "'it''s'"),
    ("NULL", "'NaN'", "'Infinity'", "'-0.1'", "'1e300'"),
    ("NULL", "decode('00ff27', 'hex')"),
    ("NULL", "'{}'", "'{NULL,\"a,b\"}'"),
    ("NULL", "'infinity'", "'2026-10-25 02:30+02'"),
)

ROLE, PASSWORD = "drill_owner", "right"
LOCK = """
SELECT pg_advisory_lock(('x' || left(
    encode(sha256('alembic:{database}:alembic_version'), 'hex'), 16
))::bit(64)::bigint)
"""
"""Takes the lock of the runners of a database. Its key is the same in every release."""


def failing_backups(world: World) -> str:
    """Let the backup before a migration fail. Nothing may be migrated."""
    server = world.server
    revision = Revision(id="r01", parent=None, upgrade='op.execute("DROP TABLE notes")')
    scripts = Scripts(world, "failing-backups", [revision])
    cases: list[Callable[[World, Scripts, URL, Path], str]] = [
        _full_disk,
        _killed_pg_dump,
        _wrong_password,
    ]
    for case in cases:
        url = server.new_database()
        server.run(url, "CREATE TABLE notes (id int, text text)")
        server.run(
            url,
            "INSERT INTO notes SELECT i, (SELECT string_agg(md5((i * j)::text), '')"
            " FROM generate_series(1, 100) j) FROM generate_series(1, 3000) i",
        )
        backups = scripts.folder / case.__name__
        backups.mkdir()
        before = server.dump(url, data=True)
        said = case(world, scripts, url, backups)
        require(
            "nothing was changed" in said and "Traceback" not in said, f"{case.__name__}:\n{said}"
        )
        require(server.dump(url, data=True) == before, f"{case.__name__}: something was migrated")
        require(not list(backups.iterdir()), f"{case.__name__}: an unfinished file was left")
    return "full disk, killed pg_dump, wrong password: nothing migrated, no unfinished file"


def _backing_up(backups: Path) -> dict[str, str]:
    return {"MIGRATION_BACKUP": "full", "MIGRATION_BACKUP_FOLDER": str(backups)}


def _full_disk(world: World, scripts: Scripts, url: URL, backups: Path) -> str:
    """Back up into a file system that is too small, or with a limit where none can be mounted."""
    small = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=256k tmpfs '{backups}'"
    if shutil.which("unshare") and _succeeds([*small, mount]):
        command = [*small, f'{mount} && exec "$@"', "sh", *scripts.alembic, "upgrade", "head"]
        expected = "No space left on device"
    else:
        command = [
            "sh",
            "-c",
            'ulimit -f 256; exec "$@"',
            "sh",
            *scripts.alembic,
            "upgrade",
            "head",
        ]
        expected = "pg_dump was terminated by signal"
    done = subprocess.run(
        command,
        cwd=world.project.path,
        env=world.environment(url, _backing_up(backups)),
        capture_output=True,
        text=True,
        check=False,
    )
    require(done.returncode == 1 and expected in done.stderr, f"full disk:\n{done.stderr}")
    return done.stderr


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _killed_pg_dump(_world: World, scripts: Scripts, url: URL, backups: Path) -> str:
    # pg_dump waits for the table, which leaves time to kill it.
    with transaction(url, "LOCK TABLE notes IN ACCESS EXCLUSIVE MODE"):
        runner = scripts.begin(url, "upgrade", "head", environment=_backing_up(backups))
        deadline = time.monotonic() + TIMEOUT
        dumps: list[Any] = []
        while not dumps and time.monotonic() < deadline:
            time.sleep(0.05)
            with suppress(psutil.Error):
                children = psutil.Process(runner.pid).children(recursive=True)
                dumps = [child for child in children if "--format=custom" in child.cmdline()]
        for process in dumps:
            process.kill()
        _, said = runner.communicate(timeout=TIMEOUT)
    require(runner.returncode == 1, f"killed pg_dump: exit code {runner.returncode}")
    require("pg_dump was terminated by signal 9" in said, f"killed pg_dump:\n{said}")
    return said


def _wrong_password(world: World, scripts: Scripts, url: URL, backups: Path) -> str:
    """Change the password after the runner has connected and before it makes the backup."""
    server = world.server
    rules = server.home / "data" / "pg_hba.conf"
    rules.write_text(f"local all {ROLE} scram-sha-256\n{rules.read_text()}")
    server.run(url, "SELECT pg_reload_conf()")
    server.run(url, f"CREATE ROLE {ROLE} LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
    as_role = url.set(username=ROLE, password=PASSWORD)
    with connect(url) as holder:
        holder.execute(LOCK.format(database=url.database).encode())
        runner = scripts.begin(as_role, "upgrade", "head", environment=_backing_up(backups))
        said = ""
        for line in runner.stderr or ():
            said += line
            if "waiting for" in line:
                break
        server.run(url, f"ALTER ROLE {ROLE} PASSWORD 'another'")
    said += runner.communicate(timeout=TIMEOUT)[1]
    require(runner.returncode == 1, f"wrong password: exit code {runner.returncode}\n{said}")
    require("password authentication failed" in said, f"wrong password:\n{said}")
    require(PASSWORD not in said, "the password was printed")
    return said


def round_trips(world: World) -> str:
    """Back up and restore databases of awkward content. Schemas and rows must be equal."""
    server = world.server
    count = world.of(20, 3)
    rows = 0
    for number in range(count):
        url = server.new_database()
        server.run(url, awkward_sql(random.Random(number)))  # noqa: S311
        target = f"{url.database}_restored"
        folder = {"MIGRATION_BACKUP_FOLDER": str(world.folder / "round-trips" / str(number))}
        environment = world.environment(url, folder)
        world.project.make("backup", env=environment)
        world.project.make("restore", "BACKUP=latest", f"DATABASE={target}", env=environment)
        restored = url.set(database=target)
        require(server.dump(restored) == server.dump(url), f"round {number}: schemas differ")
        before, after = content(server, url), content(server, restored)
        require(before == after, f"round {number}: rows differ")
        rows += sum(len(table) for table in before.values())
        server.run(server.url, f"DROP DATABASE {target}")
    return f"{count} backups restored, {rows:,} awkward rows: schemas, rows and sequences equal"


def content(server: Server, url: URL) -> dict[str, list[tuple[object, ...]]]:
    """Return the rows of every table and the position of every sequence."""
    relations = server.rows(
        url,
        "SELECT c.oid::regclass::text, c.relkind = 'S' FROM pg_class c JOIN pg_namespace n"
        " ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'S')"
        " AND n.nspname !~ '^(pg_|information_schema)' ORDER BY 1",
    )
    return {
        name: server.rows(
            url,
            f"SELECT {'last_value, is_called' if sequence else 't::text'} FROM {name} t ORDER BY 1",
        )
        for name, sequence in relations
    }


def awkward_sql(chance: random.Random) -> str:
    """Return SQL that creates tables with names, types and values that are hard to dump."""
    rows = [", ".join(chance.choice(of) for of in _VALUES) for _ in range(chance.randint(20, 200))]
    values = ", ".join(f"({row})" for row in rows)
    return f"""
        CREATE SCHEMA "odd ""schema";
        CREATE TYPE "odd ""schema"."Mood" AS ENUM ('it''s', 'so-so', '');
        CREATE SEQUENCE plain START {chance.randint(1, 10**12)} INCREMENT -7
            MINVALUE -9223372036854775808 MAXVALUE 9223372036854775807;
        CREATE TABLE "odd ""schema"."Tab le" (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "te;xt" text,
            mood "odd ""schema"."Mood", number double precision, raw bytea, tags text[],
            at timestamptz, twice text GENERATED ALWAYS AS (left("te;xt", 5) || 'x') STORED
        );
        INSERT INTO "odd ""schema"."Tab le" ("te;xt", mood, number, raw, tags, at)
        SELECT a, b::"odd ""schema"."Mood", c::float8, d, e::text[], f::timestamptz
        FROM (VALUES {values}) AS v (a, b, c, d, e, f);
        CREATE TABLE parted (k int NOT NULL, v text) PARTITION BY RANGE (k);
        CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (50);
        CREATE TABLE parted_2 PARTITION OF parted DEFAULT;
        INSERT INTO parted SELECT i, md5(i::text) FROM generate_series(1, 99) i;
        CREATE TABLE child (parent bigint REFERENCES "odd ""schema"."Tab le", plain int
            DEFAULT nextval('plain') CHECK (plain IS NOT NULL));
        INSERT INTO child (parent, plain) SELECT id, 1 FROM "odd ""schema"."Tab le";
        CREATE INDEX ON "odd ""schema"."Tab le" (lower(left("te;xt", 9) COLLATE "C")) WHERE number > 0;
        CREATE VIEW "Vie w" AS SELECT mood, count(*) FROM "odd ""schema"."Tab le" GROUP BY 1;
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
        CREATE TRIGGER tr BEFORE UPDATE ON child FOR EACH ROW EXECUTE FUNCTION f();
        COMMENT ON TABLE child IS 'it''s; a -- comment';
        SELECT nextval('plain'), nextval('plain');
    """
