"""What release.yml asks before it tags a version."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from tests.support import ROOT, Project


@pytest.fixture
def checkout(template: Path, tmp_path: Path) -> Project:
    checkout = Project(shutil.copytree(template, tmp_path / "checkout"))
    checkout.commit("A version")
    return checkout


def version(checkout: Project) -> str:
    found = re.search(r'^version = "(.+)"$', checkout.read("pyproject.toml"), re.MULTILINE)
    assert found is not None
    return found[1]


def test_a_version_is_new_until_it_is_tagged_and_has_notes(checkout: Project) -> None:
    script = [sys.executable, "scripts/release.py"]
    current = version(checkout)
    assert checkout.run(*script).stdout == f"version={current}\nnew=true\n"
    notes = checkout.run(*script, "--notes").stdout
    assert notes.startswith("- ")
    assert "## " not in notes
    assert notes.strip() in checkout.read("CHANGELOG.md")
    checkout.run("git", "tag", f"v{current}")
    assert checkout.run(*script).stdout == f"version={current}\nnew=false\n"


LIBRARY = "template/packages/alembic-safety/pyproject.toml"


def test_the_library_has_the_version_of_the_template(checkout: Project) -> None:
    text = checkout.read(LIBRARY)
    checkout.write(LIBRARY, text.replace(f'"{version(checkout)}"', '"77.0.0"', 1))
    done = checkout.run(sys.executable, "scripts/release.py", expect=1)
    assert f"{LIBRARY}: version is 77.0.0; set it to {version(checkout)}" in done.stderr


def test_a_version_without_notes_is_none(checkout: Project) -> None:
    current = version(checkout)
    for file in ("pyproject.toml", LIBRARY):
        checkout.write(file, checkout.read(file).replace(f'"{current}"', '"77.0.0"', 1))
    done = checkout.run(sys.executable, "scripts/release.py", expect=1)
    assert "there is no section `## 77.0.0 - YYYY-MM-DD`" in done.stderr
    assert done.stdout == ""


def test_every_release_of_the_list_has_a_date_and_they_go_back_in_time() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    dated = [re.fullmatch(r"(\d+)\.(\d+)\.(\d+) - (\d{4}-\d\d-\d\d)", line) for line in headings]
    assert [line for line, match in zip(headings, dated, strict=True) if not match] in (
        [],
        ["Unreleased"],
    )
    released = [match for match in dated if match]
    order = [(tuple(map(int, match.groups()[:3])), match[4]) for match in released]
    assert order == sorted(order, reverse=True)
    assert order[-1][0] == (1, 0, 0)
