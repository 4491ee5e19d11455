"""The template as it is in the working tree, projects rendered from it, and one PostgreSQL."""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow
from pytest_postgresql import factories
from tests.releases import Copies, make_upstream
from tests.support import ROOT, MakeOnce, Project, copy
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from alembic_safety import embedded
from alembic_safety.database.url import DatabaseURL

collect_ignore_glob = ["*/in_project"]  # run in a rendered project, by tests/project

Render = Callable[..., Project]
RenderOnce = Callable[[tuple[tuple[str, object], ...]], Path]

_noproc = factories.postgresql_noproc(dbname="test")
postgresql = factories.postgresql("postgresql_noproc")


def pytest_configure() -> None:
    """Heed SIGINT, which a shell's job in the background ignores, as do the processes it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """Return one more than there are cores, as a test often waits."""
    return (os.cpu_count() or 1) + 1


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Deals out tests one by one, but for those that share what takes long to make."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file.endswith("test_containers.py") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    # Not --dist loadgroup: on pytest 9.2 the marks that it looks for have no effect.
    return _Scheduling(config, log)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseURL]:
    """One PostgreSQL for all tests."""
    home = tmp_path_factory.mktemp("server") / ".postgres"
    yield DatabaseURL.parse(embedded.start(home, "postgres"))
    embedded.stop(home)


@pytest.fixture(scope="session")
def postgresql_noproc(server: DatabaseURL, request: pytest.FixtureRequest) -> Iterator[object]:
    """The server, as pytest-postgresql knows it."""
    request.config.option.postgresql_host = server.hosts[0][0]
    yield from _noproc.__wrapped__(request)  # type: ignore[attr-defined]


@pytest.fixture
def database(
    server: DatabaseURL, postgresql: psycopg.Connection[TupleRow]
) -> psycopg.Connection[TupleRow]:
    """A connection to an empty database of the test's own."""
    postgresql.autocommit = True
    return postgresql


@pytest.fixture
def database_url(server: DatabaseURL, database: psycopg.Connection[TupleRow]) -> DatabaseURL:
    """The address of the test's database."""
    return server.with_database(database.info.dbname)


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """What the first worker to need it makes for all."""
    own = tmp_path_factory.getbasetemp()
    common = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        folder = common / f"common {name}"
        with folder.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            made = folder.with_suffix(".made")
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return make_once


def copy_working_tree(target: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


@pytest.fixture(scope="session")
def template(make_once: MakeOnce) -> Path:
    """A copy of the working tree without its history, so that Copier takes it as it is."""
    return make_once("the template", copy_working_tree)


@pytest.fixture(scope="session")
def synced(
    template: Path, make_once: MakeOnce, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Environment variables that let every project use one installed environment.

    Each worker has a copy of what mypy knows of the packages in it.
    """

    def sync(folder: Path) -> None:
        project = Project(copy(template, folder / "project", {}))
        project.run("uv", "sync", "--quiet")
        project.run("uv", "run", "mypy")

    project = make_once("synced", sync) / "project"
    known = tmp_path_factory.mktemp("mypy") / "cache"
    return {
        "UV_PROJECT_ENVIRONMENT": str(project / ".venv"),
        "UV_NO_SYNC": "1",
        "MYPY_CACHE_DIR": str(shutil.copytree(project / ".mypy_cache", known)),
    }


@pytest.fixture(scope="session")
def render_once(template: Path, make_once: MakeOnce) -> RenderOnce:
    """Return a folder with what the template renders for the answers, to be copied from."""

    @cache
    def render_once(answers: tuple[tuple[str, object], ...]) -> Path:
        name = hashlib.sha256(repr(answers).encode()).hexdigest()[:12]
        return (
            make_once(name, lambda folder: copy(template, folder / "project", dict(answers)))
            / "project"
        )

    return render_once


@pytest.fixture
def render(render_once: RenderOnce, synced: dict[str, str], tmp_path: Path) -> Iterator[Render]:
    """Render a project: `render(project_name="Orders", ...)`."""
    projects: list[Project] = []

    def render(folder: str = "a project", **answers: object) -> Project:
        rendered = render_once(tuple(sorted(answers.items())))
        project = Project(shutil.copytree(rendered, tmp_path / folder), **synced)
        projects.append(project)
        return project

    yield render
    for project in projects:
        if (project.path / ".postgres").exists():
            project.make("db-stop")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say where the projects of a failed test are."""
    report = yield
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if report.failed and folder is not None:
        report.sections.append(("What the test rendered stays on disk", str(folder)))
    return report


@pytest.fixture
def project(render: Render, database_url: DatabaseURL) -> Project:
    """A project with the default answers, on a database of its own."""
    project = render()
    project.environment["DATABASE_URL"] = database_url.libpq
    return project


@pytest.fixture(scope="session")
def upstream(template: Path, make_once: MakeOnce) -> Project:
    """The template as a git repository, with a tag for each release and the working tree."""
    made = make_once("upstream", lambda folder: make_upstream(folder / "template", template))
    return Project(made / "template")


@pytest.fixture
def copies(
    upstream: Project, synced: dict[str, str], make_once: MakeOnce, tmp_path: Path
) -> Copies:
    return Copies(upstream=upstream, folder=tmp_path, environment=synced, make_once=make_once)
