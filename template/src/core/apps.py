"""Discovery of apps: every folder in `src/apps` is one."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from alembic_safety.boundary import describe_import_error
from core.project import ROOT

APPS = ROOT / "src" / "apps"


class AppImportError(Exception):
    """A module of an app can't be imported. The message names the file, the line and the cause."""


def import_app_modules(name: str) -> list[ModuleType]:
    """Import `<name>.py`, or every module of the package `<name>/`, of each app.

    Returns the modules, apps in alphabetical order.

    Raises:
        AppImportError: one of them fails to import.
    """
    return [_import(path) for path in _find(name)]


def _find(name: str) -> Iterator[Path]:
    for app in sorted(APPS.iterdir()):
        if (app / f"{name}.py").is_file():
            yield app / f"{name}.py"
        elif (package := app / name).is_dir():
            yield from sorted(package.rglob("*.py"))


def _import(path: Path) -> ModuleType:
    relative = path.relative_to(ROOT)
    parts = path.relative_to(APPS.parent).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    if invalid := [part for part in parts if not part.isidentifier()]:
        raise AppImportError(
            f"{relative}: {invalid[0]!r} can't be imported; rename it to a Python name "
            "(letters, digits and underscores)"
        )
    try:
        return importlib.import_module(".".join(parts))
    except Exception as error:
        raise AppImportError(describe_import_error(error, path, relative)) from error
