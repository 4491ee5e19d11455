"""Backups in the custom format of pg_dump, verified before they get their final names."""

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
from alembic_safety.sql import quote_identifier

logger = logging.getLogger(__name__)

_NO_SUCH_SNAPSHOT = re.compile(
    r'invalid snapshot identifier|snapshot "[^"]+" does not exist|cannot import a snapshot'
)


def kind_before_migrations(project: Project) -> BackupKind:
    """Return the kind of backup to take before revisions run."""
    if project.options.backup is not None:
        return project.options.backup
    return BackupKind.FULL if project.target.production else BackupKind.OFF


def backup_folder(project: Project) -> Path:
    """Return the folder of the backups."""
    return project.root / project.options.backup_folder


def take_backup(connection: Connection, project: Project, kind: BackupKind) -> Backup:
    """Back up the database of a project; delete its oldest backups beyond `backup_keep`.

    Args:
        connection: a connection to the database, outside of a transaction. The dump uses a snapshot
            that it exports. Queries during a long dump keep it, and with it the migration lock,
            from being terminated for idleness.
        project: the project, for its database and options.
        kind: full or schema.

    Returns:
        The new backup.

    Raises:
        BackupError: pg_dump is missing or failed, or the file could not be written.
    """
    url, options = project.target.url, project.options
    revisions = _current_revisions(connection)
    connection.rollback()
    major = server_major(connection)
    folder = backup_folder(project)
    suffix = ".schema.dump" if kind is BackupKind.SCHEMA else ".dump"
    started = time.monotonic()
    with _backup_errors(folder, url.user):
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
                lock_wait_option(options.lock_wait),
                f"--file={file}",
                f"--dbname={url.without_password}",
                *(["--schema-only"] if kind is BackupKind.SCHEMA else []),
            ]
            with exported_snapshot(connection) as snapshot:
                command.append(f"--snapshot={snapshot}")
                # The inherited descriptor keeps the file locked while pg_dump runs, even if this
                # process is killed.
                warnings = run_client(command, url, pass_fds=[descriptor], progress=progress)
            if warnings:
                logger.warning("%s", warnings)
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
    assert taken is not None  # noqa: S101 - the name has the format of this module
    same_kind = [item for item in backups_of(folder, url.database) if item.kind is kind]
    for old in [item for item in same_kind if item != taken][options.backup_keep - 1 :]:
        old.path.unlink(missing_ok=True)
    return taken


def record_backup(
    connection: Connection, backup: Backup, *, seconds: float, code_version: str
) -> None:
    """Record a backup that was taken outside of a migration, if the history table exists.

    Args:
        connection: a connection to the database.
        backup: the backup.
        seconds: duration of the backup.
        code_version: version of the code.
    """
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
    except DBAPIError as error:  # a read-only role or replica
        connection.rollback()
        logger.warning("the backup was taken, but could not be recorded: %s", describe_error(error))


def check_readable(
    pg_restore: str, file: Path, progress: Callable[[float], None] = lambda _seconds: None
) -> None:
    """Verify that pg_restore can read an archive to its end.

    Raises:
        ClientProgramError: the archive is damaged; the message is that of pg_restore.
    """
    run_client([pg_restore, "--list", str(file)], None)
    run_client([pg_restore, f"--file={os.devnull}", str(file)], None, progress=progress)


def lock_wait_option(lock_wait: int) -> str:
    """Return the option of pg_dump for how many milliseconds it waits for a table."""
    return f"--lock-wait-timeout={max(lock_wait, 1)}"  # pg_dump would wait forever with 0


def lock_wait_hint(error: ClientProgramError) -> str:
    """Return a second line for the message of a pg_dump that waited too long; else nothing."""
    if "LOCK TABLE" in str(error) and "timeout" in str(error):
        return "\n  another session locked a table for longer than lock_wait"
    return ""


def server_major(connection: Connection) -> int:
    """Return the major version of the server."""
    version = connection.dialect.server_version_info or (0,)
    return int(version[0])


@contextmanager
def _backup_errors(folder: Path, user: str) -> Iterator[None]:
    try:
        yield
    except ClientProgramError as error:
        reason = f"{error}{lock_wait_hint(error)}"
        if "permission denied" in reason or "lack SELECT privilege" in reason:
            reason += (
                "\n  to let this role read everything, a superuser runs: "
                f"GRANT pg_read_all_data TO {quote_identifier(user)}"
            )
        elif _NO_SUCH_SNAPSHOT.search(reason):
            reason += "\n  pg_dump reached another server or database than this process"
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror}"
    else:
        return
    raise BackupError(f"the backup failed, and nothing was changed: {reason}")


def _current_revisions(connection: Connection) -> list[str]:
    if connection.scalar(text("SELECT to_regclass('alembic_version') IS NULL")):
        return []
    return list(connection.scalars(text("SELECT version_num FROM alembic_version")))


def _keep_alive(connection: Connection) -> None:
    """Run a query, so that the server does not terminate the session for idleness."""
    in_transaction = connection.in_transaction()
    connection.exec_driver_sql("SELECT 1")
    if not in_transaction:
        connection.rollback()
