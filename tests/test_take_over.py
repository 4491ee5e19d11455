"""The README's walk through taking over a project that exists, on each of Alembic's kinds."""

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.support import ROOT, Project

from alembic_safety.database.url import DatabaseURL

Database = psycopg.Connection[TupleRow]

_AFTER = (ROOT / "README.md").read_text("utf-8").partition("\n## Taking over a project")[2]
SECTION = _AFTER.partition("\n## ")[0]
WALK, MULTIDB = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
# It keeps its revisions in migrations/, and its version in a table of its own name.
ODD = "async"
# It has its package in src/ already.
SRC = "pyproject"

PYPROJECT = """\
[project]
name = "shop"
version = "3.1"
dependencies = ["idna"]
"""
DB = """\
from sqlalchemy.orm import DeclarativeBase


class Base(DeclarativeBase):
    pass
"""
ACCOUNTS = """\
from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from shop.db import Base


class Account(Base):
    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
"""
NOTES = """

class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"), index=True)
"""
CONFTEST = """\
import pytest


@pytest.fixture
def email():
    return "ada@example.com"
"""
TEST = """\
from shop.models import Account


def test_an_account_has_an_email(email):
    assert Account(email=email).email == "ada@example.com"
"""
NEW_APP = '''\
"""The tables of the app."""

from sqlalchemy.orm import Mapped, mapped_column

from core.models import Base


class Order(Base):
    """An order."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(unique=True)
'''


@dataclass(frozen=True)
class Old:
    """A project as it was before, with a package `shop` and two revisions."""

    project: Project
    kind: str
    url: DatabaseURL
    template: Path

    @property
    def folder(self) -> str:
        """Where its revisions are."""
        return "migrations" if self.kind == ODD else "alembic"

    @property
    def package(self) -> str:
        """Where its models are."""
        return "src/shop" if self.kind == SRC else "shop"

    def write(self, other_url: DatabaseURL) -> None:
        """Write it, a commit a revision; bring its database to the first."""
        project = self.project
        project.path.mkdir()
        project.run("alembic", "init", f"--template={self.kind}", self.folder)
        table = project.path / "pyproject.toml"
        project.write("pyproject.toml", PYPROJECT + (table.read_text() if table.exists() else ""))
        self._fill_in(other_url)
        project.write("README.md", "# Shop\n\nSells things.\n")
        project.write(".gitignore", "__pycache__/\n*.local\n")
        project.write("tests/conftest.py", CONFTEST)
        project.write("tests/test_shop.py", TEST)
        project.write(f"{self.package}/__init__.py", "")
        project.write(f"{self.package}/db.py", DB)
        project.write(f"{self.package}/models.py", ACCOUNTS)
        project.run("alembic", "revision", "--autogenerate", "--message=Add accounts")
        project.commit("Add accounts")
        project.run("alembic", "upgrade", "head")
        project.write(f"{self.package}/models.py", ACCOUNTS + NOTES)
        project.run("alembic", "revision", "--autogenerate", "--message=Add notes")
        project.commit("Add notes")

    def _fill_in(self, other_url: DatabaseURL) -> None:
        """Do what `alembic init` leaves to the person: the URL, the models."""
        driver = "asyncpg" if self.kind.endswith("async") else "psycopg"
        ini = self.project.read("alembic.ini")
        for placeholder, url in {"dbname": self.url, "dbname2": other_url}.items():
            address = url.libpq.replace("postgresql:", f"postgresql+{driver}:").replace("%", "%%")
            ini = ini.replace(f"driver://user:pass@localhost/{placeholder}\n", f"{address}\n")
        self.project.write("alembic.ini", ini)
        if self.kind == SRC:
            table = self.project.read("pyproject.toml")
            self.project.write("pyproject.toml", table.replace('    "."\n', '    "src"\n'))
        env = self.project.read(f"{self.folder}/env.py")
        for placeholder, metadata in {
            "None": "Base.metadata",
            "{}": "dict.fromkeys(('engine1', 'engine2'), Base.metadata)",
        }.items():
            env = env.replace(
                f"\ntarget_metadata = {placeholder}\n",
                f"\nfrom shop.models import Base\n\ntarget_metadata = {metadata}\n",
            )
        if self.kind == ODD:
            argument = "target_metadata=target_metadata"
            env = env.replace(argument, f"{argument}, version_table='shop_version'")
        self.project.write(f"{self.folder}/env.py", env)

    def walk(self) -> str:
        """Return the README's commands, with the names that the test has."""
        walk = WALK.replace("gh:org/tpl", shlex.quote(str(self.template)))
        walk = walk.replace("postgresql://localhost/shop", self.url.libpq)
        walk = walk.replace("stripe>=12", "idna>=3")
        # Nobody is there to answer.
        walk = walk.replace("uvx copier copy ", "copier copy --defaults ")
        left_out = []
        if self.kind == ODD:
            assert "`migrations/` already stay there: only alembic.ini is to be removed" in SECTION
            left_out = ["mv alembic/versions/*.py migrations/versions/"]
            walk = walk.replace("rm -r alembic alembic.ini", "rm alembic.ini")
        if self.kind == SRC:
            left_out = ["mv shop src/"]
        lines = walk.splitlines()
        assert set(left_out) <= set(lines)
        if self.kind == "multidb":
            at = lines.index("make migrate-status")
            lines = [*lines[:at], *MULTIDB.splitlines(), *lines[at:]]
        return "\n".join(line for line in lines if line not in left_out)


@pytest.fixture
def other_url(database: Database, server: DatabaseURL) -> Iterator[DatabaseURL]:
    """The address of a second database, which the kind multidb has."""
    name = f"{database.info.dbname}_other"
    database.execute(f"CREATE DATABASE {name}".encode())
    yield server.with_database(name)
    database.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(params=["generic", "async", "multidb", "pyproject", "pyproject_async"])
def old(
    request: pytest.FixtureRequest,
    template: Path,
    tmp_path: Path,
    database_url: DatabaseURL,
    other_url: DatabaseURL,
) -> Old:
    """A project of each kind, its database at the first revision; and the template beside it."""
    repository = Project(shutil.copytree(template, tmp_path / "repository"))
    repository.commit("A release")
    old = Old(Project(tmp_path / "shop"), str(request.param), database_url, repository.path)
    old.write(other_url)
    return old


def test_the_walk_keeps_revisions_rows_history_and_models(
    old: Old, database: Database, synced: dict[str, str]
) -> None:
    history = old.project.run("alembic", "history").stdout
    second, first = re.findall(r"-> (\w+)", history)
    database.execute("INSERT INTO accounts (email) VALUES ('ada@example.com')")
    if old.kind == ODD:
        assert "rename that table to `alembic_version`" in SECTION
        database.execute("ALTER TABLE shop_version RENAME TO alembic_version")

    project = Project(old.project.path, **synced)
    done = project.run("bash", "-euc", old.walk())
    assert "an alembic.ini is there" in done.stderr
    assert "git init" not in done.stderr
    assert f"current:  {first} (Add accounts)" in done.stdout
    assert re.search(rf"pending:  {second} .* Add notes", done.stdout)
    assert re.findall(r"-> (\w+)", project.alembic("history").stdout) == [second, first]
    check_that_nothing_is_lost(project, old)

    assert f"{first} -> {second}" in project.make("migrate-up").stderr
    check_that_autogenerate_goes_on(project, second)
    project.make("migrate-up")
    project.make("migrate-verify")
    rows = database.execute("SELECT email, text FROM accounts LEFT JOIN notes ON true").fetchall()
    assert rows == [("ada@example.com", None)]
    if old.kind in {"multidb", ODD}:
        tests = project.run("uv", "run", "pytest", "-q", "tests/test_migrations.py", "tests/apps")
        assert "7 passed" in tests.stdout
    if old.kind in {
        SRC,
        ODD,
    }:  # what CI asks of the branch, with revisions as `make check` wants them
        project.make("format")
        check = project.make("migrate-check", "BASE=main")
        assert f"1 new revision from {second}" in check.stdout
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message=Add texts and orders")
    check_that_an_update_works(project, Project(old.template))


def check_that_nothing_is_lost(project: Project, old: Old) -> None:
    """Compare the project with what it was, by its git history."""
    assert project.read("src/shop/models.py") == ACCOUNTS + NOTES
    assert project.read("README.md").startswith("# Shop\n\nSells things.\n")
    assert {"*.local", "/.postgres/"} <= set(project.read(".gitignore").splitlines())
    assert "idna>=3" in project.read("pyproject.toml")
    subjects = project.run("git", "log", "--format=%s").stdout.splitlines()
    assert subjects == ["Start from the template", "Add notes", "Add accounts"]
    tracked = set(project.run("git", "ls-files").stdout.splitlines())
    assert not {"alembic.ini", "alembic/env.py", ".env"} & tracked
    was = project.run("git", "ls-tree", "--name-only", "HEAD~", f"{old.folder}/versions/").stdout
    revisions = project.revisions()
    assert [path.name for path in revisions] == sorted(Path(path).name for path in was.split())
    for revision in revisions:
        log = project.run("git", "log", "--follow", "--format=%s", "--", str(revision)).stdout
        assert log.splitlines()[-1] in {"Add accounts", "Add notes"}


def check_that_autogenerate_goes_on(project: Project, second: str) -> None:
    """Change a model of theirs, add an app as new ones are, and let a revision be written."""
    added = '    text: Mapped[str] = mapped_column(server_default="")\n'
    project.write("src/shop/models.py", project.read("src/shop/models.py") + added)
    project.write("src/apps/orders/models.py", NEW_APP)
    project.make("migrate-create", "MSG=Add texts and orders")
    (new,) = (project.path / "migrations/versions").glob("*_add_texts_and_orders.py")
    text = new.read_text("utf-8")
    assert re.search(rf'^down_revision.* = "{second}"$', text, re.MULTILINE)
    upgrade = text.partition("def upgrade")[2].partition("def downgrade")[0]
    assert re.findall(r"op\.(\w{2,})\(", upgrade) == ["create_table", "add_column"]
    assert "uq_orders_number" in upgrade


def let_old_code_wait(project: Project) -> None:
    """Write into pyproject.toml what the README says of checks of old code."""
    text = " ".join(SECTION.split())
    header = "[tool.ruff.lint.per-file-ignores]\n"
    ignores = re.findall(r'`("[\w/*]+" = \["ALL"\])`', text)
    override = re.search(r"`(\[\[tool.mypy.overrides\]\])` with `(module.*?)` and `(.*?)`", text)
    assert len(ignores) == len(["src", "tests"])
    assert override is not None
    table = project.read("pyproject.toml").replace(
        header, "\n".join([header.strip(), *ignores, ""])
    )
    project.write("pyproject.toml", "\n".join([table, *override.groups(), ""]))


def check_that_an_update_works(project: Project, repository: Project) -> None:
    """Improve what the project has in common with the template, and update."""
    theirs = {
        path: project.read(path)
        for path in project.files()
        if path.startswith(("src/shop", "src/apps", "tests/apps", "migrations/versions"))
    }
    for path, line in {
        "template/src/core/health.py": "# Improved.\n",
        "template/README.md.jinja": "\nImproved.\n",
        "template/.gitignore": "/improved/\n",
    }.items():
        repository.write(path, repository.read(path) + line)
    table = repository.read("template/pyproject.toml.jinja")
    improved = table.replace("[tool.mypy]\n", "[tool.improved]\n\n[tool.mypy]\n")
    repository.write("template/pyproject.toml.jinja", improved)
    repository.commit("An improvement")
    project.run("copier", "update", "--defaults")
    assert project.run("git", "diff", "--name-only", "--diff-filter=U").stdout == ""
    for path in ("src/core/health.py", "README.md", ".gitignore", "pyproject.toml"):
        text = project.read(path)
        assert "mproved" in text, path
        assert "<<<<<<<" not in text, path
    assert project.read("README.md").startswith("# Shop\n")
    assert "*.local" in project.read(".gitignore")
    assert "idna>=3" in project.read("pyproject.toml")
    assert {path: project.read(path) for path in theirs} == theirs
