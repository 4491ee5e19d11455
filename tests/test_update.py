"""`copier update`: the template's part gets better, the person's part stays as it is."""

import shutil
from pathlib import Path

import pytest
from tests.conftest import Render
from tests.support import Project


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Project:
    """The template as a git repository."""
    repository = Project(shutil.copytree(template, tmp_path / "repository"))
    repository.commit("A release")
    return repository


@pytest.fixture
def project(render: Render, repository: Project, tmp_path: Path) -> Project:
    """A project copied from the repository with plain commands, as a person would."""
    Project(tmp_path).run("copier", "copy", "--defaults", str(repository.path), "newproj")
    project = Project(tmp_path / "newproj")
    project.commit()
    return project


def improve(repository: Project) -> None:
    """Change what the template owns, and what is the person's from the copy on."""
    for path, line in {
        "template/src/core/health.py": "# Improved.",
        "template/deploy/hooks.sh": "# Never seen.",
        "template/src/apps/users/models.py": "# Never seen.",
        "template/tests/apps/users/test_users.py": "# Never seen.",
        "template/migrations/versions/20260101_0000_3f1c9b7d5a20_create_users.py": "# Never seen.",
    }.items():
        repository.write(path, f"{repository.read(path)}\n{line}\n")
    repository.write("template/src/core/added.py", '"""New."""\n')
    repository.write("template/src/apps/example/models.py", '"""New."""\n')
    repository.commit("An improvement")


def test_an_update_brings_what_is_the_template_s_and_leaves_the_rest(
    repository: Project, project: Project
) -> None:
    project.write("src/apps/orders/models.py", '"""Mine."""\n')
    project.write("migrations/versions/20260202_0000_abc_mine.py", '"""Mine."""\n')
    project.write("src/apps/users/models.py", "# Mine now.\n")
    project.write("Makefile", project.read("Makefile") + "\nmine:\n\techo mine\n")
    project.write("deploy/hooks.sh", "# Mine, too.\n")
    project.commit("My work")
    before = {path: project.read(path) for path in project.files() if "apps/" in path}
    before["deploy/hooks.sh"] = project.read("deploy/hooks.sh")
    before |= {str(p.relative_to(project.path)): p.read_text("utf-8") for p in project.revisions()}
    improve(repository)
    done = project.run("copier", "update", "--defaults")
    assert "make check && make test && make migrate-status" in done.stdout + done.stderr
    assert project.read("src/core/health.py").endswith("# Improved.\n")
    assert project.read("src/core/added.py") == '"""New."""\n'
    assert project.read("Makefile").endswith("\techo mine\n")
    assert {path: project.read(path) for path in before} == before
    assert not (project.path / "src/apps/example").exists()
    assert not list(project.path.rglob("*.rej"))
    assert "<<<<<<<" not in project.run("git", "diff").stdout


def test_what_was_deleted_stays_deleted(repository: Project, project: Project) -> None:
    shutil.rmtree(project.path / "src/apps/users")
    shutil.rmtree(project.path / "tests/apps/users")
    (project.path / "Dockerfile").unlink()
    project.commit("Without the example")
    improve(repository)
    project.run("copier", "update", "--defaults")
    assert not (project.path / "src/apps/users").exists()
    assert not (project.path / "tests/apps/users").exists()
    assert not (project.path / "Dockerfile").exists()


def test_an_untouched_project_becomes_what_a_fresh_copy_is(
    repository: Project, project: Project, tmp_path: Path
) -> None:
    health = "template/src/core/health.py"
    repository.write(health, repository.read(health) + "# Improved.\n")
    repository.commit("An improvement")
    project.run("copier", "update", "--defaults")
    Project(tmp_path).run("copier", "copy", "--defaults", str(repository.path), "fresh")
    fresh = Project(tmp_path / "fresh")
    assert project.files() == fresh.files()
    for path in fresh.files():
        assert project.read(path) == fresh.read(path), path


def test_hostile_answers_survive_an_update(
    render: Render, repository: Project, tmp_path: Path
) -> None:
    name = '{{ 7 * 7 }} "q" $(id) 日本'
    Project(tmp_path).run(
        "copier",
        "copy",
        "--defaults",
        "--data",
        f"project_name={name}",
        str(repository.path),
        "odd",
    )
    project = Project(tmp_path / "odd")
    project.commit()
    improve(repository)
    project.run("copier", "update", "--defaults")
    assert project.read("README.md").startswith(f"# {name}\n")
    assert project.read("src/core/health.py").endswith("# Improved.\n")
