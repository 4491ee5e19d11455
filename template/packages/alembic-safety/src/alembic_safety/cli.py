"""Commands that complement those of `alembic`, for PostgreSQL."""

import argparse
import atexit
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from alembic_safety.boundary import describe_error
from alembic_safety.cancellation import Interrupted, handled_signals
from alembic_safety.commands import backups, review, schema
from alembic_safety.commands.cleanup import clean_up
from alembic_safety.config import make_config
from alembic_safety.errors import MigrationError
from alembic_safety.options import BackupKind
from alembic_safety.plan.report import Format
from alembic_safety.project import Project


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    parser = argparse.ArgumentParser(prog="alembic-safety", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    status = commands.add_parser(
        "status", help="print the current revision, the head and the pending revisions"
    )
    status.set_defaults(run=lambda project, _: schema.print_status(project))
    history = commands.add_parser("history", help="print what was applied and reverted, and when")
    history.set_defaults(run=lambda project, _: schema.print_history(project))
    reset = commands.add_parser("reset", help="revert all revisions; deletes all data")
    reset.add_argument("--confirm", default="", help="name of the database, instead of the prompt")
    reset.set_defaults(run=lambda project, given: schema.reset(project, given.confirm))
    backup = commands.add_parser("backup", help="back up the database")
    kinds = [BackupKind.FULL.value, BackupKind.SCHEMA.value, backups.AUTO, backups.PENDING]
    backup.add_argument("--kind", choices=kinds, default=BackupKind.FULL.value)
    backup.set_defaults(run=lambda project, given: backups.back_up(project, given.kind))
    rolled_out = commands.add_parser("rolled-out", help="record the rollout of a code version")
    rolled_out.add_argument("version", help="commit or image tag")
    rolled_out.set_defaults(
        run=lambda project, given: schema.record_rollout(project, given.version)
    )
    listing = commands.add_parser("backups", help="list and verify the backups")
    listing.set_defaults(run=lambda project, _: backups.print_backups(project))
    path = commands.add_parser("backup-path", help="print the path of a backup, or of the folder")
    path.add_argument(
        "backup", nargs="?", default="", help="a file, a name that `backups` lists, or `latest`"
    )
    path.set_defaults(run=lambda project, given: backups.print_backup_path(project, given.backup))
    restoring = commands.add_parser("restore", help="restore a backup into a new database")
    restoring.add_argument("backup", help="a file, a name that `backups` lists, or `latest`")
    restoring.add_argument("--into", default="", help="name of the new database")
    restoring.add_argument(
        "--confirm", default="", help="name of the present database: replace it with the backup"
    )
    restoring.set_defaults(run=backups.restore)
    cleanup = commands.add_parser("cleanup", help="remove what killed commands left behind")
    cleanup.set_defaults(run=lambda project, _: clean_up(project))
    _add_plan(commands.add_parser("plan", help="rehearse the pending revisions on a scratch copy"))
    check = commands.add_parser("check", help="check whether the revisions can be merged")
    check.add_argument("--base", default="", help="branch to merge into; default: that of origin")
    check.set_defaults(run=lambda project, given: review.check(project, given.base))
    rebasing = commands.add_parser(
        "rebase", help="move the new revisions after those of the base branch"
    )
    rebasing.add_argument(
        "--base", default="", help="branch to merge into; default: that of origin"
    )
    rebasing.set_defaults(run=lambda project, given: review.rebase(project, given.base))
    given = parser.parse_args(arguments)
    try:
        with handled_signals():
            project = Project.load(make_config(Path.cwd()))
            code: int = given.run(project, given)
    except Interrupted as interrupted:
        print("Interrupted.", file=sys.stderr)
        return interrupted.exit_code
    except DBAPIError as error:
        print(describe_error(error), file=sys.stderr)
        return 1
    except (CommandError, MigrationError) as error:
        print(error, file=sys.stderr)
        return 1
    return code


def _add_plan(plan: argparse.ArgumentParser) -> None:
    plan.add_argument("--format", choices=[form.value for form in Format], default="table")
    plan.add_argument(
        "--from", dest="start", default="", help="first revision; default: that of the database"
    )
    plan.add_argument("--to", default="head", help="last revision; default: head")
    plan.add_argument("--with-data", action="store_true", help="copy the rows as well")
    plan.add_argument(
        "--deployed",
        default="",
        help="branch or commit of the running code, whose models must keep working",
    )
    plan.add_argument(
        "--base", default="", help="base branch; plan only the revisions that this one adds"
    )
    plan.add_argument(
        "--allow-unsafe", action="store_true", help="exit with 0 even if a revision is unsafe"
    )
    plan.set_defaults(run=review.plan)


def run() -> None:
    """Run the program and exit."""
    atexit.register(gc.freeze)  # skip the last garbage collection, as in alembic_safety.environment
    sys.exit(main())
