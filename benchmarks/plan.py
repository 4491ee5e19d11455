"""What `make migrate-plan` costs, beside running the revisions on a copy by hand."""

import time
from textwrap import dedent

from benchmarks.measure import Benchmark, Row, Sample, interleaved
from benchmarks.projects import Folder, database_url, revisions

TABLES_REVISION = """
from alembic import op
revision = "tables"
down_revision = "3f1c9b7d5a20"


def upgrade() -> None:
    for n in range({tables}):
        op.execute(
            f"CREATE TABLE t{{n}} (id bigint PRIMARY KEY, name text, kind int, at timestamptz, data jsonb)"
        )
        op.execute(f"CREATE INDEX ix_t{{n}} ON t{{n}} (kind, at)")


def downgrade() -> None:
    for n in range({tables}):
        op.execute(f"DROP TABLE t{{n}}")
"""
PENDING_REVISION = """
from alembic import op
revision = "p{n}"
down_revision = "{parent}"


def upgrade() -> None:
    op.execute("ALTER TABLE t{n} ADD COLUMN note text")
    op.execute("ALTER TABLE t{n} ADD CONSTRAINT ck_t{n} CHECK (kind > 0) NOT VALID")
    op.execute("CREATE INDEX ix_t{n}_note ON t{n} (note)")
    op.execute("CREATE TABLE n{n} (id bigint PRIMARY KEY, t_id bigint REFERENCES t{n})")


def downgrade() -> None:
    op.execute("DROP TABLE n{n}")
    op.execute("ALTER TABLE t{n} DROP COLUMN note, DROP CONSTRAINT ck_t{n}")
"""
EMPTY_COPY = dedent("""
    import subprocess, tempfile
    from core.config import get_settings
    from alembic_safety.backup.clients import find_client

    url = get_settings().url
    psql, dump, restore = (find_client(name, url) for name in ("psql", "pg_dump", "pg_restore"))
    copy = url.with_database("by_hand").libpq
    commands = ["-c", "DROP DATABASE IF EXISTS by_hand", "-c", "CREATE DATABASE by_hand"]
    subprocess.run([psql, "-q", "-d", url.libpq, *commands], check=True)
    with tempfile.NamedTemporaryFile() as file:
        schema = ["--schema-only", "-d", url.libpq]
        subprocess.run([dump, "-Fc", f"--file={file.name}", *schema], check=True)
        subprocess.run([restore, "--jobs=4", "-d", copy, file.name], check=True)
    version = ["-c", "INSERT INTO alembic_version VALUES ('tables')"]
    subprocess.run([psql, "-q", "-d", copy, *version], check=True)
""")
UNSAFE = 3
"""The exit code of a plan that found something unsafe."""


def measure(bench: Benchmark, project: Folder) -> None:
    """Measure the plan of many revisions against running them."""
    tables, pending = bench.of(200, 20), bench.of(50, 5)
    texts = {"tables": TABLES_REVISION.format(tables=tables)}
    for n in range(pending):
        texts[f"p{n}"] = PENDING_REVISION.format(n=n, parent=f"p{n - 1}" if n else "tables")
    url = database_url(project, "by_hand")

    def by_hand() -> Sample:
        """Make an empty copy and run the revisions there, as a person would."""
        started = time.perf_counter()
        project.run(project.python, "-c", EMPTY_COPY)
        copied = time.perf_counter() - started
        run = project.measure("-m", "alembic", "upgrade", "head", DATABASE_URL=url)
        return Sample(copied + run.value, run.memory)

    def rehearse() -> Sample:
        return project.measure("-m", "alembic_safety", "plan", allowed=UNSAFE)

    with revisions(project, texts):
        project.run(project.python, "-m", "alembic", "upgrade", "tables")
        measured = interleaved({"floor": by_hand, "project": rehearse}, bench.of(3, 1))
        project.run(project.python, "-m", "alembic", "downgrade", "3f1c9b7d5a20")
    name = f"{pending} revisions, {tables} tables: by hand, plan"
    bench.add(Row.of(name, "s", measured, at_most=2))
