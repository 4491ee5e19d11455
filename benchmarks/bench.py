"""`make bench`: what the rendered project costs, as ratios against a floor in the same run.

Each pair is measured in turn, floor and project, and the median is shown: machines are shared, so
a ratio says more than a time.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

from copier import run_copy
from copier.errors import DirtyLocalWarning

ROOT = Path(__file__).resolve().parents[1]
TESTS = 300
"""How many tests the per-test cost is measured over."""
ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 5

PLAIN = "async def test_{n}() -> None:\n    assert True\n\n\n"
ON_DATABASE = "async def test_{n}(session) -> None:\n    assert session.is_active\n\n\n"

REQUESTS = dedent("""
    import asyncio, sys, time
    import httpx
    from fastapi import FastAPI

    async def measure(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://b", trust_env=False) as c:
            for _ in range(200):
                await c.get("/health/live")
            started = time.perf_counter()
            for _ in range(2000):
                await c.get("/health/live")
            return (time.perf_counter() - started) / 2000

    if sys.argv[1] == "floor":
        app = FastAPI()

        @app.get("/health/live")
        async def live() -> dict[str, str]:
            return {"status": "ok"}
    else:
        import logging
        logging.basicConfig(level=logging.WARNING)
        from main import create_app
        app = create_app()
    print(asyncio.run(measure(app)))
""")

MEMORY = dedent("""
    import asyncio, resource, sys

    async def start():
        if sys.argv[1] == "floor":
            import asyncpg, fastapi, sqlalchemy.ext.asyncio, uvicorn
            fastapi.FastAPI()
        else:
            import uvicorn
            from main import create_app
            app = create_app()
            async with app.router.lifespan_context(app):
                await app.state.schema.read()

    asyncio.run(start())
    scale = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6)
""")

TABLES, PENDING = 200, 50
"""Of the plan: the live tables, and the revisions that are pending."""

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

COPY_URL = (
    "from core.config import get_settings; "
    "print(get_settings().url.with_database('by_hand').libpq, end='')"
)
EMPTY_COPY = dedent("""
    import subprocess, tempfile
    from core.config import get_settings
    from core.postgres_client import find_client

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
PEAK = dedent("""
    import resource, subprocess, sys
    code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
    scale = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * scale / 1e6)
    sys.exit(0 if code in (0, 3) else code)
""")


class Project:
    """A project rendered with the default answers, installed, migrated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DirtyLocalWarning)
            ref = "HEAD" if (ROOT / ".git").exists() else None
            run_copy(str(ROOT), path, defaults=True, quiet=True, vcs_ref=ref)
        foreign = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "DATABASE_URL"}
        self.environment = {k: v for k, v in os.environ.items() if k not in foreign}
        self.environment["PATH"] += os.pathsep + str(Path(sys.executable).parent)
        self.environment["PYTHONPATH"] = str(path / "src")
        self.environment["PYTEST_DEBUG_TEMPROOT"] = str(path.parent)
        self.run("make", "migrate-up")
        self.python = str(path / ".venv" / "bin" / "python")

    def run(self, *command: str) -> str:
        """Run a command in the project; return what it printed."""
        done = subprocess.run(
            command,
            cwd=self.path,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            sys.exit(f"{command} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def seconds(self, *command: str) -> float:
        """Return how long a command takes."""
        started = time.perf_counter()
        self.run(*command)
        return time.perf_counter() - started

    def pytest(self, text: str) -> float:
        """Return how long pytest takes for a file of this text."""
        file = self.path / "tests" / "test_bench.py"
        file.write_text(text, encoding="utf-8")
        try:
            return self.seconds(self.python, "-m", "pytest", "-q", "tests/test_bench.py")
        finally:
            file.unlink()


def pairs(floor: Callable[[], float], project: Callable[[], float]) -> tuple[float, float]:
    """Measure both in turn; return the medians."""
    measured = [(floor(), project()) for _ in range(ROUNDS)]
    return statistics.median(a for a, _ in measured), statistics.median(b for _, b in measured)


def show(what: str, unit: str, floor: float, project: float, note: str = "") -> None:
    """Print a line of the table."""
    print(f"{what:<44} {floor:>8.3f} {project:>8.3f} {unit:<3} {project / floor:>6.2f} x  {note}")


def main() -> int:
    """Measure and print the table."""
    print(f"{'':<44} {'floor':>8} {'project':>8}")
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder) / "project")
        try:
            measure(project)
        finally:
            project.run("make", "db-stop")
    return 0


def measure(project: Project) -> None:
    """Measure everything in `project`."""
    plain, one = pairs(
        lambda: project.pytest(PLAIN.format(n=1)), lambda: project.pytest(ON_DATABASE.format(n=1))
    )
    note = f"{one - plain:.2f} s for the databases (limit 3)"
    show("pytest: one plain test, one on the database", "s", plain, one, note)
    numbers = range(TESTS)
    plain_all, all_ = pairs(
        lambda: project.pytest("".join(PLAIN.format(n=n) for n in numbers)),
        lambda: project.pytest("".join(ON_DATABASE.format(n=n) for n in numbers)),
    )
    each = ((all_ - one) - (plain_all - plain)) / (TESTS - 1) * 1000
    note = f"{each:.2f} ms a test on top (limit 5)"
    show(f"pytest: {TESTS} plain tests, {TESTS} on the database", "s", plain_all, all_, note)
    imports = "import alembic.command, asyncpg, pydantic_settings, sqlalchemy.ext.asyncio"
    floor, status = pairs(
        lambda: project.seconds(project.python, "-c", imports),
        lambda: project.seconds(project.python, "-m", "core.migrations", "status"),
    )
    show("importing the libraries, migrate-status", "s", floor, status)
    for what, unit, program, scale in (
        ("a request: bare FastAPI, the project", "ms", REQUESTS, 1000.0),
        ("memory: the libraries, the started service", "MB", MEMORY, 1.0),
    ):

        def run(which: str, program: str = program, scale: float = scale) -> float:
            printed = project.run(project.python, "-c", program, which)
            return float(re.split(r"\s+", printed.strip())[-1]) * scale

        floor, ours = pairs(lambda run=run: run("floor"), lambda run=run: run("project"))  # type: ignore[misc]
        show(what, unit, floor, ours)
    measure_plan(project)


def measure_plan(project: Project) -> None:
    """Measure the plan of many revisions against running them."""
    versions = project.path / "migrations" / "versions"
    (versions / "tables.py").write_text(TABLES_REVISION.format(tables=TABLES), encoding="utf-8")
    parents = ["tables", *(f"p{n}" for n in range(PENDING))]
    for n, parent in enumerate(parents[:PENDING]):
        text = PENDING_REVISION.format(n=n, parent=parent)
        (versions / f"p{n}.py").write_text(text, encoding="utf-8")
    plan = [project.python, "-c", PEAK, project.python, "-m", "core.migrations", "plan"]
    peaks, alone = [], []

    def by_hand() -> float:
        """Make an empty copy and run the revisions there, as a person would."""
        started = time.perf_counter()
        project.run(project.python, "-c", EMPTY_COPY)
        copied = time.perf_counter()
        upgrade = [project.python, "-m", "alembic", "upgrade", "head"]
        project.run("env", f"DATABASE_URL={project.run(project.python, '-c', COPY_URL)}", *upgrade)
        done = time.perf_counter()
        alone.append(done - copied)
        return done - started

    def rehearse() -> float:
        started = time.perf_counter()
        peaks.append(float(project.run(*plan)))
        return time.perf_counter() - started

    project.run(project.python, "-m", "alembic", "upgrade", "tables")
    floor, ours = pairs(by_hand, rehearse)
    note = (
        f"limit 2 (with the copy made before: {ours / statistics.median(alone):.1f} x); "
        f"memory {max(peaks):.0f} MB (limit 300)"
    )
    show(f"{PENDING} revisions, {TABLES} tables: by hand, migrate-plan", "s", floor, ours, note)


if __name__ == "__main__":
    sys.exit(main())
