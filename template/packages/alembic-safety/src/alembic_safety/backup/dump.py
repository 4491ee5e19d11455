"""Backups: pg_dump's custom format, checked before it gets its name.

A file under a final name is whole: it was written under another one, flushed, and read to its end.
"""

import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from alembic_safety.backup.clients import find_client, run_client
from alembic_safety.boundary import describe_error
from alembic_safety.database import history
from alembic_safety.errors import ClientProgramError, MigrationError
from alembic_safety.options import BackupKind
from alembic_safety.project import Project
from alembic_safety.backup.same_server import exported_snapshot, require_same_server

logger = logging.getLogger(__name__)

_TICK = 0.1
_TIME = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(
    r"(?P<database>.+)_(?P<revision>[^_]+)_(?P<time>\d{8}T\d{6}Z)(?P<schema>\.schema)?\.dump"
)
_UNFINISHED = ".partial"
_NO_SUCH_SNAPSHOT = re.compile(
    r'invalid snapshot identifier|snapshot "[^"]+" does not exist|cannot import a snapshot'
)
_LONGEST_HEADS = 60
"""Characters of the revisions in a name: file systems take 255 bytes."""


class BackupError(MigrationError):
    """There is no backup. The message says why; nothing stands under a final name."""


@dataclass(frozen=True, kw_only=True)
class Backup:
    """A backup's file, and what its name says."""

    path: Path
    database: str
    revision: str
    """Where the database was: several heads are joined by +, none is `base`."""
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


def kind_before_migrations(project: Project) -> BackupKind:
    """Return what is backed up before revisions run; by default everything in production."""
    if project.options.backup is not None:
        return project.options.backup
    return BackupKind.FULL if project.target.production else BackupKind.OFF


def backup_folder(project: Project) -> Path:
    """Return the folder of the backups."""
    return project.root / project.options.backup_folder


def take_backup(connection: Connection, project: Project, kind: BackupKind) -> Backup:
    """Back a database up and return the backup; the oldest beyond `backup_keep` go.

    Args:
        connection: one to the database, outside of a transaction. It is asked where the database
            is, and in a long dump now and then whether it is still there, as what holds the lock
            of the migrations must not be ended for doing nothing.
        project: whose database is backed up, by its options.
        kind: everything, or the schema.

    Raises:
        BackupError: no program, no rights, no space, or what pg_dump said.
    """
    url, options = project.target.url, project.options
    revisions = _current_revisions(connection)
    connection.rollback()
    major = server_major(connection)
    folder = backup_folder(project)
    suffix = ".schema.dump" if kind is BackupKind.SCHEMA else ".dump"
    started = time.monotonic()
    with _failures_named(folder):
        pg_dump = find_client("pg_dump", url, server_major=major)
        pg_restore = find_client("pg_restore", url, server_major=major)
        require_same_server(connection, url, pg_dump)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _reserved(folder, _stem(url.database, revisions), suffix) as (descriptor, file, path):

            def progress(seconds: float) -> None:
                written = format_size(file.stat().st_size)
                logger.info("backing up: %s after %.0f s", written, seconds)
                _keep_alive(connection)

            logger.info("backing up the database %s (%s)", url.database, kind)
            command = [
                pg_dump,
                "--format=custom",
                "--no-password",
                # 0 would be without end, as lock_timeout has it; here it is not to wait.
                f"--lock-wait-timeout={max(options.lock_wait, 1)}",
                f"--file={file}",
                f"--dbname={url.without_password}",
                *(["--schema-only"] if kind is BackupKind.SCHEMA else []),
            ]
            with exported_snapshot(connection) as snapshot:
                command.append(f"--snapshot={snapshot}")
                # With the descriptor pg_dump keeps the file's lock, should this process be killed.
                said = run_client(command, url, pass_fds=[descriptor], progress=progress)
            if said:
                logger.warning("%s", said)
            os.fsync(descriptor)
            check_readable(pg_restore, file, progress)
            file.rename(path)
            try:
                _flush(folder)
            except OSError:
                path.unlink(missing_ok=True)
                raise
    logger.info(
        "backup %s: %s in %.1f s",
        path,
        format_size(path.stat().st_size),
        time.monotonic() - started,
    )
    taken = Backup.parse(path)
    assert taken is not None  # noqa: S101 - the name was made by this module
    alike = [item for item in _of_database(folder, url.database) if item.kind is kind]
    for old in [item for item in alike if item != taken][options.backup_keep - 1 :]:
        old.path.unlink(missing_ok=True)
    return taken


def record_backup(
    connection: Connection, backup: Backup, *, seconds: float, code_version: str
) -> None:
    """Record a backup that no migration took, if the database has a history."""
    event = history.Event(
        revision=backup.revision,
        direction=history.Direction.BACKUP,
        code_version=code_version,
        seconds=seconds,
        backup=backup.path.name,
    )
    try:
        if history.exists(connection):
            history.write(connection, event)
        connection.commit()
    except DBAPIError as error:  # a role, or a replica, that may only read
        connection.rollback()
        logger.warning("the backup was made, but not recorded: %s", describe_error(error))


def list_backups(folder: Path) -> list[Backup]:
    """Return the backups in `folder`, newest first."""
    found = [backup for path in folder.glob("*.dump") if (backup := Backup.parse(path))]
    return sorted(found, key=lambda backup: (backup.taken_at, backup.path.name), reverse=True)


def find_backup(folder: Path, given: str, database: str, *, full: bool) -> Backup:
    """Return the backup that `given` means.

    Args:
        folder: where the backups are.
        given: a file, the name of one in `folder`, or `latest`.
        database: whose latest.
        full: whether the latest has to hold the rows, too.

    Raises:
        BackupError: there is no such file.
    """
    if given == "latest":
        for backup in _of_database(folder, database):
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


def check_readable(
    pg_restore: str, file: Path, progress: Callable[[float], None] = lambda _seconds: None
) -> None:
    """Read a dump's table of contents, then all of it.

    Raises:
        ClientProgramError: it is not whole; the message is pg_restore's.
    """
    run_client([pg_restore, "--list", str(file)], None)
    run_client([pg_restore, f"--file={os.devnull}", str(file)], None, progress=progress)


def format_size(size: int) -> str:
    """Return a number of bytes for people: `1.5 MB`."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:  # noqa: PLR2004
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def server_major(connection: Connection) -> int:
    """Return the major version of the server."""
    version = connection.dialect.server_version_info or (0,)
    return int(version[0])


@contextmanager
def _failures_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except ClientProgramError as error:
        reason = str(error)
        if "LOCK TABLE" in reason and "timeout" in reason:
            reason += "\n  a table was locked by another session for longer than lock_wait"
        elif _NO_SUCH_SNAPSHOT.search(reason):
            reason += "\n  pg_dump reached another server or database than this process"
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror}"
    else:
        return
    raise BackupError(f"no backup could be made, and nothing was changed: {reason}")


def _of_database(folder: Path, database: str) -> list[Backup]:
    return [backup for backup in list_backups(folder) if backup.database == database]


def _current_revisions(connection: Connection) -> list[str]:
    if connection.scalar(text("SELECT to_regclass('alembic_version') IS NULL")):
        return []
    return list(connection.scalars(text("SELECT version_num FROM alembic_version")))


def _keep_alive(connection: Connection) -> None:
    """Run a query, so that the server does not end the session for being idle."""
    in_transaction = connection.in_transaction()
    connection.exec_driver_sql("SELECT 1")
    if not in_transaction:
        connection.rollback()


def _stem(database: str, revisions: Iterable[str]) -> str:
    # No underscore in a revision: the one before it ends the database's name.
    heads = "+".join(_escape(item).replace("_", "%5F") for item in sorted(revisions)) or "base"
    return f"{_escape(database)}_{heads[:_LONGEST_HEADS]}"


def _escape(text: str) -> str:
    """Replace what no file's name can have, as in URLs."""
    return re.sub(r"[/%\x00-\x1f\x7f]|^\.", lambda match: f"%{ord(match[0]):02X}", text)


@contextmanager
def _reserved(folder: Path, stem: str, suffix: str) -> Iterator[tuple[int, Path, Path]]:
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


def _name_now(stem: str, suffix: str) -> str:
    return f"{stem}_{datetime.now(UTC).strftime(_TIME)}{suffix}"


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


def _flush(folder: Path) -> None:
    """Make the new name in `folder` survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
