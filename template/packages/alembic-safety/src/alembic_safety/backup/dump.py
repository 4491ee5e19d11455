"""Taking a backup: pg_dump's custom format, checked before it gets its name."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from alembic_safety.backup.clients import find_client, run_client
from alembic_safety.backup.files import (
    Backup,
    BackupError,
    backups_of,
    flush_folder,
    format_size,
    reserve_file,
    stem,
)
from alembic_safety.backup.same_server import exported_snapshot, require_same_server
from alembic_safety.boundary import describe_error
from alembic_safety.database import history
from alembic_safety.errors import ClientProgramError
from alembic_safety.options import BackupKind
from alembic_safety.project import Project

logger = logging.getLogger(__name__)

_NO_SUCH_SNAPSHOT = re.compile(
    r'invalid snapshot identifier|snapshot "[^"]+" does not exist|cannot import a snapshot'
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
        with reserve_file(folder, stem(url.database, revisions), suffix) as (
            descriptor,
            file,
            path,
        ):

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
                flush_folder(folder)
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
    alike = [item for item in backups_of(folder, url.database) if item.kind is kind]
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


def check_readable(
    pg_restore: str, file: Path, progress: Callable[[float], None] = lambda _seconds: None
) -> None:
    """Read a dump's table of contents, then all of it.

    Raises:
        ClientProgramError: it is not whole; the message is pg_restore's.
    """
    run_client([pg_restore, "--list", str(file)], None)
    run_client([pg_restore, f"--file={os.devnull}", str(file)], None, progress=progress)


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
