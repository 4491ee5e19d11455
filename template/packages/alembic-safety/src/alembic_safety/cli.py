"""Command line of `alembic-safety`, next to Alembic's own program."""

import os
from collections.abc import Sequence
from typing import Any

import click
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from alembic_safety.boundary import describe_error
from alembic_safety.cancellation import Interrupted, handled_signals
from alembic_safety.errors import MigrationError
from alembic_safety.ini.cli import ini
from alembic_safety.loader import Loader

# Commands are imported when they run, because `status` needs a fraction of what `plan` needs.

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
BASE = click.option("--base", default="", help="Branch to merge into; by default that of origin.")


@click.group(context_settings=_SETTINGS)
@click.option(
    "-c", "--config", multiple=True, help="alembic.ini or pyproject.toml, as for `alembic -c`."
)
@click.option("-n", "--name", default="alembic", help="Section of the ini, as for `alembic -n`.")
@click.option(
    "-x", "x_arguments", multiple=True, help="key=value for env.py, such as lock_timeout=5s."
)
@click.option("--raiseerr", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="alembic-safety")
@click.pass_context
def program(context: click.Context, /, **_options: Any) -> None:
    """Plan, check, back up and watch the migrations of a PostgreSQL database.

    The database, the models and the options come from migrations/env.py.
    """
    if os.environ.get("NO_COLOR"):  # https://no-color.org
        context.color = False


program.add_command(ini)


@program.command()
@click.pass_obj
def status(load: Loader) -> int:
    """Print the current revision, the head and what is pending."""
    from alembic_safety.commands import schema

    return schema.print_status(load())


@program.command()
@click.pass_obj
def verify(load: Loader) -> int:
    """Fail unless the database is at head."""
    from alembic_safety.commands import schema

    return schema.verify(load())


@program.command()
@click.pass_obj
def history(load: Loader) -> int:
    """Print what was applied and reverted, and when."""
    from alembic_safety.commands import schema

    return schema.print_history(load())


@program.command()
@click.option("--confirm", default="", help="Name of the database, instead of the prompt.")
@click.pass_obj
def reset(load: Loader, confirm: str) -> int:
    """Revert all revisions; deletes all data."""
    from alembic_safety.commands import schema

    return schema.reset(load(), confirm)


@program.command("rolled-out")
@click.argument("version")
@click.pass_obj
def rolled_out(load: Loader, version: str) -> int:
    """Record the rollout of a code VERSION, a commit or an image tag."""
    from alembic_safety.commands import schema

    return schema.record_rollout(load(), version)


@program.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "markdown", "json"]),
    default="table",
    help="Format of the plan.",
)
@click.option("--from", "start", default="", help="First revision; by default the database's.")
@click.option("--to", default="head", help="Last revision; by default head.")
@click.option("--with-data", is_flag=True, help="Copy the rows as well.")
@click.option(
    "--deployed", default="", help="Commit of the running code, whose models must keep working."
)
@click.option("--base", default="", help="Plan only the revisions that are new to this branch.")
@click.option("--allow-unsafe", is_flag=True, help="Exit with 0 even if a revision is unsafe.")
@click.pass_obj
def plan(load: Loader, /, **given: Any) -> int:
    """Rehearse the pending revisions on a scratch copy."""
    from alembic_safety.commands import review

    return review.plan(load(), **given)


@program.command()
@BASE
@click.pass_obj
def check(load: Loader, base: str) -> int:
    """Check whether the revisions can be merged."""
    from alembic_safety.commands import review

    return review.check(load(), base)


@program.command()
@BASE
@click.pass_obj
def rebase(load: Loader, base: str) -> int:
    """Move the new revisions after those of the base branch."""
    from alembic_safety.commands import review

    return review.rebase(load(), base)


@program.command()
@click.option(
    "--kind",
    type=click.Choice(["full", "schema", "auto", "pending"]),
    default="full",
    help="auto: as the options say; pending: that, if a revision is pending.",
)
@click.pass_obj
def backup(load: Loader, kind: str) -> int:
    """Back up the database."""
    from alembic_safety.commands import backups

    return backups.back_up(load(), kind)


@program.command("backups")
@click.pass_obj
def list_backups(load: Loader) -> int:
    """List the backups, and read each to its end."""
    from alembic_safety.commands import backups

    return backups.print_backups(load())


@program.command("backup-path")
@click.argument("backup", default="")
@click.pass_obj
def backup_path(load: Loader, backup: str) -> int:
    """Print the path of BACKUP, or of the folder of the backups."""
    from alembic_safety.commands import backups

    return backups.print_backup_path(load(), backup)


@program.command()
@click.argument("backup")
@click.option("--into", default="", help="Name of the new database.")
@click.option(
    "--confirm", default="", help="Name of the present database, to replace it with the backup."
)
@click.pass_obj
def restore(load: Loader, backup: str, into: str, confirm: str) -> int:
    """Restore BACKUP into a new database: a file, a name that `backups` lists, or `latest`."""
    from alembic_safety.commands import backups

    return backups.restore(load(), backup, into=into, confirm=confirm)


@program.command()
@click.pass_obj
def cleanup(load: Loader) -> int:
    """Remove what killed commands left behind."""
    from alembic_safety.commands import cleanup

    return cleanup.clean_up(load())


@program.command()
@click.option(
    "--url-variable",
    "variable",
    default="DATABASE_URL",
    show_default=True,
    help="Environment variable for the database URL, if the ini has no sqlalchemy.url.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Print the change, and change nothing.")
@click.pass_obj
def eject(load: Loader, /, **given: Any) -> int:
    """Replace env.py with a stock one that does not use this library."""
    from alembic_safety.commands import eject

    return eject.eject(load(), **given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    load = Loader()
    try:
        with handled_signals():
            code: int | None = program.main(
                arguments, prog_name="alembic-safety", standalone_mode=False, obj=load
            )
    except Interrupted as interrupted:
        click.echo("Interrupted.", err=True)
        return interrupted.exit_code
    except click.Abort:  # the end of the input, at a question
        click.echo("Nothing was changed.", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (CommandError, DBAPIError, MigrationError) as error:
        if load.raiseerr:
            raise
        click.echo(describe_error(error) if isinstance(error, DBAPIError) else error, err=True)
        return 1
    return code or 0
