"""Adapter of squawk, a linter of SQL."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from core.migrations.plan.planner import RevisionPlan
from core.project import ROOT

_LONGEST_SQL = 60
"""Characters of a statement that are shown."""


def find_squawk() -> str | None:
    """Return the path of squawk, preferably from this environment; None if it is not installed."""
    folder = str(Path(sys.executable).parent)
    return shutil.which("squawk", path=folder) or shutil.which("squawk")


def lint(program: str, item: RevisionPlan) -> list[str]:
    """Return squawk's warnings on the SQL of a revision; `.squawk.toml` excludes rules."""
    sql = "".join(f"{statement.sql.rstrip('; ')};\n" for statement in item.rehearsed.statements)
    done = subprocess.run(
        [program, "--reporter=json", f"--stdin-filepath={item.revision}.sql"],
        input=sql,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        warnings = json.loads(done.stdout)
    except ValueError:
        return [f"squawk ended with {done.returncode}: {done.stderr.strip()}"]
    lines = sql.splitlines()
    return [
        f"{warning['rule_name']}: {warning['message']} ({_shorten(lines[warning['line']])})"
        for warning in warnings
    ]


def _shorten(sql: str) -> str:
    return sql if len(sql) <= _LONGEST_SQL else f"{sql[: _LONGEST_SQL - 1]}…"
