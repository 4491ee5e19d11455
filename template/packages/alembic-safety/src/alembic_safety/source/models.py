"""The models of another commit, such as the one that is deployed."""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alembic_safety.errors import MigrationError
from alembic_safety.programs import run_program
from alembic_safety.project import Project
from alembic_safety.source.git import find_commit, open_archive

ModelColumns = Mapping[str, frozenset[str]]
"""Columns of the models' tables, by table name, which is qualified unless the schema is public."""

_PRINT = """
import json, sys
from alembic_safety.metadata import load_metadata
tables = [table for metadata in load_metadata(sys.argv[1]) for table in metadata.tables.values()]
print(json.dumps({table.fullname: [column.name for column in table.columns] for table in tables}))
"""


def read_models(project: Project, name: str, *, variable: str) -> ModelColumns:
    """Return the tables and columns of the models of a branch or commit.

    The commit's own `[tool.alembic]` says where its models are, or else this project's. A commit
    that neither says it nor has that module, such as one from before this project was in the
    repository, has no tables.

    Args:
        project: the project of the repository.
        name: the branch or commit.
        variable: the option that `name` was given as, for messages.

    Raises:
        MigrationError: the repository has no such commit, or its models can't be imported.
    """
    commit = find_commit(name, variable=variable, folder=project.root)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            with open_archive(commit, folder=project.root) as archive:
                archive.extractall(folder, filter="data")
        except (subprocess.CalledProcessError, tarfile.TarError) as error:
            raise MigrationError(f"{variable}={name}: its files can't be read: {error}") from error
        try:
            table = _read_table(folder / "pyproject.toml")
        except tomllib.TOMLDecodeError as error:
            raise MigrationError(
                f"{variable}={name}: its pyproject.toml is not valid TOML: {error}"
            ) from None
        declared = table.get("safety", {}).get("metadata", "")
        place = declared or project.options.metadata or ""
        names = _import_paths(table.get("prepend_sys_path") or project.config.prepend_sys_path)
        paths = [folder / name for name in names]
        if not _exists(place, paths):
            if not declared:
                return {}
            raise MigrationError(
                f"{variable}={name}: its [tool.alembic.safety] has metadata = {declared!r}, and "
                f"there is no such module in {' or '.join(names)}; prepend_sys_path of "
                "[tool.alembic] says where modules are"
            )
        done = run_program(
            [sys.executable, "-c", _PRINT, place],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        )
    if done.returncode != 0:
        raise MigrationError(
            f"{variable}={name}: its models can't be imported: "
            f"{(done.stderr.decode(errors='replace').strip().splitlines() or ['?'])[-1]}"
        )
    # Models may print on import, before the last line.
    tables: dict[str, list[str]] = json.loads(done.stdout.strip().splitlines()[-1])
    return {table.removeprefix("public."): frozenset(columns) for table, columns in tables.items()}


def _read_table(file: Path) -> dict[str, Any]:
    """Return `[tool.alembic]` of a pyproject.toml, which need not exist."""
    if not file.exists():
        return {}
    document = tomllib.loads(file.read_text(encoding="utf-8"))
    table: dict[str, Any] = document.get("tool", {}).get("alembic", {})
    return table


def _import_paths(prepended: list[str]) -> list[str]:
    """Return the folders of a commit to import from: by default its own and `src`."""
    return [str(Path(path.replace("%(here)s", "."))) for path in prepended] or [".", "src"]


def _exists(place: str, paths: list[Path]) -> bool:
    module = Path(*place.partition(":")[0].split("."))
    files = (f"{module}.py", str(module / "__init__.py"))
    return any((path / file).exists() for path in paths for file in files)
