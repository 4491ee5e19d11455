"""`make check` and the library: its copy in packages/ is unedited, or it comes from elsewhere."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support import Project

LIBRARY = "packages/alembic-safety"
SOURCE = f"{LIBRARY}/src/alembic_safety"


def edit(project: Project, path: str, text: str = "") -> None:
    project.write(path, project.read(path) + text)


def delete(project: Project, path: str) -> None:
    (project.path / path).unlink()


@pytest.mark.parametrize(
    ("change", "path", "kind"),
    [
        (lambda p: edit(p, f"{SOURCE}/run/retry.py", "\n"), f"{SOURCE}/run/retry.py", "edited"),
        # The library can't be imported any more.
        (lambda p: edit(p, f"{SOURCE}/__init__.py", "("), f"{SOURCE}/__init__.py", "edited"),
        (lambda p: edit(p, f"{LIBRARY}/README.md", "Ours\n"), f"{LIBRARY}/README.md", "edited"),
        (lambda p: p.write(f"{SOURCE}/ours.py", ""), f"{SOURCE}/ours.py", "added"),
        (lambda p: delete(p, f"{LIBRARY}/LICENSE"), f"{LIBRARY}/LICENSE", "deleted"),
        (lambda p: delete(p, f"{LIBRARY}/SHA256SUMS"), f"{LIBRARY}/SHA256SUMS", "deleted"),
    ],
    ids=["module", "syntax", "document", "added", "deleted", "list"],
)
def test_make_check_names_a_file_of_the_library_that_was_changed(
    project: Project, change: Callable[[Project], object], path: str, kind: str
) -> None:
    change(project)
    named, advice, _ = project.make("check", expect=2).stderr.splitlines()
    assert named == f"{path}: {kind}"
    assert advice.startswith(f"{LIBRARY} was changed by hand, and updates overwrite it. Undo")


def test_what_tools_leave_in_the_library_s_folder_is_no_change(project: Project) -> None:
    project.write(f"{LIBRARY}/.mypy_cache/cache.json", "{}")
    project.write(f"{SOURCE}/__pycache__/ours.cpython-311.pyc", "")
    project.make("check")


def test_a_project_whose_library_comes_from_git_passes(
    project: Project, upstream: Project, tmp_path: Path
) -> None:
    shutil.rmtree(project.path / "packages")
    for shared in ("UV_NO_SYNC", "MYPY_CACHE_DIR"):
        project.environment.pop(shared)
    project.environment["UV_PROJECT_ENVIRONMENT"] = str(tmp_path / "venv")
    here = "alembic-safety = { workspace = true }"
    git = f'git = "{upstream.path.as_uri()}", subdirectory = "template/{LIBRARY}"'
    text = project.read("pyproject.toml")
    assert here in text
    project.write("pyproject.toml", text.replace(here, f"alembic-safety = {{ {git} }}"))
    project.make("check")
    assert "1 revision pending" in project.make("migrate-status").stdout
