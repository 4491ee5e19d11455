"""Temporary folders for dumps, and those that a killed process left behind."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "alembic-safety-"
_LOCK = "lock"


@contextmanager
def workspace() -> Iterator[tuple[Path, int]]:
    """Create a temporary folder for the block; yield it, and the descriptor of its lock.

    A program that inherits the descriptor keeps the folder locked if this process is killed.
    """
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        folder = Path(name)
        descriptor = os.open(folder / "new", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            (folder / "new").rename(folder / _LOCK)  # without a lock file, a folder is left alone
            yield folder, descriptor
        finally:
            os.close(descriptor)


def delete_abandoned() -> list[Path]:
    """Delete the folders of killed processes, unless a program still writes; return their paths."""
    deleted = []
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError), (folder / _LOCK).open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
            deleted.append(folder)
    return deleted
