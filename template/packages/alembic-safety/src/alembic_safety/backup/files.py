"""Files of backups: their names, and how a new one gets its name.

A file under a final name is whole: it is written under another one, flushed, and read to its end.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from alembic_safety.errors import MigrationError
from alembic_safety.options import BackupKind

_TICK = 0.1
_TIME = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(
    r"(?P<database>.+)_(?P<revision>[^_]+)_(?P<time>\d{8}T\d{6}Z)(?P<schema>\.schema)?\.dump"
)
_UNFINISHED = ".partial"
_LONGEST_HEADS = 60
"""Characters of the revisions in a name: file systems take 255 bytes."""


class BackupError(MigrationError):
    """No backup was taken. The message says why; no file has a final name."""


@dataclass(frozen=True, kw_only=True)
class Backup:
    """A backup's file, and the parts of its name."""

    path: Path
    database: str
    revision: str
    """The database's revision: several heads are joined by +, none is `base`."""
    taken_at: datetime
    kind: BackupKind

    @classmethod
    def parse(cls, path: Path) -> Self | None:
        """Return what the name of `path` says; None where it is not a backup's."""
        match = _NAME.fullmatch(path.name)
        try:
            taken_at = datetime.strptime(match["time"] if match else "", _TIME).replace(tzinfo=UTC)
        except ValueError:
            return None
        assert match is not None  # noqa: S101 - an empty text is no time
        return cls(
            path=path,
            database=unquote(match["database"]),
            revision=unquote(match["revision"]),
            taken_at=taken_at,
            kind=BackupKind.SCHEMA if match["schema"] else BackupKind.FULL,
        )


def list_backups(folder: Path) -> list[Backup]:
    """Return the backups in `folder`, newest first."""
    found = [backup for path in folder.glob("*.dump") if (backup := Backup.parse(path))]
    return sorted(found, key=lambda backup: (backup.taken_at, backup.path.name), reverse=True)


def backups_of(folder: Path, database: str) -> list[Backup]:
    """Return the backups of a database in `folder`, newest first."""
    return [backup for backup in list_backups(folder) if backup.database == database]


def find_backup(folder: Path, given: str, database: str, *, full: bool) -> Backup:
    """Return the backup named by `given`.

    Args:
        folder: where the backups are.
        given: a file, the name of one in `folder`, or `latest`.
        database: whose latest.
        full: whether the latest has to hold the rows, too.

    Raises:
        BackupError: there is no such file.
    """
    if given == "latest":
        for backup in backups_of(folder, database):
            if backup.kind is BackupKind.FULL or not full:
                return backup
        kind = "full backup" if full else "backup"
        raise BackupError(f"there is no {kind} of the database {database} in {folder}")
    for path in (Path(given), folder / given):
        if path.is_file():
            # Any file of pg_dump's custom format will do, whatever it is called.
            moment = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            return Backup.parse(path) or Backup(
                path=path, database=database, revision="", taken_at=moment, kind=BackupKind.FULL
            )
    raise BackupError(f"there is no backup {given}; `make backups` lists those in {folder}")


@contextmanager
def reserve_file(folder: Path, stem: str, suffix: str) -> Iterator[tuple[int, Path, Path]]:
    """Make an empty file under a temporary name; yield its descriptor, its path and the final one.

    It is locked for as long as this process, or the pg_dump that inherits the descriptor, lives.
    """
    for left in folder.glob(f".*{_UNFINISHED}"):
        _remove_if_abandoned(left)
    while (descriptor := _reserve(folder, name := _name_now(stem, suffix))) is None:
        time.sleep(_TICK)  # another backup has the name of this second
    file = folder / f".{name}{_UNFINISHED}"
    try:
        yield descriptor, file, folder / name
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _reserve(folder: Path, name: str) -> int | None:
    """Make and lock the temporary file for `name`; None where the name is taken."""
    file = folder / f".{name}{_UNFINISHED}"
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except FileExistsError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    # Before it was locked, another backup may have taken it for an abandoned one.
    ours = file.exists() and file.stat().st_ino == os.fstat(descriptor).st_ino
    if ours and not (folder / name).exists():
        return descriptor
    os.close(descriptor)
    if ours:
        file.unlink()
    return None


def _remove_if_abandoned(file: Path) -> None:
    """Delete what a backup that was killed left; its pg_dump may still be writing."""
    with suppress(OSError), file.open("rb") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.unlink()


def _name_now(stem: str, suffix: str) -> str:
    return f"{stem}_{datetime.now(UTC).strftime(_TIME)}{suffix}"


def stem(database: str, revisions: Iterable[str]) -> str:
    """Return the beginning of a backup's name: `<database>_<revision>`."""
    # No underscore in a revision: the one before it ends the database's name.
    heads = "+".join(_escape(item).replace("_", "%5F") for item in sorted(revisions)) or "base"
    return f"{_escape(database)}_{heads[:_LONGEST_HEADS]}"


def _escape(text: str) -> str:
    """Replace what no file's name can have, as in URLs."""
    return re.sub(r"[/%\x00-\x1f\x7f]|^\.", lambda match: f"%{ord(match[0]):02X}", text)


def flush_folder(folder: Path) -> None:
    """Make the new name in `folder` survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def format_size(size: int) -> str:
    """Return a number of bytes for people: `1.5 MB`."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:  # noqa: PLR2004
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
