"""The library as a package: what pip installs from its folder."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from copier import run_copy, run_update
from tests.releases import NEWEST
from tests.support import ROOT, Project

import alembic_safety
from alembic_safety import alembic_internals
from alembic_safety.database.url import DatabaseURL

FOLDER = ROOT / "template" / "packages" / "alembic-safety"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
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
    assert "Usage: alembic-safety " in said
    assert "Print the current revision, the head and what is pending." in said
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


def test_the_public_names_are_imported_when_they_are_used() -> None:
    tree = ast.parse((FOLDER / "src" / "alembic_safety" / "__init__.py").read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    public = {alias.name: node.module for node in imports for alias in node.names}
    for name, module in public.items():
        assert module is not None
        assert getattr(alembic_safety, name) is getattr(import_module(module), name)
    with pytest.raises(AttributeError, match="has no attribute 'Projekt'"):
        _ = alembic_safety.Projekt  # type: ignore[attr-defined]
    alone = "import sys; from alembic_safety import embedded; print('alembic' in sys.modules)"
    source = {"PYTHONPATH": str(FOLDER / "src")}
    assert Project(ROOT).run(sys.executable, "-c", alone, env=source).stdout == "False\n"


def test_a_project_may_take_the_library_from_a_tag_of_the_template(
    upstream: Project, tmp_path: Path, database_url: DatabaseURL
) -> None:
    template = Project(tmp_path / "template")
    upstream.run("git", "clone", "--quiet", str(upstream.path), str(template.path))
    here = Project(tmp_path / "shop", DATABASE_URL=database_url.libpq)
    address = f"git+file://{template.path}"
    run_copy(address, here.path, vcs_ref=NEWEST, defaults=True, quiet=True)
    entry = re.search(r"```toml\n(alembic-safety = .*)\n", README)
    assert entry is not None
    from_git = entry[1].replace("https://github.com/org/tpl", f"file://{template.path}")
    from_git = re.sub(r'tag = "[^"]+"', f'tag = "{NEWEST}"', from_git)
    pyproject = here.read("pyproject.toml")
    assert "\nalembic-safety = { workspace = true }\n" in pyproject
    here.write(
        "pyproject.toml", pyproject.replace("alembic-safety = { workspace = true }", from_git)
    )
    here.commit()
    here.run("git", "rm", "-r", "--quiet", "packages")
    here.run("uv", "lock", "--quiet")
    here.alembic("upgrade", "head")
    assert "The database is at head." in here.run("uv", "run", "alembic-safety", "status").stdout
    here.make("check")
    here.commit()

    # A later release changes the library, and does not bring the folder back.
    library = "template/packages/alembic-safety/src/alembic_safety/errors.py"
    template.write(library, template.read(library) + "# changed\n")
    template.commit()
    template.run("git", "tag", "v99.1.0")
    run_update(here.path, defaults=True, overwrite=True, quiet=True)
    assert "_commit: v99.1.0" in here.read(".copier-answers.yml")
    assert not (here.path / "packages").exists()
