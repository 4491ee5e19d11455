"""Loading of the project that a command works on."""

import logging
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import click
from alembic.config import Config

from alembic_safety.errors import MigrationError
from alembic_safety.project import Project


class Loader:
    """Loads the project when a command needs it."""

    raiseerr = False

    def __call__(self) -> Project:
        """Run env.py, and return its project.

        Raises:
            MigrationError: there is no configuration, or env.py fails.
        """
        given = click.get_current_context().find_root().params
        self.raiseerr = given["raiseerr"]
        project = Project.load(make_config(given))
        _show_progress()
        return project


def _show_progress() -> None:
    """Show the progress of backups and restores, which projects usually do not log."""
    logger = logging.getLogger("alembic_safety")
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())


def make_config(given: dict[str, Any]) -> Config:
    """Return the configuration that Alembic's program would use.

    Args:
        given: the options of the program.

    Raises:
        MigrationError: there is none.
    """
    names = [*given["config"]] or [os.environ.get("ALEMBIC_CONFIG") or "alembic.ini"]
    ini, toml = Path("alembic.ini"), Path("pyproject.toml")
    for name in map(Path, names):
        if not name.exists() and (given["config"] or name != ini):
            raise MigrationError(f"there is no {name}; name the configuration with -c")
        if name.name == "pyproject.toml":
            toml = name.absolute()
        else:
            ini = name
    if not ini.exists() and not toml.exists():
        raise MigrationError(
            f"there is no alembic.ini or pyproject.toml in {Path.cwd()}; run this command in the "
            "folder of the project, or name the file with -c"
        )
    return Config(
        ini if ini.exists() else None,
        toml_file=toml,
        ini_section=given["name"],
        # env.py reads x; raiseerr leaves errors to this program.
        cmd_opts=Namespace(x=list(given["x_arguments"]), raiseerr=True),
    )
