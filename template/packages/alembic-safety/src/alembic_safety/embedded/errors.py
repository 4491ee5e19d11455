"""The error of the embedded server, and one-line messages for errors of the operating system."""

import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic_safety.errors import EmbeddedPostgresError

__all__ = ["EmbeddedPostgresError", "readable_errors", "user_name"]


@contextmanager
def readable_errors(home: Path) -> Iterator[None]:
    """Raise OSErrors as EmbeddedPostgresError; `home` stands for a file that has no name."""
    try:
        yield
    except OSError as error:
        path = Path(os.fsdecode(error.filename or home))
        if isinstance(error, PermissionError):
            message = f"{path}: permission denied; {_closed_folder(path)}"
        else:
            message = f"{path}: {error.strerror or error}"
        raise EmbeddedPostgresError(message) from None


def user_name(uid: int) -> str:
    """Return the name of an OS user, or its number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _closed_folder(path: Path) -> str:
    """Describe the outermost folder on the way to `path` that this user can't enter."""
    on_the_way = [*reversed(path.absolute().parents), path.absolute()]
    closed = next((folder for folder in on_the_way if not os.access(folder, os.X_OK)), path.parent)
    if not os.path.lexists(closed):
        closed = closed.parent  # missing, and not to be made by this user
    found = closed.stat()
    return (
        f"{closed} belongs to the user {user_name(found.st_uid)} "
        f"(mode {stat.S_IMODE(found.st_mode):04o}). Run as that user, or have that user open or "
        "delete the folder."
    )
