"""What the code that runs now knows of the schema: the models of the commit it was made from."""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from alembic_safety.errors import MigrationError
from alembic_safety.source.git import find_commit, git, open_archive

Models = Mapping[str, frozenset[str]]
"""Tables, with their schema where that is not public, and the columns that they have."""

# Of an older commit, import_models() may return one metadata.
_PRINT = """
import json
from core.models import import_models
found = import_models()
tables = [t for m in (found if isinstance(found, list) else [found]) for t in m.tables.values()]
print(json.dumps({table.fullname: [column.name for column in table.columns] for table in tables}))
"""


def read_models(name: str, *, variable: str) -> Models:
    """Return the models of a branch or commit.

    Args:
        name: of the branch or commit.
        variable: what it was given as, for messages.

    Raises:
        MigrationError: it is not here, or its models can't be imported.
    """
    commit = find_commit(name, variable=variable)
    with tempfile.TemporaryDirectory() as folder:
        # In a repository that had another project before, or has several, this one may be new.
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
    # Models may print.
    tables: dict[str, list[str]] = json.loads(done.stdout.strip().splitlines()[-1])
    return {table.removeprefix("public."): frozenset(columns) for table, columns in tables.items()}
