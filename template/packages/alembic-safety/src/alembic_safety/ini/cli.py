"""The command line: `python -m alembic_safety.ini import` and `export`."""

import argparse
import sys
from collections.abc import Sequence

from alembic_safety.ini.change import Options
from alembic_safety.ini.errors import ConversionError
from alembic_safety.ini.exporting import export_ini
from alembic_safety.ini.importing import import_ini


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    given = _parser().parse_args(arguments)
    options = Options(
        pyproject=given.pyproject,
        python=given.python,
        url_variable=given.url_variable,
        dry_run=given.dry_run,
    )
    try:
        if given.command == "import":
            notes = import_ini(given.ini, options, section=given.name)
        else:
            notes = export_ini(options)
    except ConversionError as error:
        print(f"{error}\nNothing was changed.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing was changed.", file=sys.stderr)
        return 130
    for note in notes:
        print(f"- {note}")
    same = "Alembic reads the same options, and heads, history and upgrade --sql print the same."
    print(f"{same} Nothing was changed: --dry-run." if given.dry_run else same)
    return 0


def _parser() -> argparse.ArgumentParser:
    defaults = Options()
    parser = argparse.ArgumentParser(
        prog="python -m alembic_safety.ini",
        description="Move a project from alembic.ini to [tool.alembic] of pyproject.toml, and back.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    importing = commands.add_parser("import", help="move alembic.ini to [tool.alembic]")
    importing.add_argument("ini", nargs="?", default="alembic.ini", metavar="INI")
    importing.add_argument("--name", default="alembic", help="the main section, as alembic --name")
    exporting = commands.add_parser("export", help="move [tool.alembic] to alembic.ini")
    for command in (importing, exporting):
        command.add_argument(
            "--pyproject", default=defaults.pyproject, help="by default the nearest one"
        )
        command.add_argument(
            "--python", default=defaults.python, help="the Python that has the project's Alembic"
        )
        command.add_argument(
            "--url-variable",
            default=defaults.url_variable,
            help="the environment variable for the database URL (default: %(default)s)",
        )
        command.add_argument(
            "--dry-run", action="store_true", help="show the diff and change nothing"
        )
    return parser
