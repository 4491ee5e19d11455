"""Comparison of what Alembic prints before and after a change."""

import difflib
import re
from collections.abc import Mapping

from alembic_safety.ini.errors import ConversionError
from alembic_safety.ini.redaction import hide_passwords
from alembic_safety.ini.trial import HEADS, OPTIONS, Result

_REQUIRED = (OPTIONS, HEADS)
"""What has to succeed. The other commands may need a database: a revision that reads rows does."""
_NUMBER = re.compile(r"(?=[0-9a-f-]*\d)[0-9a-f]+(?:-[0-9a-f]+)*")
"""A number, a time or a UUID. A part of a UUID may have no digit."""


def compare(
    before: Mapping[str, Result],
    after: Mapping[str, Result],
    again: Mapping[str, Result] | None = None,
) -> list[str]:
    """Return notes on what could not be compared.

    Args:
        before: results before the change.
        after: results after the change.
        again: results of a second run after the change. Output that differs between the two runs is
            compared without numbers.

    Raises:
        ConversionError: a result differs.
    """
    notes = []
    for name, old in before.items():
        new, out, expected = after[name], after[name].out, old.out
        if old.code and name in _REQUIRED:
            raise ConversionError(f"{name} fails before any change: {old.reason}")
        if again and again[name].out != out:
            out, expected = (_NUMBER.sub("#", text) for text in (out, expected))
            notes.append(f"{name} prints other numbers in each run; numbers were not compared")
        if new.code != old.code or out != expected or (old.code and new.reason != old.reason):
            raise ConversionError(
                f"{name} gives a different result after the change: {_difference(old, new)}"
            )
        if old.code:
            notes.append(f"{name} fails with the same error before and after: {old.reason}")
    return notes


def _difference(old: Result, new: Result) -> str:
    if new.code:
        return new.reason
    if old.code:
        return f"the command succeeds, but failed before: {old.reason}"
    lines = difflib.unified_diff(old.out.splitlines(), new.out.splitlines(), lineterm="", n=0)
    return hide_passwords("\n  ".join(["", *list(lines)[3:11]]))
