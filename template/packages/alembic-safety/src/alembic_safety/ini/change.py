"""A change to the project's files: shown as a diff, tried in a copy, then applied."""

import difflib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alembic_safety.ini.comparison import compare
from alembic_safety.ini.errors import ConversionError
from alembic_safety.ini.files import read_text
from alembic_safety.ini.redaction import hide_passwords
from alembic_safety.ini.table import LIST_OPTIONS, Table
from alembic_safety.ini.trial import Trial, copy_project, find_python


@dataclass(frozen=True)
class Options:
    """Options of both conversions."""

    pyproject: str = ""
    """The pyproject.toml; by default the one next to the ini, or the first in a folder above it."""
    python: str = ""
    """The Python that has the project's Alembic; by default the project's environment."""
    url_variable: str = "DATABASE_URL"
    """The environment variable that holds the database's URL."""
    dry_run: bool = False
    """Leave the project as it is."""
    show_diff: Callable[[str], None] = lambda diff: print(diff, end="")
    """Called with the diff before the trial."""


@dataclass(frozen=True)
class Invocation:
    """Folder and leading options of a run of Alembic."""

    folder: Path
    options: Sequence[str] = ()


@dataclass
class Change:
    """New contents and names of the project's files."""

    root: Path
    table: Table
    """`[tool.alembic]` after the change; it says where the migrations are."""
    files: dict[Path, str] = field(default_factory=dict)
    renamed: dict[Path, Path] = field(default_factory=dict)

    def diff(self) -> str:
        """Return a unified diff without passwords."""
        diffs = []
        for path, new in self.files.items():
            old = read_text(path, path.name) if path.exists() else ""
            name = str(path.relative_to(self.root))
            lines = difflib.unified_diff(
                old.splitlines(keepends=True), new.splitlines(keepends=True),
                f"a/{name}", f"b/{name}",
            )  # fmt: skip
            diffs.append("".join(lines))
        return hide_passwords("".join(diffs))

    def apply(self, root: Path) -> None:
        """Write and rename the files below `root`, all of them or none.

        Args:
            root: the project, or a copy of it.
        """
        files = {root / path.relative_to(self.root): new for path, new in self.files.items()}
        renamed = {
            root / old.relative_to(self.root): root / new.relative_to(self.root)
            for old, new in self.renamed.items()
        }
        before = {path: path.read_bytes() if path.exists() else None for path in files}
        try:
            for path, new in files.items():
                replacement = path.with_name(f"{path.name}.new")
                replacement.write_bytes(new.encode())
                if path.exists():
                    shutil.copymode(path, replacement)
                replacement.replace(path)
            for path, target in renamed.items():
                path.rename(target)
        except BaseException:
            for path, old in before.items():
                path.unlink() if old is None else path.write_bytes(old)
            raise


def carry_out(
    change: Change,
    options: Options,
    *,
    before: Invocation,
    after: Invocation,
    variables: Mapping[str, str],
) -> list[str]:
    """Try a change in a copy of the project, then apply it, and return notes for the user.

    Args:
        change: the change.
        options: the conversion's options.
        before: how Alembic is run without the change.
        after: how Alembic is run with it.
        variables: environment variables for the trial.

    Raises:
        ConversionError: Alembic prints something else after the change. Nothing was changed.
    """
    options.show_diff(change.diff())
    python = find_python(options.python, change.root)
    outermost = _outermost_folder(change.root, change.table)
    with tempfile.TemporaryDirectory(prefix="alembic-ini-") as folder:
        copied = Path(folder).resolve() / outermost.name  # Alembic prints resolved paths
        copy_project(outermost, copied)
        trial = Trial(outermost, copied, python, variables)
        old = trial.run(before.folder, before.options)
        change.apply(copied / change.root.relative_to(outermost))
        new = trial.run(after.folder, after.options)
        try:
            notes = compare(old, new)
        except ConversionError:
            again = trial.run(after.folder, after.options)
            if all(again[name].out == new[name].out for name in new):
                raise
            notes = compare(old, new, again)
    if not options.dry_run:
        change.apply(change.root)
    return notes


def _outermost_folder(root: Path, table: Table) -> Path:
    """Return the folder, inside the repository, that holds the project and all its migrations."""
    repository = next((f for f in (root, *root.parents) if (f / ".git").exists()), root)
    places = [place for option in LIST_OPTIONS for place in table.get(option, [])]
    places.append(table.get("script_location", ""))
    plain = [place.replace("%(here)s", str(root)).replace("%%", "%") for place in places]
    paths = [Path(os.path.normpath(root / place)) for place in plain]
    return Path(os.path.commonpath([root, *(p for p in paths if p.is_relative_to(repository))]))
