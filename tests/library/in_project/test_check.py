"""The gate for CI: what `make migrate-check` reports, and `make migrate-rebase` fixes."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.pool import NullPool
from tests.inside.support import Project

from alembic_safety import cli as migrations
from alembic_safety import project as safety
from alembic_safety.check import gate, models
from alembic_safety.config import make_config
from alembic_safety.database.url import DatabaseURL
from core.database import create_engine
from core.project import ROOT

GIT = shutil.which("git") or ""
needs_git = pytest.mark.skipif(not GIT, reason="git is not installed")

Command = Callable[..., tuple[int, str]]

# What `alembic revision --autogenerate` of stock Alembic writes for a table with an Enum.
WITH_ENUM = """
import sqlalchemy as sa
from alembic import op
from core.project import ROOT

revision = "b2"
down_revision = "a1"


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Enum("retail", "bulk", name="kind"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def downgrade() -> None:
    op.drop_table("orders")
"""


@pytest.fixture
def command(
    project: Project,
    commands: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Run a command on the test's own revisions: returns the exit code and what was printed."""
    monkeypatch.setattr(safety.Project, "root", project.folder)
    monkeypatch.setattr(gate, "read_models", lambda *_, **__: None)
    # The models have other tables than these revisions. The comparison has a test of its own.
    monkeypatch.setattr(gate, "compare_with_models", lambda *_: [])

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = migrations.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def git(project: Project, *arguments: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    subprocess.run([GIT, *identity, *arguments], cwd=project.folder, check=True)


@pytest.fixture
def committed(project: Project) -> Project:
    """A repository whose main has the revision a1, in a file called as the template says."""
    add(project, "a1")
    git(project, "init", "--quiet", "--initial-branch=main")
    commit(project)
    return project


def add(project: Project, revision: str, parent: str | None = None, upgrade: str = "pass") -> Path:
    project.write(revision, parent, upgrade)
    path = project.folder / f"{revision}.py"
    return path.rename(project.folder / f"20260101_0000_{revision}_test.py")


def commit(project: Project) -> None:
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=Commit")


def line(said: str, check: str) -> str:
    [found] = [line for line in said.splitlines() if line[6:].startswith(check)]
    return found[:4].strip()


@needs_git
def test_of_good_revisions_each_check_says_ok(committed: Project, command: Command) -> None:
    add(committed, "b2", "a1")
    code, said = command("check", "--base=main")
    assert code == 0, said
    assert {line(said, check) for check in ("one head", "descent", "up, down", "plan")} == {"ok"}
    assert "1 new revision after a1" in said


@needs_git
def test_every_check_is_made_and_says_what_is_wrong(committed: Project, command: Command) -> None:
    first = committed.folder / "20260101_0000_a1_test.py"
    first.write_text(first.read_text().replace("sa.Integer", "sa.Text"))
    add(committed, "b2", "a1", "op.create_index('ix', 't_a1', ['id'])")
    committed.write("c3", "a1", "op.add_column('t_a1', sa.Column('x', sa.Text))")
    code, said = command("check", "--base=main")
    assert code == 1
    for check in ("one head", "file names", "released", "up, down", "plan"):
        assert line(said, check) == "FAIL", said
    for problem in (
        "2 heads: b2, c3",
        "c3.py: is not named as file_template says",
        "a1_test.py: differs from main",
        "the downgrade leaves ",
        "b2: blocks writes:t_a1",
        "CREATE INDEX CONCURRENTLY ix ON public.t_a1",
    ):
        assert problem in said


@needs_git
def test_a_wrong_timeout_of_a_revision_is_refused(committed: Project, command: Command) -> None:
    file = add(committed, "b2", "a1")
    file.write_text(file.read_text() + "\nlock_timeout = 5\n")
    code, said = command("check", "--base=main")
    assert code == 1
    assert line(said, "up, down") == "FAIL"
    assert "b2_test.py: lock_timeout: expected a duration such as" in said


@needs_git
def test_comments_and_the_format_of_released_revisions_may_change(
    committed: Project, command: Command
) -> None:
    first = committed.folder / "20260101_0000_a1_test.py"
    first.write_text(first.read_text().replace("pass", "pass  # nothing"))
    assert line(command("check", "--base=main")[1], "released") == "ok"
    annotated = first.read_text().replace("down_revision =", "down_revision: str | None =")
    imports = "from typing import Union\nimport sqlalchemy as sa"
    first.write_text(annotated.replace("import sqlalchemy as sa", imports))
    assert line(command("check", "--base=main")[1], "released") == "ok"
    first.unlink()
    _, said = command("check", "--base=main")
    assert "is deleted, and was released in main" in said


@needs_git
def test_released_revisions_keep_their_names_wherever_they_were(
    project: Project, command: Command
) -> None:
    released = project.folder / "old" / "versions" / "a1.py"
    released.parent.mkdir(parents=True)
    project.write("a1")
    (project.folder / "a1.py").rename(released)
    git(project, "init", "--quiet", "--initial-branch=main")
    commit(project)
    released.rename(project.folder / "a1.py")
    add(project, "b2", "a1")
    code, said = command("check", "--base=main")
    assert code == 0, said
    assert "1 revision in main" in said
    assert "1 new revision after a1" in said


def test_what_can_t_be_imported_is_named_and_the_rest_is_skipped(
    project: Project, command: Command
) -> None:
    add(project, "a1")
    (project.folder / "20260101_0000_b2_test.py").write_text("x = (")
    (project.folder / "20260101_0000_c3_test.py").write_text('revision = "c3"\n')
    code, said = command("check")
    assert code == 1
    assert "20260101_0000_b2_test.py:1: SyntaxError" in said
    assert "20260101_0000_c3_test.py: has no upgrade and no downgrade" in said
    assert line(said, "up, down") == "skip"
    assert line(said, "base branch") == "skip"


@needs_git
def test_a_revision_that_fails_halfway_is_named(committed: Project, command: Command) -> None:
    add(committed, "b2", "a1", "raise RuntimeError('halfway')")
    add(committed, "c3", "b2")
    code, said = command("check", "--base=main")
    assert code == 1
    assert "RuntimeError: halfway" in said
    assert "1 revision after it not tried" in said


def add_with_enum(project: Project, downgrade: str = "") -> None:
    path = project.folder / "20260101_0000_b2_test.py"
    path.write_text(WITH_ENUM + downgrade)
    add(project, "c3", "b2")


@needs_git
@pytest.mark.parametrize(
    "drop",
    [
        'sa.Enum(name="kind").drop(op.get_bind())',
        'sa.Enum("retail", "bulk", name="kind").drop(op.get_bind(), checkfirst=False)',
        'op.execute("DROP TYPE kind")',
    ],
)
def test_an_enum_that_its_downgrade_drops_passes(
    committed: Project, command: Command, drop: str
) -> None:
    add_with_enum(committed, f"    {drop}\n")
    code, said = command("check", "--base=main")
    assert code == 0, said
    assert "3 revisions, the schema as before each time" in said


@needs_git
def test_an_enum_that_its_downgrade_leaves_behind_is_named(
    committed: Project, command: Command
) -> None:
    add_with_enum(committed)
    code, said = command("check", "--base=main")
    assert code == 1
    assert line(said, "up, down") == line(said, "plan") == "FAIL"
    assert "20260101_0000_b2_test.py: the downgrade leaves type kind" in said
    assert "b2: applied again: " in said
    assert 'type "kind" already exists' in said
    assert "b2: cannot be undone: the downgrade leaves type kind" in said


def test_a_base_that_is_not_there_is_said(project: Project, command: Command) -> None:
    add(project, "a1")
    code, said = command("check", "--base=nowhere")
    assert code == 1
    assert "BASE=nowhere: there is no such branch or commit here" in said
    assert command("rebase", "--base=nowhere")[0] == 1
    assert "there is no base branch here" in command("rebase")[1]


@needs_git
def test_rebase_lets_new_revisions_follow_the_base(committed: Project, command: Command) -> None:
    git(committed, "checkout", "--quiet", "-b", "feature")
    new = add(committed, "b2", "a1")
    add(committed, "c3", "b2")
    commit(committed)
    git(committed, "checkout", "--quiet", "main")
    add(committed, "d4", "a1")
    commit(committed)
    git(committed, "checkout", "--quiet", "feature")
    _, said = command("check", "--base=main")
    assert "follows a1, but main is at d4; `alembic-safety rebase` fixes it" in said
    assert "merge it first" in command("rebase", "--base=main")[1]
    git(committed, "merge", "--quiet", "--no-edit", "main")
    code, said = command("rebase", "--base=main")
    assert (code, said) == (0, f"{new.name}: follows d4 now\n")
    assert 'down_revision = "d4"' in new.read_text()
    assert command("rebase", "--base=main")[1] == "Every new revision follows main already.\n"
    code, said = command("check", "--base=main")
    assert code == 0, said


async def test_models_that_differ_are_named(database_url: DatabaseURL) -> None:
    engine = create_engine(database_url, poolclass=NullPool)
    loaded = safety.Project.load(make_config(ROOT))
    async with engine.connect() as connection:
        await connection.execute(text("CREATE TABLE nobodys (id int)"))
        await connection.commit()
        problems = await connection.run_sync(models.compare_with_models, loaded)
    assert "remove table nobodys" in problems
    modified: list[tuple[object, ...]] = [
        ("modify_nullable", None, "users", "name", {}, True, False)
    ]
    assert models.describe_diff(modified) == "modify nullable users.name"


@needs_git
def test_what_acknowledges_that_it_can_t_be_undone_passes(
    committed: Project, command: Command
) -> None:
    module = "acknowledged = {'cannot be undone': 'the old rows are gone'}"
    committed.write("b2", "a1", "pass", module=module)
    path = committed.folder / "b2.py"
    path.write_text(path.read_text().replace("op.execute(", "raise NotImplementedError("))
    path.rename(committed.folder / "20260101_0000_b2_test.py")
    add(committed, "c3", "b2")
    code, said = command("check", "--base=main")
    assert code == 0, said


@needs_git
def test_files_of_other_systems_are_read_and_kept(committed: Project, command: Command) -> None:
    git(committed, "checkout", "--quiet", "-b", "feature")
    path = add(committed, "b2", "a1", "op.execute('DROP TABLE t_a1')")
    windows = path.read_text().replace("\n", "\r\n").encode("utf-8-sig")
    path.write_bytes(windows)
    code, said = command("check", "--base=main")
    assert code == 1
    assert "destroys data:t_a1" in said
    git(committed, "stash", "--quiet", "--include-untracked")
    git(committed, "checkout", "--quiet", "main")
    add(committed, "d4", "a1")
    commit(committed)
    git(committed, "checkout", "--quiet", "feature")
    git(committed, "merge", "--quiet", "main")
    git(committed, "stash", "pop", "--quiet")
    assert command("rebase", "--base=main")[0] == 0
    assert path.read_bytes() == windows.replace(b"down_revision = 'a1'", b'down_revision = "d4"')


@needs_git
def test_what_is_no_literal_is_named(committed: Project, command: Command) -> None:
    path = add(committed, "b2", "a1")
    path.write_text(path.read_text().replace("down_revision = 'a1'", "down_revision = 'a' + '1'"))
    code, said = command("check", "--base=main")
    assert code == 1
    assert "revision and down_revision have to be literals" in said
