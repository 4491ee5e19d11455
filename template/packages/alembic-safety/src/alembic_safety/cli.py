"""The program `alembic-safety`: commands next to those of `alembic`."""

import argparse
import atexit
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from alembic_safety.boundary import describe_error
from alembic_safety.commands import backups, review, schema
from alembic_safety.config import make_config
from alembic_safety.errors import MigrationError
from alembic_safety.options import BackupKind
from alembic_safety.plan.report import Format
from alembic_safety.project import Project


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    parser = argparse.ArgumentParser(prog="alembic-safety", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="say where the database is")
    status.set_defaults(run=lambda project, _: schema.print_status(project))
    history = commands.add_parser("history", help="say what was applied and reverted, and when")
    history.set_defaults(run=lambda project, _: schema.print_history(project))
    reset = commands.add_parser("reset", help="downgrade to base; the data are lost")
    reset.add_argument(
        "--confirm", default="", help="the database's name, where nobody can be asked"
    )
    reset.set_defaults(run=lambda project, given: schema.reset(project, given.confirm))
    backup = commands.add_parser("backup", help="back the database up")
    kinds = [BackupKind.FULL.value, BackupKind.SCHEMA.value, backups.AS_SET, backups.PENDING]
    backup.add_argument("--kind", choices=kinds, default=BackupKind.FULL.value)
    backup.set_defaults(run=lambda project, given: backups.back_up(project, given.kind))
    rolled_out = commands.add_parser("rolled-out", help="record that this code runs now")
    rolled_out.add_argument("version", help="the commit, or the image's tag")
    rolled_out.set_defaults(
        run=lambda project, given: schema.record_rollout(project, given.version)
    )
    listing = commands.add_parser("backups", help="list the backups, and read each to its end")
    listing.set_defaults(run=lambda project, _: backups.print_backups(project))
    path = commands.add_parser("backup-path", help="print where a backup is, or their folder")
    path.add_argument("backup", nargs="?", default="", help="a file, a name, or `latest`")
    path.set_defaults(run=lambda project, given: backups.print_backup_path(project, given.backup))
    restoring = commands.add_parser("restore", help="restore a backup into a new database")
    restoring.add_argument("backup", help="a file, a name that `backups` lists, or `latest`")
    restoring.add_argument("--into", default="", help="the new database's name")
    restoring.add_argument(
        "--confirm", default="", help="the present database's name: put the backup in its place"
    )
    restoring.set_defaults(run=backups.restore)
    _add_plan(commands.add_parser("plan", help="rehearse what is pending on a copy, and judge it"))
    check = commands.add_parser("check", help="say whether the revisions may be merged")
    check.add_argument("--base", default="", help="the branch to merge into; else origin's main")
    check.set_defaults(run=lambda project, given: review.check(project, given.base))
    rebasing = commands.add_parser("rebase", help="let the new revisions follow those of the base")
    rebasing.add_argument("--base", default="", help="the branch to merge into; else origin's main")
    rebasing.set_defaults(run=lambda project, given: review.rebase(project, given.base))
    given = parser.parse_args(arguments)
    try:
        project = Project.load(make_config(Path.cwd()))
        code: int = given.run(project, given)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except DBAPIError as error:
        print(describe_error(error), file=sys.stderr)
        return 1
    except (CommandError, MigrationError) as error:
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
    plan.set_defaults(run=review.plan)


def run() -> None:
    """Run the program."""
    atexit.register(gc.freeze)  # as in alembic_safety.environment
    sys.exit(main())
