"""The models of another commit, such as the one that is deployed."""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from core.migrations.errors import MigrationError
from core.migrations.source.git import find_commit, git, open_archive

ModelColumns = Mapping[str, frozenset[str]]
"""Columns of the models' tables, by table name, which is qualified unless the schema is public."""

# In older commits import_models() returns one metadata instead of a list.
_PRINT = """
import json
from core.models import import_models
found = import_models()
tables = [t for m in (found if isinstance(found, list) else [found]) for t in m.tables.values()]
print(json.dumps({table.fullname: [column.name for column in table.columns] for table in tables}))
"""


def read_models(name: str, *, variable: str) -> ModelColumns:
    """Return the tables and columns of the models of a branch or commit.

    A commit without models, as from before the project was made from the template, has no tables.

    Args:
        name: the branch or commit.
        variable: the option that `name` was given as, for messages.

    Raises:
        MigrationError: the repository has no such commit, or its models can't be imported.
    """
    commit = find_commit(name, variable=variable)
    with tempfile.TemporaryDirectory() as folder:
        if not git("ls-tree", commit, "--", "src/core/models.py"):
            return {}
        try:
            with open_archive(commit, ["src", "pyproject.toml"]) as archive:
                archive.extractall(folder, filter="data")
        except (subprocess.CalledProcessError, tarfile.TarError) as error:
            raise MigrationError(f"{variable}={name}: its files can't be read: {error}") from error
        done = subprocess.run(
            [sys.executable, "-c", _PRINT],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(folder) / "src")},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise MigrationError(
            f"{variable}={name}: its models can't be imported: "
            f"{(done.stderr.strip().splitlines() or ['?'])[-1]}"
        )
    # Models may print on import, before the last line.
    tables: dict[str, list[str]] = json.loads(done.stdout.strip().splitlines()[-1])
    return {table.removeprefix("public."): frozenset(columns) for table, columns in tables.items()}
