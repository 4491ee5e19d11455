"""compose.yaml, and what `make image` and `make image-push` ask of the program that builds."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support import Project, copy

from core.database_url import DatabaseURL


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Project:
    """A project beside a program `engine` that prints its arguments, each on a line."""
    project = Project(copy(template, tmp_path / "project", {"project_name": "Shop"}))
    engine = tmp_path / "bin" / "engine"
    engine.parent.mkdir()
    engine.write_text("#!/bin/sh\nprintf 'argument: %s\\n' \"$@\"\n")
    engine.chmod(0o755)
    project.environment["PATH"] = f"{engine.parent}:{project.environment['PATH']}"
    return project


@pytest.fixture
def compose(project: Project) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(project.read("compose.yaml"))
    return document


def asked(project: Project, *arguments: str) -> list[str]:
    """Return the arguments that the program gets."""
    said = project.make(*arguments, "ENGINE=engine").stdout.splitlines()
    return [line.removeprefix("argument: ") for line in said if line.startswith("argument: ")]


@pytest.mark.parametrize("version", ["17", "18"])
def test_compose_is_valid(template: Path, tmp_path: Path, version: str) -> None:
    project = Project(copy(template, tmp_path / "project", {"postgres_version": version}))
    project.run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")


def test_the_api_waits_for_the_migrations_and_they_for_a_healthy_database(
    compose: dict[str, Any],
) -> None:
    services = compose["services"]
    assert services["api"]["depends_on"]["migrate"] == {
        "condition": "service_completed_successfully"
    }
    assert services["migrate"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert services["migrate"]["command"] == ["alembic", "upgrade", "head"]
    assert "restart" not in services["migrate"]
    assert "pg_isready" in services["database"]["healthcheck"]["test"]
    # One image for both, so that the service knows the revisions that were applied.
    assert services["api"]["image"] == services["migrate"]["image"] == "${IMAGE-shop}"


def test_data_and_backups_outlive_their_containers(
    project: Project, compose: dict[str, Any]
) -> None:
    folder = re.search(r"MIGRATION_BACKUP_FOLDER=(\S+)", project.read("Dockerfile"))
    assert folder is not None
    assert compose["services"]["migrate"]["volumes"] == [f"backups:{folder[1]}"]
    assert compose["services"]["database"]["volumes"] == ["database:/var/lib/postgresql"]
    assert set(compose["volumes"]) == {"backups", "database"}


def test_requests_under_way_have_less_time_to_end_than_compose_waits(
    project: Project, compose: dict[str, Any]
) -> None:
    drain = re.search(r"UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN=(\d+)", project.read("Dockerfile"))
    assert drain is not None
    assert int(drain[1]) < int(compose["services"]["api"]["stop_grace_period"].removesuffix("s"))


def test_no_secret_has_a_value_and_each_that_is_missing_ends_compose(
    project: Project, compose: dict[str, Any]
) -> None:
    variables = set(re.findall(r"\$\{?\w[^}\s]*", project.read("compose.yaml")))
    secrets = variables - {"${IMAGE-shop"}
    assert secrets
    assert all(secret.startswith("${POSTGRES_PASSWORD:?") for secret in secrets)
    for service in compose["services"].values():
        for name, value in service["environment"].items():
            assert "PASSWORD" not in name or value.startswith("${POSTGRES_PASSWORD:?"), name
    url = compose["services"]["api"]["environment"]["DATABASE_URL"]
    assert DatabaseURL.parse(url).password is None


def test_an_image_is_named_by_the_commit_where_all_of_it_is_committed(project: Project) -> None:
    assert "--tag=shop:dev" in asked(project, "image")
    project.commit()
    commit = project.run("git", "rev-parse", "HEAD").stdout.strip()
    short = project.run("git", "rev-parse", "--short", "HEAD").stdout.strip()
    project.write("notes.txt", "not a part of it")
    built = asked(project, "image")
    assert f"--tag=shop:{short}" in built
    assert f"--build-arg=CODE_VERSION={commit}" in built
    assert asked(project, "image-push") == ["push", f"shop:{short}"]
    project.write("src/apps/new.py", "")
    built = asked(project, "image")
    assert "--tag=shop:dev" in built
    assert "--build-arg=CODE_VERSION=" in built


def test_an_image_gets_the_name_that_is_given_in_lower_case(project: Project) -> None:
    given = ["IMAGE=registry.example:5000/Some/Shop", "TAG=V1.2"]
    named = "registry.example:5000/some/shop:V1.2"
    assert asked(project, "image-push", *given) == ["push", named]
    built = asked(project, "image", *given, "PYTHON_IMAGE=registry.example/python", "EXTRAS=a b")
    assert f"--tag={named}" in built
    assert "--build-arg=PYTHON_IMAGE=registry.example/python" in built
    assert "--build-arg=EXTRAS=a b" in built
    assert built[-1] == "."


@pytest.mark.parametrize(
    "value", ["$(touch pwned)", "$(shell touch pwned)", "`touch pwned`", "x; touch pwned", "a\nb"]
)
@pytest.mark.parametrize("name", ["IMAGE", "TAG"])
def test_a_wrong_name_of_an_image_is_one_clear_line_and_runs_nothing(
    project: Project, name: str, value: str
) -> None:
    for target in ("image", "image-push"):
        done = project.make(target, "ENGINE=engine", f"{name}={value}", expect=2)
        assert "is not the name of an image" in done.stderr
        assert "argument" not in done.stdout
    assert not list(project.path.rglob("pwned"))


@pytest.mark.parametrize("target", ["image", "image-push"])
def test_without_a_dockerfile_or_a_program_that_builds_make_says_so(
    project: Project, target: str
) -> None:
    done = project.make(target, "ENGINE=no-such-engine", expect=2)
    assert "no-such-engine is not installed" in done.stderr
    (project.path / "Dockerfile").unlink()
    done = project.make(target, "ENGINE=engine", expect=2)
    assert "There is no Dockerfile" in done.stderr
    assert "argument" not in done.stdout
