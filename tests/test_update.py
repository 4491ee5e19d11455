"""`copier update`: from every release to the working tree, of projects as people have them."""

import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.releases import DEFAULTS, NEWEST, Answers, Copies, Release, find_releases
from tests.support import Project

from alembic_safety.database.url import DatabaseURL

RELEASES = find_releases()
each_release = pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.tag)
SMALLEST: Answers = MappingProxyType(
    {"example_app": "false", "ci": "none", "container_files": "false"}
)
GITLAB: Answers = MappingProxyType(
    {"project_name": '{{ 7 * 7 }} "q" $(id) 日本', "ci": "gitlab", "postgres_version": "16"}
)
ANSWERS = {"defaults": DEFAULTS, "smallest": SMALLEST, "gitlab": GITLAB}

ORDERS = {
    "src/apps/orders/__init__.py": '"""Orders."""\n',
    "src/apps/orders/models.py": '''"""Tables."""

from sqlalchemy.orm import Mapped, mapped_column

from core.models import Base, TimestampMixin, UUIDMixin


class Order(UUIDMixin, TimestampMixin, Base):
    __tablename__ = "orders"

    amount: Mapped[int] = mapped_column()
''',
    "src/apps/orders/config.py": '''"""Settings."""

from functools import cache

from core.config import AnySettings, read_settings


class OrderSettings(AnySettings):
    orders_per_page: int = 20


@cache
def get_order_settings() -> OrderSettings:
    return read_settings(OrderSettings)
''',
    "src/apps/orders/router.py": '''"""Routes."""

from fastapi import APIRouter
from sqlalchemy import func, select

from apps.orders.config import get_order_settings
from apps.orders.models import Order
from core.dependencies import SessionDep

router = APIRouter(prefix="/orders", tags=["orders"])


@router.get("/count")
async def count(session: SessionDep) -> dict[str, int | None]:
    found = await session.scalar(select(func.count()).select_from(Order))
    return {"found": found, "per_page": get_order_settings().orders_per_page}
''',
    "tests/apps/orders/test_orders.py": '''"""Orders."""

import httpx


async def test_orders_are_counted(client: httpx.AsyncClient) -> None:
    answer = await client.get("/orders/count")
    assert answer.json() == {"found": 0, "per_page": 20}
''',
}
OWN = {
    **ORDERS,
    "Makefile.local": "CHECK_ALSO = own-check\nTEST_ALSO = own-check\n\nown-check: ## Check what is mine\n\t@echo mine is well\n",
    "compose.override.yaml": "services:\n  api:\n    environment:\n      LOG_LEVEL: DEBUG\n",
    ".github/workflows/own.yml": "name: own\non: workflow_dispatch\njobs: {}\n",
    "docs/our-rules.md": "# Our rules\n",
}
"""Files that are nobody's but the person's."""
WRITTEN_ONCE = ("src/apps/", "tests/apps/", "migrations/versions/", "deploy/hooks.sh")
"""Where the files begin that a copy writes, and no update touches."""
EDITS = {
    "pyproject.toml": (
        ('version = "0.1.0"', 'version = "3.2.1"'),
        ('lock_timeout = "2s"', 'lock_timeout = "3s"'),
        ("`uv add` writes them here.\n", '`uv add` writes them here.\n    "itsdangerous>=2.2",\n'),
        ("tables go below.\n", 'tables go below.\n\n[tool.mine]\nkey = "value"\n'),
    ),
    ".env.example": (("# The project's own\n", "# The project's own\n#ORDERS_PER_PAGE=20\n"),),
    "README.md": (
        ("An async FastAPI service", "It takes orders.\n\nAn async FastAPI service"),
        ("## More\n", "## Who we are\n\nThe team of orders.\n\n## More\n"),
    ),
    "src/core/logging.py": (("%H:%M:%S", "%H.%M.%S"),),
}
"""What people change in files that the template has, too."""


def contents(project: Project) -> dict[str, bytes]:
    """Return all files but those that git ignores."""
    listed = project.run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    paths = sorted(filter(None, listed.stdout.split("\0")))
    return {p: (project.path / p).read_bytes() for p in paths if (project.path / p).exists()}


def require_clean_merge(project: Project) -> None:
    for path, content in contents(project).items():
        assert not path.endswith(".rej"), path
        assert not re.search(b"^(<<<<<<<|>>>>>>>) ", content, re.MULTILINE), path


def edit(project: Project) -> None:
    """Make the project a person's: files of their own, and edits in those of the template."""
    for path, text in OWN.items():
        project.write(path, text)
    for path, changes in EDITS.items():
        text = project.read(path)
        for old, new in changes:
            assert old in text, (path, old)
            text = text.replace(old, new, 1)
        project.write(path, text)


def rows(database: psycopg.Connection[TupleRow]) -> dict[str, list[TupleRow]]:
    names = database.execute(
        "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'"
        " AND tablename NOT LIKE 'alembic%' ORDER BY 1"
    ).fetchall()
    return {
        name: database.execute(f"SELECT t::text FROM {name} t ORDER BY 1".encode()).fetchall()  # noqa: S608
        for (name,) in names
    }


def test_there_are_releases_to_update_from() -> None:
    assert RELEASES, "no release was found: is the whole history here (git fetch --unshallow)?"
    assert RELEASES[0].version == (1, 0, 0)


def names_of(project: Project) -> Callable[[], None]:
    """Return what fails unless the project, called shop by its answers, has the names it has now."""
    compose = project.read("compose.yaml")
    name = tomllib.loads(project.read("pyproject.toml"))["project"]["name"]

    def require_names() -> None:
        document = tomllib.loads(project.read("pyproject.toml"))
        assert document["project"]["name"] == name
        assert document["tool"]["service"]["name"] == "shop"
        assert re.findall("shop", project.read("compose.yaml")) == re.findall("shop", compose)
        assert project.run("python3", "deploy/service.py", "name").stdout == "shop\n"

    return require_names


def of_the_person(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: text for path, text in files.items() if path.startswith(WRITTEN_ONCE)}


def of_the_template(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: text for path, text in files.items() if not path.startswith(WRITTEN_ONCE)}


@each_release
@pytest.mark.parametrize("answers", ANSWERS.values(), ids=ANSWERS)
def test_an_untouched_project_becomes_what_a_fresh_copy_is(
    copies: Copies, release: Release, answers: Answers
) -> None:
    old = copies.copy("old", release.tag, answers)
    project = copies.updated("project", release.tag, answers)
    # Projects of release 1 have their slug as the name in pyproject.toml, and keep it.
    kept_name = {"keep_name": "true"} if release.version < (2, 0, 0) else {}
    fresh = contents(copies.copy("fresh", NEWEST, {**answers, **kept_name}))
    after = contents(project)
    # The example app is written once, and belongs to the owner from then on.
    assert of_the_template(after) == of_the_template(fresh)
    assert of_the_person(after) == of_the_person(contents(old))
    answered = old.read(".copier-answers.yml").splitlines()
    kept = [line for line in answered if not line.startswith("_commit")]
    assert set(kept) <= set(project.read(".copier-answers.yml").splitlines())


@each_release
@pytest.mark.parametrize("deleted", [False, True], ids=["with-example", "without-example"])
def test_what_people_made_and_changed_is_kept_and_goes_on_working(
    copies: Copies,
    release: Release,
    database: psycopg.Connection[TupleRow],
    database_url: DatabaseURL,
    *,
    deleted: bool,
) -> None:
    project = copies.copy("project", release.tag, {"project_slug": "shop"})
    project.environment["DATABASE_URL"] = database_url.libpq
    require_names = names_of(project)
    edit(project)
    gone = ["docs/tracing.md", "Dockerfile"]
    if deleted:
        gone += ["src/apps/users", "tests/apps/users", str(project.revisions()[0])]
    for path in gone:
        target = project.path / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    project.make("migrate-up")
    project.make("migrate-create", "MSG=Add orders")
    project.make("migrate-up")
    database.execute(
        "INSERT INTO orders (id, amount) SELECT gen_random_uuid(), n FROM generate_series(1, 99) n"
    )
    if not deleted:
        database.execute(
            "INSERT INTO users (id, email, full_name) VALUES (gen_random_uuid(), 'a@b.example', 'A')"
        )
    project.commit("Ours")
    before, data = contents(project), rows(database)
    said = copies.update(project).stderr

    # Whatever is the person's is as it was, and so are the names.
    require_clean_merge(project)
    require_names()
    after = contents(project)
    mine = [path for path in before if path in OWN or path.startswith(WRITTEN_ONCE)]
    assert len(mine) > len(OWN)
    assert {path: after.get(path) for path in mine} == {path: before[path] for path in mine}
    for path, changes in EDITS.items():
        for _, new in changes:
            assert new in project.read(path), (path, new)
    for path in gone:
        assert not (project.path / path).exists(), path
    assert "\n  uv lock\n  make check && make test && make migrate-status\n" in said

    # And all of it works.
    project.commit("Update")
    assert "mine is well" in project.make("check").stdout
    project.make("migrate-up")
    assert rows(database) == data
    assert "The database is at head" in project.make("migrate-status").stdout
    if not deleted:
        assert "mine is well" in project.make("test").stdout
    else:
        project.run("uv", "run", "pytest", "-q", "tests/apps", "tests/test_migrations.py")


def improve(upstream: Project, tag: str, path: str, old: str, new: str) -> None:
    """Make a release after the working tree that changes a file of the template."""
    text = upstream.read(f"template/{path}")
    assert old in text
    upstream.write(f"template/{path}", text.replace(old, new, 1))
    upstream.commit("An improvement")
    upstream.run("git", "tag", tag)


@pytest.fixture
def own_upstream(upstream: Project, tmp_path: Path) -> Project:
    """An upstream that a test may change."""
    own = Project(tmp_path / "own-upstream")
    Project(tmp_path).run("git", "clone", "--quiet", str(upstream.path), str(own.path))
    return own


@each_release
def test_one_update_follows_another(
    copies: Copies, own_upstream: Project, release: Release
) -> None:
    slug = {"project_slug": "shop"}
    project = copies.copy_of(own_upstream, release.tag, slug)
    require_names = names_of(project)
    said = copies.update(project).stderr
    newest = re.search(r"^## (.+)\n\n((?:.+\n)+)", own_upstream.read("CHANGELOG.md"), re.MULTILINE)
    assert newest is not None
    assert f"New in {newest[1]}:" in said
    assert newest[2].splitlines()[0] in said
    assert newest[2] in project.read("docs/template-changes.md")
    require_names()

    # Without a newer release nothing changes.
    project.commit("Update")
    before = contents(project)
    copies.update(project)
    assert contents(project) == before

    improve(own_upstream, "v99.1.0", "src/core/health.py", '"""Seconds that', '"""The seconds that')
    copies.update(project)
    assert '"""The seconds that' in project.read("src/core/health.py")
    require_clean_merge(project)
    require_names()
    project.commit("Update again")
    project.run("copier", "recopy", "--defaults", "--overwrite", "--quiet")
    require_names()


def test_a_project_called_like_a_package_is_updated_and_can_be_locked(
    copies: Copies, own_upstream: Project
) -> None:
    project = copies.copy_of(own_upstream, NEWEST, {"project_slug": "alembic"})
    improve(own_upstream, "v99.1.0", "src/core/health.py", '"""Seconds that', '"""The seconds that')
    copies.update(project)
    assert "keep_name" not in project.read(".copier-answers.yml")
    assert '\nname = "alembic-service"\n' in project.read("pyproject.toml")
    project.run("uv", "lock", "--quiet")


def delete_in_release(upstream: Project, tag: str, *paths: str) -> None:
    """Make a release after the working tree that no longer has these files."""
    upstream.run("git", "rm", "--quiet", *(f"template/{path}" for path in paths))
    upstream.commit("Fewer files")
    upstream.run("git", "tag", tag)


@pytest.fixture
def losing(copies: Copies, own_upstream: Project) -> Project:
    """A project with edits in two of the three files that the newest release deletes."""
    project = copies.copy_of(own_upstream, NEWEST)
    project.environment["COPIER"] = "copier"
    for path in ("docs/monitoring.md", "deploy/monitoring/dashboard.json", "src/core/health.py"):
        project.write(path, project.read(path) + "\n")
    project.commit("Ours")
    deleted = ("docs/monitoring.md", "deploy/monitoring/dashboard.json", "docs/updating.md")
    delete_in_release(own_upstream, "v99.1.0", *deleted)
    return project


LOST = "deploy/monitoring/dashboard.json\ndocs/monitoring.md\n"


def test_template_update_stops_before_it_deletes_an_edited_file(losing: Project) -> None:
    before = contents(losing)
    refused = losing.make("template-update", "FORCE=0", expect=2)
    assert f"You edited these files, and the update deletes them:\n{LOST}" in refused.stderr
    assert "make template-update FORCE=1" in refused.stderr
    assert contents(losing) == before
    edited = losing.read("docs/monitoring.md")
    said = losing.make("template-update", "FORCE=1").stderr
    assert f"You edited these files, and the update deletes them:\n{LOST}" in said
    assert not {*LOST.split(), "docs/updating.md"} & set(contents(losing))
    assert "v99.1.0" in losing.read(".copier-answers.yml")

    # What was listed before the update, can be listed and brought back after it, as Copier's message says.
    listing, script, lock = re.findall(r"^  ((?:git diff -|sh |uv ).*)$", said, re.MULTILINE)
    assert lock == "uv lock"
    deleted = losing.run("sh", "-c", listing).stdout
    assert deleted == f"{LOST}docs/updating.md\n"
    assert LOST in losing.run("sh", "-c", script).stderr
    assert "`git restore <file>` brings one back" in " ".join(said.split())
    losing.run("git", "restore", "docs/monitoring.md")
    assert losing.read("docs/monitoring.md") == edited


def test_template_update_goes_on_where_no_deleted_file_was_edited(
    copies: Copies, own_upstream: Project
) -> None:
    project = copies.copy_of(own_upstream, NEWEST)
    delete_in_release(own_upstream, "v99.1.0", "docs/updating.md")
    said = project.make("template-update", "COPIER=copier").stderr
    assert "You edited" not in said
    assert not (project.path / "docs/updating.md").exists()


def test_where_both_changed_the_same_line_make_check_names_it(
    copies: Copies, own_upstream: Project
) -> None:
    project = copies.copy_of(own_upstream, NEWEST)
    project.make("check")
    limit = "database_pool_timeout: Annotated[float, Field(gt=0)] = "
    config = "src/core/config.py"
    project.write(config, project.read(config).replace(f"{limit}5", f"{limit}7"))
    project.commit("Seven seconds")
    improve(own_upstream, "v99.1.0", config, f"{limit}5", f"{limit}6")
    copies.update(project)
    done = project.make("check", expect=2)
    found = re.search(rf"^{config}:(\d+):<<<<<<< ", done.stdout + done.stderr, re.MULTILINE)
    assert found is not None
    assert project.read(config).splitlines()[int(found[1]) - 1].startswith("<<<<<<< ")
    assert "keep what you want of each" in done.stderr


def test_changed_answers_bring_what_they_ask_for_and_take_nothing_of_the_person_s(
    copies: Copies, own_upstream: Project
) -> None:
    project = copies.copy_of(own_upstream, NEWEST)
    edit(project)
    project.commit("Ours")
    before = contents(project)
    improve(own_upstream, "v99.1.0", "src/core/health.py", '"""Seconds that', '"""The seconds that')
    changed = ("ci=gitlab", "example_app=false", "monitoring=false")
    copies.update(project, *(f"--data={answer}" for answer in changed))
    require_clean_merge(project)
    assert (project.path / ".gitlab-ci.yml").exists()
    assert not (project.path / "deploy" / "monitoring").exists()
    assert "ci: gitlab" in project.read(".copier-answers.yml")
    kept = [path for path in before if path in OWN or path.startswith(("src/apps", "migrations"))]
    assert {path: contents(project)[path] for path in kept} == {path: before[path] for path in kept}


def test_a_dirty_tree_is_refused_and_left_alone(copies: Copies, own_upstream: Project) -> None:
    project = copies.copy_of(own_upstream, NEWEST)
    project.write("README.md", "Mine, and not committed\n")
    improve(own_upstream, "v99.1.0", "src/core/health.py", '"""Seconds that', '"""The seconds that')
    before = contents(project)
    refused = copies.update(project, expect=1)
    assert "commit or stash your local changes and retry" in refused.stderr
    assert contents(project) == before


def test_a_release_candidate_is_updated_to_its_release(
    copies: Copies, own_upstream: Project
) -> None:
    improve(
        own_upstream, "v99.1.0rc1", "src/core/health.py", '"""Seconds that', '"""The seconds that'
    )
    project = copies.copy_of(own_upstream, "v99.1.0rc1")
    assert "_commit: v99.1.0rc1" in project.read(".copier-answers.yml")
    improve(own_upstream, "v99.1.0", "src/core/health.py", '"""The seconds that', '"""What seconds')
    copies.update(project)
    assert "_commit: v99.1.0\n" in project.read(".copier-answers.yml")
    assert '"""What seconds' in project.read("src/core/health.py")


def test_a_recopy_gives_the_template_s_files_anew_and_leaves_the_person_s(
    copies: Copies, own_upstream: Project
) -> None:
    project = copies.copy_of(own_upstream, NEWEST)
    edit(project)
    users = "src/apps/users/service.py"
    project.write(users, project.read(users) + "\n# Ours\n")
    project.write("deploy/hooks.sh", "#!/bin/sh\n# Ours\n")
    project.commit("Ours")
    before = contents(project)
    project.run("copier", "recopy", "--defaults", "--overwrite", "--quiet")
    after = contents(project)
    assert "%H:%M:%S" in project.read("src/core/logging.py")
    kept = [
        path
        for path in before
        if path in OWN
        or path.startswith(("src/apps", "tests/apps", "migrations/versions", "deploy/hooks"))
    ]
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
