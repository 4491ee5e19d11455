"""A plan against the commit that is deployed, from before an update or broken."""

from collections.abc import Callable

import pytest
from tests.releases import Copies, Release, find_releases
from tests.support import Project

from alembic_safety.database.url import DatabaseURL

RELEASES = [release for release in find_releases() if release.version < (2, 0, 0)]
DROP = '''"""Drop the name

Revision ID: aaaa00000001
Revises: 3f1c9b7d5a20
"""

import sqlalchemy as sa
from alembic import op

revision = "aaaa00000001"
down_revision = "3f1c9b7d5a20"


def upgrade() -> None:
    op.drop_column("users", "full_name")


def downgrade() -> None:
    op.add_column("users", sa.Column("full_name", sa.String(200)))
'''
BREAKS = "breaks running code: the column users.full_name is dropped"


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.tag)
def test_models_are_found_in_a_commit_that_does_not_say_where_they_are(
    copies: Copies, release: Release, database_url: DatabaseURL
) -> None:
    old, project = copies.copy("old", release.tag), copies.updated("project", release.tag)
    old.environment["DATABASE_URL"] = project.environment["DATABASE_URL"] = database_url.libpq
    assert "metadata = " not in old.read("pyproject.toml")
    old.make("migrate-up")
    project.run("git", "tag", "deployed")
    models = "src/apps/users/models.py"
    lines = project.read(models).splitlines(keepends=True)
    project.write(models, "".join(line for line in lines if "full_name" not in line))
    project.commit("Update, and use the name no more")
    project.write("migrations/versions/20990101_0000_aaaa00000001_drop_the_name.py", DROP)

    def plan(deployed: str) -> str:
        return " ".join(
            project.make("migrate-plan", f"DEPLOYED={deployed}", expect=2).stdout.split()
        )

    assert BREAKS in plan("deployed")
    without = plan("main")
    assert "breaks running code" not in without
    assert "destroys data: the column users.full_name is dropped" in without


def break_key(text: str) -> str:
    return text.replace('metadata = "core.models:', 'metadata = "core.moved:')


def break_toml(text: str) -> str:
    return f"= 1\n{text}"


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (
            break_key,
            "its [tool.alembic.safety] has metadata = 'core.moved:import_models', and there is no ",
        ),
        (
            break_toml,
            "its pyproject.toml is not valid TOML: Invalid statement (at line 1, column 1)",
        ),
    ],
)
def test_a_commit_that_does_not_say_where_its_models_are_is_refused(
    project: Project, break_it: Callable[[str], str], says: str
) -> None:
    text = project.read("pyproject.toml")
    project.write("pyproject.toml", break_it(text))
    project.commit("Broken")
    project.write("pyproject.toml", text)
    said = project.make("migrate-plan", "DEPLOYED=main", expect=2).stderr
    assert said.startswith(f"DEPLOYED=main: {says}")
    assert "Traceback" not in said
