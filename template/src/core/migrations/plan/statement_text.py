"""Verbs in the text of a statement, and of the functions that it calls.

What a statement does to rows of a table can't be read from the catalogs alone.
"""

import re

from core.migrations.plan.effects import TableEffect
from core.migrations.plan.recorder import Statement

DELETES = re.compile(
    r"\bDELETE\s+FROM\b|\bMERGE\s+INTO\b(?=.*\bTHEN\s+DELETE\b)", re.IGNORECASE | re.DOTALL
)
CHANGES_ROWS = re.compile(r"\bUPDATE\b|\bDELETE\s+FROM\b|\bMERGE\s+INTO\b", re.IGNORECASE)
_TRUNCATES = re.compile(r"\bTRUNCATE\b", re.IGNORECASE)
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_DEFINES = re.compile(r"\s*(CREATE|ALTER|COMMENT)\b", re.IGNORECASE)


def truncates(effect: TableEffect, statement: Statement) -> bool:
    """Return whether the statement empties the table with TRUNCATE."""
    text = f"{statement.sql}\n{statement.effects.called_source}"
    return effect.rewritten and bool(_TRUNCATES.search(text)) and not _DEFINES.match(text)


def has_verb(statement: Statement, table: str, verb: re.Pattern[str]) -> bool:
    """Return whether the statement, or a function that it calls, applies `verb` to the table."""
    text = _COMMENT.sub(" ", f"{statement.sql}\n{statement.effects.called_source}")
    if _DEFINES.match(text):
        return False
    name = re.escape(table.rpartition(".")[2].strip('"'))
    return any(
        re.match(rf'\s+(ONLY\s+)?("?\w+"?\.)?"?{name}"?(?!\w)', text[found.end() :], re.IGNORECASE)
        for found in verb.finditer(text)
    )
