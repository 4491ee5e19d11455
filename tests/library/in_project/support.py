"""Revisions of a test's own, in a rendered project."""

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from psycopg.rows import TupleRow

from alembic_safety.config import make_config
from core.project import ROOT

REVISION = '''"""{revision}"""
import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = {down_revision!r}
{module}


def upgrade() -> None:
    {table}
    {upgrade}


def downgrade() -> None:
    op.execute("DROP TABLE IF EXISTS t_{revision}")
'''


Terminal = Callable[[str], None]
"""Types text into the terminal of the test."""


class Project:
    """Revisions of the test's own, on an empty database."""

    def __init__(self, folder: Path, connection: psycopg.Connection[TupleRow]) -> None:
        self.folder = folder
        self.connection = connection

    def write(
        self,
        revision: str,
        down_revision: str | None = None,
        upgrade: str = "pass",
        *,
        module: str = "",
        table: bool = True,
    ) -> None:
        """Write a revision that makes the table `t_<revision>` and does what `upgrade` says."""
        create = f'op.create_table("t_{revision}", sa.Column("id", sa.Integer))'
        text = REVISION.format(
            revision=revision,
            down_revision=down_revision,
            upgrade=upgrade,
            module=module,
            table=create if table else "pass",
        )
        (self.folder / f"{revision}.py").write_text(text, encoding="utf-8")

    def config(self, **attributes: object) -> Config:
        config = make_config(ROOT, **attributes)
        config.set_main_option("path_separator", "newline")
        config.set_main_option("version_locations", str(self.folder))
        return config

    def run(self, name: str, *arguments: str, **attributes: object) -> None:
        getattr(command, name)(self.config(**attributes), *arguments)

    def refused(self, name: str, *arguments: str, **attributes: object) -> str:
        with pytest.raises(CommandError) as error:
            self.run(name, *arguments, **attributes)
        return str(error.value)

    def tables(self) -> set[str]:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        with self.connection.transaction():
            rows = self.connection.execute(query)
            return {name for (name,) in rows if not name.startswith("alembic_version")}
