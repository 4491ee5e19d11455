"""Commands `ini import` and `ini export`."""

from collections.abc import Callable
from typing import Any

import click


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("--pyproject", default="", help="pyproject.toml; by default the nearest one."),
        click.option("--python", default="", help="The Python that has the project's Alembic."),
        click.option(
            "--url-variable",
            default="DATABASE_URL",
            show_default=True,
            help="Environment variable for the database URL.",
        ),
        click.option("--dry-run", is_flag=True, help="Show the diff, and change nothing."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def ini() -> None:
    """Move alembic.ini to [tool.alembic] of pyproject.toml, and back (extra `ini`)."""


@ini.command("import")
@click.argument("ini", default="alembic.ini")
@click.option("--name", default="alembic", help="Main section, as for `alembic --name`.")
@_common
def import_(ini: str, name: str, **options: Any) -> int:
    """Move INI to [tool.alembic]."""
    return _convert(options, ini, name)


@ini.command()
@_common
def export(**options: Any) -> int:
    """Move [tool.alembic] to alembic.ini."""
    return _convert(options)


def _convert(given: dict[str, Any], *from_ini: str) -> int:
    try:
        from alembic_safety.ini.change import Options
        from alembic_safety.ini.exporting import export_ini
        from alembic_safety.ini.importing import import_ini
    except ModuleNotFoundError as error:
        if error.name != "tomlkit":
            raise
        raise click.ClickException(
            'tomlkit is not installed; install the extra: pip install "alembic-safety[ini]"'
        ) from None
    from alembic_safety.ini.errors import ConversionError

    options = Options(**given)
    try:
        if from_ini:
            path, section = from_ini
            notes = import_ini(path, options, section=section)
        else:
            notes = export_ini(options)
    except ConversionError as error:
        click.echo(f"{error}\nNothing was changed.", err=True)
        return 1
    for note in notes:
        click.echo(f"- {note}")
    same = "Alembic reads the same options, and heads, history and upgrade --sql print the same."
    click.echo(f"{same} Nothing was changed: --dry-run." if options.dry_run else same)
    return 0
