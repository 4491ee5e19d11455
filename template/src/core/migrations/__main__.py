"""The commands behind `make migrate-status`, `migrate-history`, `migrate-reset`, `backup`, ..."""

import argparse
import asyncio
import atexit
import gc
import logging
import os
import signal
import sys
import textwrap
import time
from collections.abc import Coroutine, Sequence
from contextlib import redirect_stdout
from typing import Any, TypeVar

from alembic import command
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from core.config import SettingsError, get_settings
from core.database import DatabaseUnavailableError, create_engine
from core.database_url import DatabaseURL
from core.embedded_postgres import EmbeddedPostgresError
from core.logging import configure_logging
from core.migrations import record
from core.migrations.backup import (
    Backup,
    backup_folder,
    check_readable,
    find_backup,
    format_size,
    kind_before_migrations,
    list_backups,
    record_backup,
    take_backup,
)
from core.migrations.check.gate import Outcome, run_checks
from core.migrations.config import (
    AlembicConfigError,
    BackupKind,
    load_alembic_config,
    make_config,
)
from core.migrations.confirm import NotConfirmedError, confirm
from core.migrations.errors import MigrationError, describe_error
from core.migrations.plan.planner import PlanOptions, make_plan
from core.migrations.plan.report import Format, render
from core.migrations.pooler import connect_past_poolers, refuse_transaction_pooler
from core.migrations.restore import RestoreError, restore
from core.migrations.source.rebase import rebase
from core.migrations.state import Revisions, SchemaReader, SchemaState, State
from core.postgres_client import ClientProgramError, find_client

T = TypeVar("T")
UNSAFE = 3
"""The exit code of `plan` where something is unsafe."""
_AS_SET, _PENDING = "auto", "pending"
"""What the options have backed up before migrations; the same, if there are revisions to apply."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m core.migrations", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="say where the database is")
    status.set_defaults(run=lambda _: _status())
    history = commands.add_parser("history", help="say what was applied and reverted, and when")
    history.set_defaults(run=lambda _: _history())
    reset = commands.add_parser("reset", help="downgrade to base; the data are lost")
    reset.add_argument(
        "--confirm", default="", help="the database's name, where nobody can be asked"
    )
    reset.set_defaults(run=lambda given: _reset(given.confirm))
    backup = commands.add_parser("backup", help="back the database up")
    kinds = [BackupKind.FULL.value, BackupKind.SCHEMA.value, _AS_SET, _PENDING]
    backup.add_argument("--kind", choices=kinds, default=BackupKind.FULL.value)
    backup.set_defaults(run=lambda given: _backup(given.kind))
    rolled_out = commands.add_parser("rolled-out", help="record that this code runs now")
    rolled_out.add_argument("version", help="the commit, or the image's tag")
    rolled_out.set_defaults(run=lambda given: _rolled_out(given.version))
    backups = commands.add_parser("backups", help="list the backups, and read each to its end")
    backups.set_defaults(run=lambda _: _backups())
    path = commands.add_parser("backup-path", help="print where a backup is, or their folder")
    path.add_argument("backup", nargs="?", default="", help="a file, a name, or `latest`")
    path.set_defaults(run=lambda given: _backup_path(given.backup))
    restoring = commands.add_parser("restore", help="restore a backup into a new database")
    restoring.add_argument("backup", help="a file, a name that `backups` lists, or `latest`")
    restoring.add_argument("--into", default="", help="the new database's name")
    restoring.add_argument(
        "--confirm", default="", help="the present database's name: put the backup in its place"
    )
    restoring.set_defaults(run=_restore)
    _add_plan(commands.add_parser("plan", help="rehearse what is pending on a copy, and judge it"))
    check = commands.add_parser("check", help="say whether the revisions may be merged")
    check.add_argument("--base", default="", help="the branch to merge into; else origin's main")
    check.set_defaults(run=lambda given: _check(given.base))
    rebasing = commands.add_parser("rebase", help="let the new revisions follow those of the base")
    rebasing.add_argument("--base", default="", help="the branch to merge into; else origin's main")
    rebasing.set_defaults(run=lambda given: _rebase(given.base))
    given = parser.parse_args(arguments)
    try:
        load_alembic_config()  # a wrong option is said by every command
        configure_logging(get_settings())
        code: int = given.run(given)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except DBAPIError as error:
        print(describe_error(error), file=sys.stderr)
        return 1
    except (
        AlembicConfigError,
        ClientProgramError,
        CommandError,
        DatabaseUnavailableError,
        EmbeddedPostgresError,
        MigrationError,
        SettingsError,
    ) as error:
        print(error, file=sys.stderr)
        return 1
    return code


def _add_plan(plan: argparse.ArgumentParser) -> None:
    plan.add_argument("--format", choices=[form.value for form in Format], default="table")
    plan.add_argument("--from", dest="start", default="", help="begin at this revision")
    plan.add_argument("--to", default="head", help="go to this revision")
    plan.add_argument("--with-data", action="store_true", help="copy the rows, too")
    plan.add_argument(
        "--deployed", default="", help="the branch or commit that runs now: what its models use"
    )
    plan.add_argument("--base", default="", help="a branch: what this one adds to its revisions")
    plan.add_argument(
        "--allow-unsafe", action="store_true", help="end with 0 where something is unsafe, too"
    )
    plan.set_defaults(run=_plan)


def _state(url: DatabaseURL, revisions: Revisions) -> SchemaState:
    engine = create_engine(url, poolclass=NullPool, named_statements=False)
    return asyncio.run(SchemaReader(engine, revisions).read())


def _status() -> int:
    url = get_settings().migration_url
    revisions = Revisions.load()
    state = _state(url, revisions)
    if state.state is State.UNREACHABLE:
        print(state.reason, file=sys.stderr)
        return 1

    def named(ids: tuple[str, ...]) -> str:
        known = set(ids) if state.state is not State.AHEAD else set()
        names = [f"{item} ({revisions[item].message})" if item in known else item for item in ids]
        return ", ".join(names) or "none"

    print(f"database: {url.database}")
    print(f"current:  {named(state.current)}")
    print(f"head:     {', '.join(f'{i} ({revisions[i].message})' for i in state.heads) or 'none'}")
    for revision in state.pending:
        print(f"pending:  {revision.id}  {revision.date}  {revision.message}")
    hint = "; run `make migrate-up`" if state.pending else ""
    if len(state.heads) > 1:
        hint = "; there are several heads: `uv run alembic merge heads -m Merge` joins them"
    sentence = state.describe()
    print(f"{sentence[0].upper()}{sentence[1:]}{hint}.")
    return 0


def _history() -> int:
    url = get_settings().migration_url
    revisions = Revisions.load()

    async def read() -> tuple[SchemaState, list[record.Entry]]:
        engine = create_engine(url, poolclass=NullPool, named_statements=False)
        state = await SchemaReader(engine, revisions).read()
        async with engine.connect() as connection:
            return state, await connection.run_sync(record.read)

    state, entries = asyncio.run(read())
    for entry in entries:
        when = entry.started_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        message = f"  {revisions[entry.revision].message}" if entry.revision in revisions else ""
        print(
            f"{when}  {entry.direction:<9}  {entry.revision}  {entry.seconds:.2f} s  "
            f"{entry.who}@{entry.host}  code {entry.code_version}{message}"
            f"{f'  backup {entry.backup}' if entry.backup else ''}"
            f"{f'  FAILED: {entry.error}' if entry.error else ''}"
        )
    moves = {record.Direction.UPGRADE, record.Direction.DOWNGRADE, record.Direction.STAMP}
    recorded = {
        entry.revision for entry in entries if entry.error is None and entry.direction in moves
    }
    for revision in state.current:
        if revision not in recorded:
            print(f"{revision}: applied before the record began; when, and by whom, is not known")
    if not entries and not state.current:
        print(f"Nothing was ever applied to the database {url.database}.")
    return 0


def _reset(confirmation: str) -> int:
    database = get_settings().migration_url.database
    confirm(
        database,
        f"reset deletes all data of the database {database}",
        confirmation,
        how=f"make migrate-reset CONFIRM={database}",
    )
    command.downgrade(make_config(confirm=database), "base")
    print(f"The database {database} is at base: no revision is applied.")
    return 0


def _backup(given: str) -> int:
    url = get_settings().migration_url
    options = load_alembic_config().safety
    as_set = given in {_AS_SET, _PENDING}
    kind = kind_before_migrations(options) if as_set else BackupKind(given)
    if kind is BackupKind.OFF:
        print("No backup: it is switched off (option backup).", file=sys.stderr)
        return 0
    if given == _PENDING and _state(url, Revisions.load()).state is State.AT_HEAD:
        print("No backup: nothing is pending.", file=sys.stderr)
        return 0

    def take_and_record(connection: Connection) -> Backup:
        started = time.monotonic()
        backup = take_backup(connection, url, options, kind)
        record_backup(connection, backup, time.monotonic() - started)
        return backup

    async def take() -> Backup:
        async with connect_past_poolers(url) as (_, connection):
            return await connection.run_sync(take_and_record)

    print(asyncio.run(take()).path)
    return 0


def _rolled_out(version: str) -> int:
    url = get_settings().migration_url
    state = _state(url, Revisions.load())
    event = record.Event(
        revision="+".join(state.current), direction=record.Direction.ROLLOUT, code_version=version
    )

    def write(connection: Connection) -> None:
        if record.exists(connection):
            record.write(connection, event)
        connection.commit()

    async def run() -> None:
        async with connect_past_poolers(url) as (_, connection):
            await connection.run_sync(write)

    asyncio.run(run())
    return 0


def _backups() -> int:
    folder = backup_folder(load_alembic_config().safety)
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
            verdict = f"BROKEN ({' '.join(str(error).split())})"
        when = backup.taken_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        size = format_size(backup.path.stat().st_size)
        print(
            f"{when}  {backup.revision}  {backup.kind:<6}  {size:>8}  {backup.path.name}  {verdict}"
        )
    return 1 if broken else 0


def _backup_path(given: str) -> int:
    folder = backup_folder(load_alembic_config().safety)
    database = get_settings().migration_url.database
    found = find_backup(folder, given, database, full=False).path.resolve() if given else folder
    print(found)
    return 0


def _restore(given: argparse.Namespace) -> int:
    url = get_settings().migration_url
    if given.confirm and given.confirm != url.database:
        raise NotConfirmedError(
            f"{given.confirm!r} is not the name of the database ({url.database}); "
            "nothing was changed"
        )
    if given.confirm and given.into:
        raise RestoreError(
            "CONFIRM puts the backup in the present database's place, DATABASE names a new one; "
            "give one of them"
        )
    folder = backup_folder(load_alembic_config().safety)
    replace = bool(given.confirm)
    backup = find_backup(folder, given.backup, url.database, full=replace)

    async def run() -> str:
        await refuse_transaction_pooler(url)
        return await restore(url, backup, into=given.into or None, replace=replace)

    name = asyncio.run(run())
    print(f"The backup is restored in the database {name}.")
    return 0


async def _ended_in_order(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; Ctrl-C and SIGTERM, however often they come, let it clean up and end."""
    loop, task = asyncio.get_running_loop(), asyncio.create_task(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: task.cancelling() or task.cancel())
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _plan(given: argparse.Namespace) -> int:
    # What Alembic says of the copy would stand between the lines of the plan.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    options = PlanOptions(
        start=given.start,
        target=given.to,
        with_data=given.with_data,
        deployed=given.deployed,
        base=given.base,
    )
    planning = make_plan(get_settings().migration_url, load_alembic_config().safety, options)
    # What revisions print does not stand in the plan, which a program may read.
    with redirect_stdout(sys.stderr):
        plan = asyncio.run(_ended_in_order(planning))
    # https://no-color.org
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(render(plan, Format(given.format), color=color))
    if any(item.rehearsed.error for item in plan.revisions):
        return 1
    return 0 if plan.safe or given.allow_unsafe else UNSAFE


def _check(base: str) -> int:
    # What Alembic says of each of its steps would stand between the lines.
    logging.getLogger("alembic").setLevel(logging.WARNING)

    async def check() -> int:
        failed = 0
        async for result in run_checks(get_settings().migration_url, base):
            failed += result.outcome is Outcome.FAILED
            print(f"{result.outcome:<5} {result.check:<18}  {result.note}".rstrip(), flush=True)
            for problem in result.problems:
                print(textwrap.indent(problem, " " * 6), flush=True)
        return failed

    return 1 if asyncio.run(_ended_in_order(check())) else 0


def _rebase(base: str) -> int:
    for line in rebase(base):
        print(line)
    return 0


if __name__ == "__main__":
    atexit.register(gc.freeze)  # as in migrations/env.py
    sys.exit(main())
