"""Files of backups: names, lookup, and the reservation of a new name.

A backup is written under a temporary name, flushed and verified before it gets its final name, so
every file with a final name is complete.
"""

import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from alembic_safety.cancellation import pause
from alembic_safety.errors import MigrationError
from alembic_safety.options import BackupKind

_TICK = 0.1
_TIME = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(
    r"(?P<database>.+)_(?P<revision>[^_]+)_(?P<time>\d{8}T\d{6}Z)(?P<schema>\.schema)?\.dump"
)
_UNFINISHED = ".partial"
_LONGEST_HEADS = 60
"""Characters of the revisions in a name; file systems limit a name to 255 bytes."""


class BackupError(MigrationError):
    """No backup was taken, and no file has a final name."""


@dataclass(frozen=True, kw_only=True)
class Backup:
    """The file of a backup, and the parts of its name."""

    path: Path
    database: str
    revision: str
    """Revision of the database: several heads are joined by +; none is `base`."""
    taken_at: datetime
    kind: BackupKind

    @classmethod
    def parse(cls, path: Path) -> Self | None:
        """Parse the name of a file; return None if it is not that of a backup."""
        match = _NAME.fullmatch(path.name)
        try:
            taken_at = datetime.strptime(match["time"] if match else "", _TIME).replace(tzinfo=UTC)
        except ValueError:
            return None
        assert match is not None  # noqa: S101 - parsing an empty time raises
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


def find_backup(folder: Path, name: str, database: str, *, full: bool) -> Backup:
    """Return a backup.

    Args:
        folder: folder of the backups.
        name: path of a file, name of a file in `folder`, or `latest`.
        database: database of the latest backup.
        full: whether `latest` must be a full backup.

    Raises:
        BackupError: there is no such backup.
    """
    if name == "latest":
        for backup in backups_of(folder, database):
            if backup.kind is BackupKind.FULL or not full:
                return backup
        kind = "full backup" if full else "backup"
        raise BackupError(f"there is no {kind} of the database {database} in {folder}")
    for path in (Path(name), folder / name):
        if path.is_file():
            # A file of any name is accepted; pg_restore checks its format.
            moment = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            return Backup.parse(path) or Backup(
                path=path, database=database, revision="", taken_at=moment, kind=BackupKind.FULL
            )
    raise BackupError(
        f"there is no backup {name}; `alembic-safety backups` lists those in {folder}"
    )


@contextmanager
def reserve_file(folder: Path, stem: str, suffix: str) -> Iterator[tuple[int, Path, Path]]:
    """Create an empty file under a temporary name; yield its descriptor, its path, its final path.

    The file is locked while this process lives, or a pg_dump that inherited the descriptor.
    """
    delete_abandoned_files(folder)
    while (descriptor := _reserve(folder, name := _name_now(stem, suffix))) is None:
        pause(_TICK)  # another backup reserved the name of this second
    file = folder / f".{name}{_UNFINISHED}"
    try:
        yield descriptor, file, folder / name
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _reserve(folder: Path, name: str) -> int | None:
    """Create and lock the temporary file of `name`; return None if the name is taken."""
    file = folder / f".{name}{_UNFINISHED}"
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except FileExistsError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    # Another backup may have deleted the file as abandoned before it was locked.
    ours = file.exists() and file.stat().st_ino == os.fstat(descriptor).st_ino
    if ours and not (folder / name).exists():
        return descriptor
    os.close(descriptor)
    if ours:
        file.unlink()
    return None


def delete_abandoned_files(folder: Path) -> list[Path]:
    """Delete the files of killed backups, unless their pg_dump still writes; return their paths."""
    deleted = []
    for file in folder.glob(f".*{_UNFINISHED}"):
        with suppress(OSError), file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink()
            deleted.append(file)
    return deleted


def _name_now(stem: str, suffix: str) -> str:
    return f"{stem}_{datetime.now(UTC).strftime(_TIME)}{suffix}"


def stem(database: str, revisions: Iterable[str]) -> str:
    """Return the name of a backup up to its time: `<database>_<revision>`."""
    # Revisions have no underscore, because the last one ends the name of the database.
    heads = "+".join(_escape(item).replace("_", "%5F") for item in sorted(revisions)) or "base"
    return f"{_escape(database)}_{heads[:_LONGEST_HEADS]}"


def _escape(text: str) -> str:
    """Percent-encode characters that are invalid in the name of a file."""
    return re.sub(r"[/%\x00-\x1f\x7f]|^\.", lambda match: f"%{ord(match[0]):02X}", text)


def flush_folder(folder: Path) -> None:
    """Flush the entries of `folder` to disk, so that a renamed file survives a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def format_size(size: int) -> str:
    """Format a number of bytes: `1.5 MB`."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:  # noqa: PLR2004
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
