"""`make migrate-check` in a project's repository, as CI and a developer run it."""

from pathlib import Path

import pytest
from tests.conftest import Render
from tests.support import Project

REVISION = '''"""{message}

Revision ID: {revision}
Revises: {parent}
"""
import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{parent}"


def upgrade() -> None:
    {upgrade}


def downgrade() -> None:
    {downgrade}
'''
HEAD = "3f1c9b7d5a20"


@pytest.fixture
def repository(render: Render) -> Project:
    """A project that was pushed to origin, on no database but its own."""
    project = render()
    project.commit()
    project.run("git", "init", "--quiet", "--bare", "--initial-branch=main", "../origin.git")
    project.run("git", "remote", "add", "origin", "../origin.git")
    project.run("git", "push", "--quiet", "origin", "main")
    return project


def write(
    project: Project,
    revision: str,
    upgrade: str,
    downgrade: str = "pass",
    parent: str = HEAD,
) -> Path:
    text = REVISION.format(
        message="Test", revision=revision, parent=parent, upgrade=upgrade, downgrade=downgrade
    )
    return project.write(f"migrations/versions/20990101_0000_{revision}_test.py", text)


def checks(said: str) -> dict[str, str]:
    """Return how each check ended."""
    lines = [line for line in said.splitlines() if line[:1] not in {" ", ""}]
    return {line[6:24].strip(): line[:5].strip() for line in lines if line[5:6] == " "}


def test_a_fresh_project_passes_and_needs_no_database(repository: Project) -> None:
    repository.environment["DATABASE_URL"] = "postgresql://nobody@127.0.0.1:1/nothing"
    said = repository.make("migrate-check").stdout
    assert set(checks(said).values()) == {"ok"}
    assert "ok    base branch         origin/main" in said
    assert len(said.splitlines()) == 10


def test_what_is_wrong_is_said_by_each_check_and_squawk_advises(repository: Project) -> None:
    write(
        repository,
        "aaaa00000001",
        'op.create_index("ix_name", "users", ["full_name"])',
        'op.drop_index("ix_name")',
    )
    done = repository.make("migrate-check", expect=2)
    ended = checks(done.stdout)
    assert ended["plan"] == "FAIL"
    assert ended["models and schema"] == "FAIL"
    assert ended["up, down, up"] == "ok"
    assert ended["squawk"] == "note"
    assert (
        "aaaa00000001: blocks writes:users: an index of users is built under SHARE" in done.stdout
    )
    assert "aaaa00000001: require-concurrent-index-creation: " in done.stdout
    assert "remove index ix_name" in done.stdout
    assert "CREATE INDEX CONCURRENTLY ix_name ON public.users" in done.stdout


def test_a_revision_beside_one_that_was_merged_is_rebased(repository: Project) -> None:
    write(repository, "aaaa00000001", "pass")
    repository.commit("Mine")
    repository.run("git", "checkout", "--quiet", "-b", "other", "origin/main")
    write(repository, "bbbb00000001", "pass")
    repository.commit("Theirs")
    repository.run("git", "push", "--quiet", "origin", "other:main")
    repository.run("git", "checkout", "--quiet", "main")
    repository.run("git", "merge", "--quiet", "--no-edit", "other")
    done = repository.make("migrate-check", expect=2)
    assert checks(done.stdout)["one head"] == checks(done.stdout)["descent"] == "FAIL"
    assert "`alembic-safety rebase` fixes it" in done.stdout
    assert "follows bbbb00000001 now" in repository.make("migrate-rebase").stdout
    assert set(checks(repository.make("migrate-check").stdout).values()) == {"ok"}


def test_an_edited_revision_is_found(repository: Project) -> None:
    [released] = repository.revisions()
    released.write_text(released.read_text().replace("full_name", "fuller_name"))
    done = repository.make("migrate-check", expect=2)
    assert checks(done.stdout)["released revisions"] == "FAIL"
    assert "differs from origin/main" in done.stdout


DROP = ('op.drop_column("users", "full_name")', 'op.add_column("users", sa.Column("full_name"))')


def test_what_the_base_s_models_do_not_use_may_go(repository: Project) -> None:
    revision = write(repository, "aaaa00000001", *DROP)
    said = repository.make("migrate-check", expect=2).stdout
    assert "breaks running code:users: the column users.full_name is dropped" in said
    models = "src/apps/users/models.py"
    lines = repository.read(models).splitlines(keepends=True)
    repository.write(models, "".join(line for line in lines if "full_name" not in line))
    revision.rename(repository.path / "later.py")
    repository.commit("A release without it")
    repository.run("git", "push", "--quiet", "origin", "main")
    (repository.path / "later.py").rename(revision)
    said = repository.make("migrate-check", expect=2).stdout
    assert "breaks running code" not in said
    assert "destroys data:users: the column users.full_name is dropped" in said
    planned = repository.make("migrate-plan", "DEPLOYED=main", "FROM=base", expect=None).stdout
    assert "breaks running code" not in planned
    assert "no such branch" in repository.make("migrate-plan", "DEPLOYED=x", expect=2).stderr
