"""Adapter of squawk, a linter of SQL."""

import json
import shutil
import sys
from pathlib import Path

from alembic_safety.plan.planner import RevisionPlan
from alembic_safety.programs import run_program

_LONGEST_SQL = 60
"""Characters of a statement that are shown."""


def find_squawk() -> str | None:
    """Return the path of squawk, preferably from this environment; None if it is not installed."""
    folder = str(Path(sys.executable).parent)
    return shutil.which("squawk", path=folder) or shutil.which("squawk")


def lint(program: str, item: RevisionPlan, *, folder: Path) -> list[str]:
    """Return squawk's warnings on the SQL of a revision; `.squawk.toml` in `folder` excludes rules."""
    sql = "".join(f"{statement.sql.rstrip('; ')};\n" for statement in item.rehearsed.statements)
    done = run_program(
        [program, "--reporter=json", f"--stdin-filepath={item.revision}.sql"],
        script=sql.encode(),
        cwd=folder,
    )
    try:
        warnings = json.loads(done.stdout)
    except ValueError:
        return [f"squawk ended with {done.returncode}: {done.stderr.decode().strip()}"]
    lines = sql.splitlines()
    return [
        f"{warning['rule_name']}: {warning['message']} ({_shorten(lines[warning['line']])})"
        for warning in warnings
    ]


def _shorten(sql: str) -> str:
    return sql if len(sql) <= _LONGEST_SQL else f"{sql[: _LONGEST_SQL - 1]}…"
