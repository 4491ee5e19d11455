"""A rolling deployment: release 1 and the working tree migrate one database at the same time."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.releases import NEWEST, Copies, find_releases
from tests.support import Project, wait_until

from alembic_safety.database.url import DatabaseURL

Database = psycopg.Connection[TupleRow]

OLD = [release.tag for release in find_releases() if release.version < (2, 0, 0)][-1:]
FIRST = "3f1c9b7d5a20"
SECOND = "aaaa00000001"
GATE = 1
"""An advisory lock; a revision goes on when the test releases it."""
REVISION = f'''"""Test"""

import time

from alembic import op
from core.migrations.batches import in_batches

revision = "{SECOND}"
down_revision = "{FIRST}"


def upgrade() -> None:
    {{upgrade}}


def downgrade() -> None:
    {{downgrade}}
'''
WAIT_AT_GATE = (
    f'while not op.get_bind().exec_driver_sql("SELECT pg_try_advisory_lock({GATE})").scalar():\n'
    "        time.sleep(0.05)"
)
UPDATE = "UPDATE numbers SET n = n + 1 WHERE id BETWEEN :first AND :last"
BACKFILL = f'in_batches("{UPDATE}", table="numbers", size=100)'
NUMBERS = """
    CREATE TABLE numbers (id int PRIMARY KEY, n int NOT NULL);
    INSERT INTO numbers SELECT id, 0 FROM generate_series(1, 1000) AS id;
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'the runner stops here'; END $$;
    CREATE TRIGGER refuse BEFORE UPDATE ON numbers FOR EACH ROW WHEN (new.id = 650)
        EXECUTE FUNCTION refuse();
"""

pytestmark = pytest.mark.skipif(not OLD, reason="there is no history with a release 1")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two projects with the same revisions on one database."""

    first: Project
    second: Project

    def write(self, upgrade: str, downgrade: str = "pass") -> None:
        """Write the second revision of both projects."""
        text = REVISION.format(upgrade=upgrade, downgrade=downgrade)
        for project in (self.first, self.second):
            project.write(f"migrations/versions/20990101_0000_{SECOND}_test.py", text)


@pytest.fixture(params=["old-first", "new-first"])
def pair(
    copies: Copies, database_url: DatabaseURL, tmp_path: Path, request: pytest.FixtureRequest
) -> Pair:
    old, new = copies.copy("old", OLD[0]), copies.copy("new", NEWEST)
    # The engine of release 1 is in the project: the environment's library has no part in it.
    old.run("git", "grep", "--quiet", "alembic_safety", expect=1)
    assert [path.name for path in old.revisions()] == [path.name for path in new.revisions()]
    for project in (old, new):
        project.environment["DATABASE_URL"] = database_url.libpq
        project.environment["MIGRATION_BACKUP_FOLDER"] = str(tmp_path / "backups")
    first, second = (old, new) if request.param == "old-first" else (new, old)
    return Pair(first=first, second=second)


class Runner:
    """`alembic upgrade head` in the background."""

    def __init__(self, project: Project) -> None:
        self._log = project.path / "runner.log"
        with self._log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                ["uv", "run", "alembic", "upgrade", "head"],
                cwd=project.path,
                env=project.environment,
                stdout=log,
                stderr=log,
            )

    @property
    def said(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def has_said(self, text: str) -> bool:
        assert self.process.poll() is None, self.said
        return text in self.said


@contextmanager
def running(project: Project) -> Iterator[Runner]:
    runner = Runner(project)
    try:
        yield runner
    finally:
        runner.process.kill()
        runner.process.wait()


def test_one_waits_for_the_other_and_then_finds_nothing_to_do(
    pair: Pair, database: Database
) -> None:
    pair.first.make("migrate-up")
    pair.write(WAIT_AT_GATE)
    database.execute("SELECT pg_advisory_lock(%s)", [GATE])
    with running(pair.first) as holder:
        wait_until(lambda: holder.has_said(f"Running upgrade {FIRST} -> {SECOND}"), 120)
        with running(pair.second) as waiting:
            wait_until(lambda: waiting.has_said("which is migrating this database"), 120)
            database.execute("SELECT pg_advisory_unlock(%s)", [GATE])
            assert holder.process.wait(120) == 0, holder.said
            assert waiting.process.wait(120) == 0, waiting.said
            assert "waiting for pid " in waiting.said
            assert "Running upgrade" not in waiting.said
    applied = database.execute(
        "SELECT count(*) FROM alembic_version_history WHERE revision = %s", [SECOND]
    )
    assert applied.fetchone() == (1,)
    for project in (pair.first, pair.second):
        assert "at head" in project.make("migrate-status").stdout


def test_each_reads_what_the_other_recorded(pair: Pair) -> None:
    pair.write("raise RuntimeError('halfway')")
    pair.first.make("migrate-up", expect=2)
    pair.write("pass")
    pair.second.make("migrate-up")
    pair.first.make("migrate-down", "TO=base")
    pair.second.make("migrate-up")
    first, second = (p.make("migrate-history").stdout for p in (pair.first, pair.second))
    assert first == second
    events = [line.split()[2:4] for line in first.splitlines()]
    up, down = [["upgrade", FIRST], ["upgrade", SECOND]], [["downgrade", SECOND]]
    assert events == [*up, up[1], *down, ["downgrade", FIRST], *up]
    assert first.splitlines()[1].endswith("FAILED: RuntimeError: halfway")


def test_each_lists_and_restores_what_the_other_backed_up(
    pair: Pair, database: Database, database_url: DatabaseURL
) -> None:
    pair.first.make("migrate-up")
    restored = f"{database_url.database}_restored"
    for users, (taking, restoring) in enumerate(
        [(pair.first, pair.second), (pair.second, pair.first)], start=1
    ):
        database.execute(
            "INSERT INTO users (id, email, full_name) VALUES (gen_random_uuid(), %s, 'A')",
            [f"{users}@b.example"],
        )
        name = Path(taking.make("backup").stdout.strip()).name
        listed = restoring.make("backups").stdout.splitlines()
        assert len(listed) == users
        assert f" {name}  verified" in listed[0]
        restoring.make("restore", "BACKUP=latest", f"DATABASE={restored}")
        with psycopg.connect(database_url.with_database(restored).libpq) as connection:
            found = connection.execute("SELECT count(*) FROM users").fetchone()
        database.execute(f"DROP DATABASE {restored}".encode())
        assert found == (users,)


def test_a_backfill_that_one_began_is_finished_by_the_other(pair: Pair, database: Database) -> None:
    pair.first.make("migrate-up")
    database.execute(NUMBERS.encode())
    pair.write(BACKFILL)
    assert "the runner stops here" in pair.first.make("migrate-up", expect=2).stderr
    done = database.execute("SELECT count(*) FROM numbers WHERE n = 1").fetchone()
    assert done == (600,)
    database.execute("DROP TRIGGER refuse ON numbers")
    printed = pair.second.make("migrate-up").stderr
    assert re.search(r"(going on|resuming) after 600, where an earlier run ended", printed)
    assert database.execute("SELECT DISTINCT n FROM numbers").fetchall() == [(1,)]
    assert database.execute("SELECT to_regclass('alembic_backfill')").fetchone() == (None,)
