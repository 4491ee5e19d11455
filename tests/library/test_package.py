"""The library as a package: what pip installs from its folder."""

import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support import ROOT, Project

from alembic_safety import alembic_internals

FOLDER = ROOT / "template" / "packages" / "alembic-safety"
LIST_FILES = """
from importlib.metadata import files
for file in files("alembic-safety"):
    print(file)
"""


def test_pip_installs_the_folder_and_the_program_runs(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    binaries = tmp_path / "venv" / "bin"
    here = Project(tmp_path)
    here.run(str(binaries / "python"), "-m", "pip", "install", "--quiet", str(FOLDER))
    said = here.run(str(binaries / "alembic-safety"), "--help").stdout
    assert "usage: alembic-safety " in said
    assert "print the current revision, the head and the pending revisions" in " ".join(
        said.split()
    )
    files = here.run(str(binaries / "python"), "-c", LIST_FILES).stdout.splitlines()
    modules = {str(file.relative_to(FOLDER / "src")) for file in (FOLDER / "src").rglob("*.py")}
    assert modules | {"alembic_safety/py.typed"} <= set(files)
    assert any(file.endswith(".dist-info/licenses/LICENSE") for file in files)
    refused = here.run(str(binaries / "alembic-safety"), "status", expect=1).stderr
    assert len(refused.splitlines()) == 1


def test_the_lowest_alembic_of_the_range_is_one_that_is_known_to_work() -> None:
    document = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
    [alembic] = [item for item in document["project"]["dependencies"] if "alembic>=" in item]
    lowest, _, _ = alembic.removeprefix("alembic>=").partition(",")
    assert alembic_internals.KNOWN_TO_WORK.startswith(f"{lowest} to ")
