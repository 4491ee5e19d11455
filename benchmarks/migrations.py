"""What Alembic's commands cost here, beside the project of `alembic init -t pyproject_async`."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from textwrap import dedent

from benchmarks.measure import Benchmark, Row, Sample, interleaved
from benchmarks.projects import Folder, database_url

FIRST = "3f1c9b7d5a20"
"""The one revision that a new project has."""
REVISION = '''"""{message}

Revision ID: {revision}
Revises: {parent}
Create Date: 2026-01-02 00:00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "{revision}"
down_revision: str | Sequence[str] | None = "{parent}"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Bring the schema to this revision."""
    {upgrade}


def downgrade() -> None:
    """Bring the schema back to the revision before."""
    {downgrade}
'''
CREATE_TABLE = """op.create_table(
        "{table}",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_{table}")),
    )"""
DROP_TABLE = 'op.drop_table("{table}")'
ADD_COLUMN = 'op.add_column("{table}", sa.Column("note_{n}", sa.Text(), nullable=True))'
DROP_COLUMN = 'op.drop_column("{table}", "note_{n}")'
REVISIONS_OF_A_TABLE = 4
"""One makes it, the others add a column."""

MODELS = '''"""Models of the benchmark."""

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from core.models import Base, TimestampMixin, UUIDMixin
'''
MODEL = """

class Product{n}(UUIDMixin, TimestampMixin, Base):
    __tablename__ = "products_{n}"
    sku: Mapped[str] = mapped_column(String(40), unique=True)
    name: Mapped[str] = mapped_column(String(200), index=True)
    amount: Mapped[int] = mapped_column(server_default="0")
    comment: Mapped[str | None]
"""
CREATE_MODELS = """from core.models import Base, import_models

    import_models()
    products = [table for name, table in Base.metadata.tables.items() if name != "users"]
    Base.metadata.create_all(op.get_bind(), products)"""
TARGET_METADATA = "from core.models import import_models\ntarget_metadata = import_models()"

WITHOUT = {
    "the lock": """
        from contextlib import nullcontext
        from alembic_safety.run import runner
        runner.migration_lock = lambda *_, **__: nullcontext()
    """,
    "timeouts": """
        from alembic_safety import environment
        from alembic_safety.run import runner
        environment.set_timeouts = runner.set_timeouts = lambda *_: ()
    """,
    "the history": """
        from alembic_safety.database import history
        from alembic_safety.run import runner
        set_timeouts = runner.set_timeouts
        runner.set_timeouts = lambda *given: set_timeouts(*given) and ()
        history.History.write = lambda *_: ()  # the runner compares timeouts with it
    """,
    "the look for blockers": """
        from contextlib import nullcontext
        from alembic_safety.run.blockers import Blockers
        Blockers.watched = lambda *_: nullcontext()
    """,
    "the look for a pooler": """
        from alembic_safety.database import pooler
        async def nothing(*_): pass
        pooler._refuse_transaction_pooler = nothing
    """,
    "checks of indexes": """
        from contextlib import nullcontext
        from alembic_safety.run import resume, runner
        resume.Resumption.active = lambda _: nullcontext()
        runner.invalid_indexes = lambda _: []
    """,
    "checked options": """
        from alembic_safety import project
        project.Project.config = project.AlembicConfig()
        project.Project.options = project.SafetyOptions()
    """,
}
"""Each safety measure, and what replaces it by nothing before env.py runs."""
UPGRADE, CURRENT = ("-m", "alembic", "upgrade", "head"), ("-m", "alembic", "current")
ALEMBIC = "from alembic.config import main; main(prog='alembic')"
IMPORTS_OF_FLOOR = (
    "import asyncio, logging.config, alembic.config, alembic.context, sqlalchemy.ext.asyncio, "
    "sqlalchemy.dialects.postgresql.asyncpg, asyncpg"
)
IMPORTS_OF_ENV = f"""
{IMPORTS_OF_FLOOR}
import re
# context can be imported by what Alembic runs alone.
with open("migrations/env.py", encoding="utf-8") as env:
    exec("".join(line for line in env if re.match("(from|import) (?!alembic import context)", line)))
"""


class _Side:
    """One of the two projects, with a database of its own on the same server."""

    def __init__(self, folder: Folder, server: Folder) -> None:
        self.folder = folder
        self._server = server
        self._name = f"bench_{folder.path.name}"
        self._versions = folder.path / "migrations" / "versions"
        self._written: list[Path] = []
        self.environment_file = folder.path / "migrations" / "env.py"
        self.url = database_url(server, self._name)
        self._any_url = database_url(server, "postgres")
        find = "from alembic_safety.backup.clients import find_client; print(find_client('psql', None))"
        self._psql = server.run(server.python, "-c", find).strip()

    def python(self, *arguments: str) -> Sample:
        """Measure `python ...`, which finds the database in the environment."""
        return self.folder.measure(*arguments, DATABASE_URL=self.url)

    def from_empty(self, *arguments: str) -> Sample:
        """Measure `python ...` on the database, which is made anew before."""
        drop, make = f"DROP DATABASE IF EXISTS {self._name}", f"CREATE DATABASE {self._name}"
        self._server.run(self._psql, "-q", "-d", self._any_url, "-c", drop, "-c", make)
        return self.python(*arguments)

    def write(self, name: str, text: str) -> None:
        """Write a revision."""
        file = self._versions / name
        file.write_text(text, encoding="utf-8")
        self._written.append(file)

    def forget(self) -> None:
        """Delete the revisions that were written."""
        while self._written:
            self._written.pop().unlink()


def measure(bench: Benchmark, project: Folder) -> None:
    """Measure commands with nothing to do, chains from empty, what each measure costs, check."""
    sides = {
        "floor": _Side(_make_stock(project), project),
        "project": _Side(project, project),
    }
    _set_url(sides["floor"])
    one, few, many = bench.of(1, 2), bench.of(100, 2), bench.of(1000, 2)
    try:
        for number in dict.fromkeys((one, few, many)):
            _write_chain(sides.values(), number)
            _from_empty(bench, sides, number)
            _nothing_to_do(bench, sides, number)
            if number == few:
                _each_measure(bench, sides, number)
            for side in sides.values():
                side.forget()
        _check(bench, sides)
    finally:
        for side in sides.values():
            side.forget()


def _make_stock(project: Folder) -> Folder:
    """Make what `alembic init` makes; it runs in the project's environment, with its imports."""
    path = project.path.parent / "stock"
    path.mkdir()
    floor = Folder(path, project.python, project.environment)
    floor.run(floor.python, "-m", "alembic", "init", "-t", "pyproject_async", "migrations")
    for revision in (project.path / "migrations" / "versions").glob("*.py"):
        shutil.copy(revision, path / "migrations" / "versions")
    return floor


def _set_url(floor: _Side) -> None:
    """Write the database's address where the stock env.py looks for it."""
    address = floor.url.replace("postgresql:", "postgresql+asyncpg:").replace("%", "%%")
    ini = floor.folder.path / "alembic.ini"
    text = ini.read_text(encoding="utf-8")
    ini.write_text(text.replace("driver://user:pass@localhost/dbname", address), "utf-8")


def _write_chain(sides: Iterable[_Side], number: int) -> None:
    """Let both have the same `number` of revisions: each makes a table, or adds a column to one."""
    parent = FIRST
    for n in range(1, number):
        of_table = (n - 1) % REVISIONS_OF_A_TABLE
        table = f"orders_{n - of_table}"
        made, dropped = (ADD_COLUMN, DROP_COLUMN) if of_table else (CREATE_TABLE, DROP_TABLE)
        revision = f"{n:012x}"
        text = REVISION.format(
            message=f"Change {table}",
            revision=revision,
            parent=parent,
            upgrade=made.format(table=table, n=n),
            downgrade=dropped.format(table=table, n=n),
        )
        for side in sides:
            side.write(f"20260102_0000_{revision}_change_{table}.py", text)
        parent = revision


def _from_empty(bench: Benchmark, sides: Mapping[str, _Side], number: int) -> None:
    runs = {name: partial(side.from_empty, *UPGRADE) for name, side in sides.items()}
    interleaved(runs, 1)  # the byte code is written
    if number > 1:
        measured = interleaved(runs, bench.of(3, 1))
        bench.add(
            Row.of(f"upgrade head from empty, {number} revisions", "s", measured, at_most=1.15)
        )


def _nothing_to_do(bench: Benchmark, sides: Mapping[str, _Side], number: int) -> None:
    """Measure what only asks, of a database that is at head."""
    status = ("-m", "alembic_safety", "status")
    for name, arguments, ours, at_most in (
        ("upgrade head, nothing to do", UPGRADE, UPGRADE, 1.15),
        ("current", CURRENT, CURRENT, 1.15),
        ("current, make migrate-status", CURRENT, status, None),
    ):
        runs = {
            "floor": partial(sides["floor"].python, *arguments),
            "project": partial(sides["project"].python, *ours),
        }
        measured = interleaved(runs, bench.of(7, 1))
        bench.add(Row.of(f"{name}, {number} revisions", "s", measured, at_most=at_most))


def _each_measure(bench: Benchmark, sides: Mapping[str, _Side], number: int) -> None:
    """Measure what each of the safety measures costs: a run without it, beside one with all."""
    floor, project = sides["floor"], sides["project"]
    rounds = bench.of(5, 1)
    runs = {"": partial(project.from_empty, "-c", ALEMBIC, *UPGRADE[2:])}
    for name, replaced in WITHOUT.items():
        code = f"{dedent(replaced)}\n{ALEMBIC}"
        runs[name] = partial(project.from_empty, "-c", code, *UPGRADE[2:])
    measured = _least(runs, rounds)
    whole = measured.pop("")
    pairs = {name: (without, whole) for name, without in measured.items()}

    stock = floor.environment_file.read_text(encoding="utf-8")
    each_commits = stock.replace(
        "(connection=connection,", "(connection=connection, transaction_per_migration=True,"
    )

    def upgrade_with(environment: str) -> Sample:
        floor.environment_file.write_text(environment, encoding="utf-8")
        return floor.from_empty(*UPGRADE)

    more = _least(
        {
            "one transaction": partial(upgrade_with, stock),
            "many": partial(upgrade_with, each_commits),
            "imports of the floor": partial(floor.python, "-c", IMPORTS_OF_FLOOR),
            "of the project": partial(project.python, "-c", IMPORTS_OF_ENV),
        },
        rounds,
    )
    floor.environment_file.write_text(stock, encoding="utf-8")
    pairs["a transaction each"] = more["one transaction"], more["many"]
    pairs["imports of env.py"] = more["imports of the floor"], more["of the project"]
    for name, (without, with_it) in pairs.items():
        cost = (with_it.value - without.value) * 1000
        text = f"{number}, without, with {name}"
        bench.add(Row(text, "s", without, with_it, difference=(cost, "ms")))


def _least(things: Mapping[str, Callable[[], Sample]], rounds: int) -> dict[str, Sample]:
    """Measure each in turn; return the quickest run of each, as differences of few ms are sought."""
    samples = [{name: measure() for name, measure in things.items()} for _ in range(rounds)]
    return {name: min((one[name] for one in samples), key=lambda run: run.value) for name in things}


def _check(bench: Benchmark, sides: Mapping[str, _Side]) -> None:
    """Measure the comparison of the models with a database that has the same tables."""
    number = bench.of(200, 5)
    check = ("-m", "alembic", "check")
    app = sides["project"].folder.path / "src" / "apps" / "products"
    app.mkdir()
    models = MODELS + "".join(MODEL.format(n=n) for n in range(number))
    (app / "models.py").write_text(models, encoding="utf-8")
    text = REVISION.format(
        message="Products",
        revision="products",
        parent=FIRST,
        upgrade=CREATE_MODELS,
        downgrade="pass",
    )
    environment = sides["floor"].environment_file
    stock = environment.read_text(encoding="utf-8")
    environment.write_text(stock.replace("target_metadata = None", TARGET_METADATA), "utf-8")
    try:
        for side in sides.values():
            side.write("products.py", text)
            side.from_empty(*UPGRADE)
        runs = {name: partial(side.python, *check) for name, side in sides.items()}
        interleaved(runs, 1)  # the byte code is written
        measured = interleaved(runs, bench.of(7, 1))
    finally:
        shutil.rmtree(app)
    bench.add(Row.of(f"check, {number} tables", "s", measured, at_most=1.1))
