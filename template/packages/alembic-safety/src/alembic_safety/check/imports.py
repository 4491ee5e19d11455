"""Imports of revisions, each by itself, so that one that fails does not hide the others."""

import importlib.util
from pathlib import Path

from alembic_safety.boundary import describe_import_error
from alembic_safety.cancellation import interruptible


def import_problem(path: Path, *, folder: Path) -> str:
    """Return why a file can't be used as a revision; empty if it can.

    Args:
        path: the file, relative to the project.
        folder: the project.
    """
    spec = importlib.util.spec_from_file_location(f"checked_{path.stem}", folder / path)
    if spec is None or spec.loader is None:
        return f"{path}: can't be imported"
    module = importlib.util.module_from_spec(spec)
    try:
        with interruptible():
            spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001 - a revision may raise anything
        return describe_import_error(error, folder / path)
    if not isinstance(getattr(module, "revision", None), str):
        return f"{path}: has no `revision`"
    missing = [name for name in ("upgrade", "downgrade") if not hasattr(module, name)]
    return f"{path}: has no {' and no '.join(missing)}" if missing else ""
