"""Files of the project that is converted."""

import os
from collections.abc import Iterator
from pathlib import Path

from alembic_safety.ini.errors import ConversionError

_LARGEST_SCANNED_FILE = 1_000_000  # bytes
_SCANNED_SUFFIXES = {".cfg", ".py", ".sh", ".toml", ".yaml", ".yml", ""}
_SKIPPED_FOLDERS = {
    ".git", ".hg", ".mypy_cache", ".nox", ".postgres", ".pytest_cache", ".ruff_cache", ".tox", ".uv",
    "__pycache__", "node_modules",
}  # fmt: skip


def read_text(path: Path, shown: str) -> str:
    """Return the text of a UTF-8 file, with its line endings.

    Args:
        path: the file.
        shown: its name in error messages.

    Raises:
        ConversionError: the file cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConversionError(f"{shown}:{line}: not valid UTF-8") from None
    except OSError as error:
        raise ConversionError(f"{shown}: {error.strerror}") from None


def is_skipped(path: Path) -> bool:
    """Return whether a path is history, a cache or a virtual environment."""
    return path.name in _SKIPPED_FOLDERS or (path / "pyvenv.cfg").exists()


def source_files(root: Path) -> Iterator[Path]:
    """Yield the source and configuration files of a project, but not those of this library."""
    library = Path(__file__).resolve().parents[1]
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not is_skipped(Path(folder, name))]
        for path in sorted(Path(folder, name) for name in names):
            if path.suffix not in _SCANNED_SUFFIXES or path.is_relative_to(library):
                continue
            if path.is_file() and path.stat().st_size <= _LARGEST_SCANNED_FILE:
                yield path


def first_free_name(path: Path) -> Path:
    """Return `path` with .bak, .bak2, ... appended: the first name that is not taken."""
    name, number = path.with_name(f"{path.name}.bak"), 2
    while name.exists():
        name, number = path.with_name(f"{path.name}.bak{number}"), number + 1
    return name
