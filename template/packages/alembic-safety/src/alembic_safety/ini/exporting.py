"""Export: from `[tool.alembic]` to alembic.ini."""

import os
from pathlib import Path

from alembic_safety.ini.change import Change, Options, carry_out
from alembic_safety.ini.errors import ConversionError
from alembic_safety.ini.files import read_text
from alembic_safety.ini.importing import invocation_with
from alembic_safety.ini.ini_text import ini_text
from alembic_safety.ini.pyproject import read_table, remove_table
from alembic_safety.ini.table import convertible_keys

_PLACEHOLDER_URL = "postgresql://localhost/check"
"""Gives `upgrade --sql` its dialect. Nothing connects to it."""


def export_ini(options: Options) -> list[str]:
    """Move `[tool.alembic]` into an alembic.ini next to it and return notes for the user.

    Raises:
        ConversionError: the table cannot be moved. Nothing was changed.
    """
    pyproject = Path(options.pyproject or "pyproject.toml").absolute()
    path = pyproject.with_name("alembic.ini")
    text = read_text(pyproject, pyproject.name)
    table = read_table(text, pyproject.name)
    if not convertible_keys(table):
        raise ConversionError(f"{pyproject.name}: [tool.alembic] has nothing to export")
    if path.exists():
        raise ConversionError(
            "alembic.ini exists and has precedence over [tool.alembic]: import it or move it away "
            "first"
        )
    change = Change(pyproject.parent, table)
    change.files[path] = ini_text(table, pyproject.name)
    change.files[pyproject] = remove_table(text, pyproject.name)
    given = os.environ.get(options.url_variable)
    variables = {} if given else {options.url_variable: _PLACEHOLDER_URL}
    run = invocation_with(pyproject)
    notes = carry_out(change, options, before=run, after=run, variables=variables)
    return [*notes, "[tool.alembic] becomes alembic.ini; the URL stays in the environment"]
