"""Commands on backups."""

import sys
import time

import click
from sqlalchemy import Connection

from alembic_safety import cancellation
from alembic_safety.backup.clients import find_client
from alembic_safety.backup.dump import (
    backup_folder,
    check_readable,
    kind_before_migrations,
    record_backup,
    take_backup,
)
from alembic_safety.backup.files import Backup, find_backup, format_size, list_backups
from alembic_safety.backup.restore import restore as restore_database
from alembic_safety.backup.swap import RestoreError
from alembic_safety.commands.schema import read_state
from alembic_safety.database.pooler import connect_directly, refuse_transaction_pooler
from alembic_safety.errors import ClientProgramError, NotConfirmedError
from alembic_safety.options import BackupKind
from alembic_safety.project import Project
from alembic_safety.state import Revisions, State

AUTO = "auto"
"""The kind that the options set."""
PENDING = "pending"
"""As `AUTO`, but only if revisions are pending."""


def back_up(project: Project, given: str) -> int:
    """Take a backup and print its path.

    Args:
        project: the project.
        given: a `BackupKind`, `AUTO` or `PENDING`.
    """
    target = project.target
    automatic = given in {AUTO, PENDING}
    kind = kind_before_migrations(project) if automatic else BackupKind(given)
    if kind is BackupKind.OFF:
        print("No backup: the option backup is off.", file=sys.stderr)
        return 0
    if given == PENDING and _nothing_is_pending(project):
        print("No backup: no revision is pending.", file=sys.stderr)
        return 0

    def take_and_record(connection: Connection) -> Backup:
        started = time.monotonic()
        backup = take_backup(connection, project, kind)
        seconds = time.monotonic() - started
        record_backup(connection, backup, seconds=seconds, code_version=target.code_version)
        return backup

    async def take() -> Backup:
        async with connect_directly(target.url) as (_, connection):
            return await connection.run_sync(take_and_record)

    print(cancellation.run(take()).path)
    return 0


def print_backups(project: Project) -> int:
    """Verify and print each backup; return 1 if one is broken."""
    folder = backup_folder(project)
    backups = list_backups(folder)
    if not backups:
        print(f"There are no backups in {folder}.")
        return 0
    pg_restore = find_client("pg_restore", None)
    broken = 0
    for backup in backups:
        try:
            check_readable(pg_restore, backup.path)
            verdict = "verified"
        except ClientProgramError as error:
            broken += 1
            verdict = click.style("BROKEN", fg="red") + f" ({' '.join(str(error).split())})"
        when = backup.taken_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        size = format_size(backup.path.stat().st_size)
        click.echo(
            f"{when}  {backup.revision}  {backup.kind:<6}  {size:>8}  {backup.path.name}  {verdict}"
        )
    return 1 if broken else 0


def print_backup_path(project: Project, given: str) -> int:
    """Print the path of a backup; print the folder if `given` is empty."""
    folder = backup_folder(project)
    database = project.target.url.database
    found = find_backup(folder, given, database, full=False).path.resolve() if given else folder
    print(found)
    return 0


def restore(project: Project, name: str, *, into: str, confirm: str) -> int:
    """Restore a backup into a new database, or in place of the present one.

    Args:
        project: the project.
        name: a file, the name of a backup, or `latest`, the newest full backup.
        into: name of the new database; may be empty.
        confirm: name of the present database, to replace it; may be empty.
    """
    url = project.target.url
    if confirm and confirm != url.database:
        raise NotConfirmedError(
            f"{confirm!r} is not the name of the database ({url.database}); nothing was changed"
        )
    if confirm and into:
        raise RestoreError(
            "--confirm replaces the present database, --into names a new one; use one of them"
        )
    folder = backup_folder(project)
    replace = bool(confirm)
    backup = find_backup(folder, name, url.database, full=True)

    async def run() -> str:
        await refuse_transaction_pooler(url)
        return await restore_database(url, backup, into=into or None, replace=replace)

    name = cancellation.run(run())
    what = (
        "schema was restored, without rows,"
        if backup.kind is BackupKind.SCHEMA
        else "backup was restored"
    )
    print(f"The {what} into the database {name}.")
    return 0


def _nothing_is_pending(project: Project) -> bool:
    state = read_state(project, Revisions.load(project.make_config()))
    return state.state is not State.UNREACHABLE and not state.pending
