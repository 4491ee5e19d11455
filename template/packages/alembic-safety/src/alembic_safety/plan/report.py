"""Reports of a plan: a table for a terminal, JSON, and Markdown for a pull request."""

import json
import shutil
import textwrap
from enum import StrEnum
from typing import Any

from alembic_safety.plan.effects import TableEffect
from alembic_safety.plan.planner import Plan, RevisionPlan
from alembic_safety.plan.recorder import Statement
from alembic_safety.plan.verdicts import Reason

_SHOWN = 100
_RED, _GREEN, _YELLOW, _BOLD, _PLAIN = "\033[31m", "\033[32m", "\033[33m", "\033[1m", "\033[0m"


class Format(StrEnum):
    """Formats of a report."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


def render(plan: Plan, form: Format, *, color: bool) -> str:
    """Return the report of a plan."""
    match form:
        case Format.JSON:
            return json.dumps(as_json(plan), indent=2)
        case Format.MARKDOWN:
            return "\n".join(_markdown(plan))
        case Format.TABLE:
            return "\n".join(_table(plan, color=color))


def as_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON objects; docs/plan-and-gate.md describes them."""
    return {
        "version": 1,
        "database": plan.database,
        "rehearsed_on": plan.rehearsed_on,
        "current": list(plan.current),
        "safe": plan.safe,
        "with_data": plan.with_data,
        "base": plan.base,
        "tables": {
            name: {"rows": size.rows, "bytes": size.bytes, "index_bytes": size.index_bytes}
            for name, size in sorted(plan.tables.items())
        },
        "revisions": [
            {
                "revision": item.revision,
                "message": item.message,
                "verdicts": [str(verdict) for verdict in item.verdicts],
                "error": item.rehearsed.error,
                "downgrade_error": item.rehearsed.downgrade_error,
                "wrong_acknowledgements": item.wrong_acknowledgements,
                "reasons": [
                    {
                        "key": reason.key,
                        "verdict": str(reason.verdict),
                        "table": reason.table,
                        "why": reason.why,
                        "safe_way": reason.safe_way,
                        "statement": reason.statement,
                        "small": reason.small,
                        "acknowledged": reason.acknowledged,
                    }
                    for reason in item.reasons
                ],
                "statements": [_statement(statement) for statement in item.rehearsed.statements],
            }
            for item in plan.revisions
        ],
    }


def _statement(statement: Statement) -> dict[str, Any]:
    return {
        "sql": statement.sql,
        "seconds": round(statement.seconds, 6),
        "in_transaction": statement.in_transaction,
        "tables": [
            {
                "table": effect.table,
                "lock": str(effect.lock),
                "rewritten": effect.rewritten,
                "scanned": effect.scanned,
                "rows": effect.rows,
            }
            for effect in statement.effects.tables
        ],
        "changes": [
            {
                "kind": str(change.kind),
                "table": change.table,
                "name": change.name,
                "detail": change.detail,
            }
            for change in statement.effects.changes
        ],
    }


def _headline(plan: Plan) -> str:
    count = len(plan.revisions)
    if plan.base and not count:
        return f"This branch adds no revision to {plan.base}."
    if plan.base:
        return (
            f"{count} revision{'s' if count > 1 else ''} new to {plan.base}, "
            f"rehearsed on its schema on {plan.rehearsed_on}."
        )
    if not count:
        return f"Nothing is pending in the database {plan.database}."
    return (
        f"{count} revision{'s' if count > 1 else ''} pending in the database {plan.database}, "
        f"rehearsed on a copy of its schema on {plan.rehearsed_on}."
    )


def _conclusion(plan: Plan) -> str:
    if not plan.revisions:
        return ""
    unsafe = [item.revision for item in plan.revisions if not item.safe]
    if not unsafe:
        return "All of it is safe."
    return f"Unsafe: {', '.join(unsafe)}."


def _effect(effect: TableEffect) -> str:
    notes = [
        word
        for word, true in (("rewritten", effect.rewritten), ("scanned", effect.scanned))
        if true
    ]
    if effect.rows:
        notes.append(f"{effect.rows} rows changed")
    return f"{effect.table}: {effect.lock}" + (f", {', '.join(notes)}" if notes else "")


def _table(plan: Plan, *, color: bool) -> list[str]:
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))

    def paint(text: str, code: str) -> str:
        return f"{code}{text}{_PLAIN}" if color else text

    def wrap(text: str, indent: int) -> list[str]:
        space = " " * indent
        return textwrap.wrap(text, width, initial_indent=space, subsequent_indent=space)

    lines = wrap(_headline(plan), 0)
    for item in plan.revisions:
        verdicts = ", ".join(item.verdicts) if not item.rehearsed.error else "fails"
        code = _GREEN if item.safe else _RED
        lines += ["", f"{paint(item.revision, _BOLD)}  {item.message}  {paint(verdicts, code)}"]
        for statement in item.rehearsed.statements:
            outside = "" if statement.in_transaction else "  (outside a transaction)"
            lines.append(
                f"  {statement.seconds * 1000:7.1f} ms  {_shorten(statement.sql, width - 14)}{outside}"
            )
            for effect in statement.effects.tables:
                lines += wrap(_effect(effect), 14)
        shown: set[str] = set()
        for reason in item.reasons:
            lines += wrap(_reason(reason), 2)
            if reason.open and reason.safe_way:
                lines += _safe_way(reason, shown)
        for problem in problems(item, plan):
            lines += wrap(problem, 2)
    if conclusion := _conclusion(plan):
        lines += ["", paint(conclusion, _GREEN if plan.safe else _YELLOW)]
    return lines


def _safe_way(reason: Reason, shown: set[str]) -> list[str]:
    """Return the lines of a safe way; those that the revision has shown already are referred to."""
    if reason.safe_way in shown:
        return ["    the safe way: as above"]
    shown.add(reason.safe_way)
    return ["    the safe way:", *(f"      {line}" for line in reason.safe_way.splitlines())]


def _reason(reason: Reason) -> str:
    suffix = " (let through: the table is small)" if reason.small else ""
    if reason.acknowledged:
        suffix = f" (acknowledged: {reason.acknowledged})"
    return f"{reason.verdict}: {reason.why}{suffix}"


def problems(item: RevisionPlan, plan: Plan) -> list[str]:
    """Return the problems of a revision besides its verdicts."""
    lines = [*item.wrong_acknowledgements]
    if item.rehearsed.error:
        hint = "" if plan.with_data else " (the copy has no rows; WITH_DATA=1 copies them)"
        hint = " (the copy has no rows)" if plan.base else hint
        lines.insert(0, f"the rehearsal failed: {item.rehearsed.error}{hint}")
    return lines


def _shorten(sql: str, width: int) -> str:
    sql = " ".join(sql.split())
    limit = max(width, _SHOWN // 2)
    return sql if len(sql) <= limit else sql[: limit - 1] + "…"


def _markdown(plan: Plan) -> list[str]:
    lines = ["## Migration plan", "", _headline(plan), ""]
    if plan.revisions:
        lines += ["| Revision | | Verdict |", "| --- | --- | --- |"]
    for item in plan.revisions:
        verdicts = ", ".join(item.verdicts) if not item.rehearsed.error else "fails"
        mark = "" if item.safe else "⚠️ "
        lines.append(f"| `{item.revision}` | {_cell(item.message)} | {mark}{verdicts} |")
    for item in plan.revisions:
        if not item.reasons and not problems(item, plan):
            continue
        lines += ["", f"### `{item.revision}` {_cell(item.message)}", ""]
        for reason in item.reasons:
            lines.append(f"- **{reason.verdict}**: {_cell(_reason(reason).partition(': ')[2])}")
            if reason.statement:
                lines += ["", "  ```sql", textwrap.indent(reason.statement, "  "), "  ```"]
            if reason.open and reason.safe_way:
                way = [f"  {line}" for line in reason.safe_way.splitlines()]
                lines += ["", "  The safe way:", "", "  ```python", *way, "  ```"]
        lines += [f"- {_cell(problem)}" for problem in problems(item, plan)]
    return [*lines, "", _conclusion(plan)]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
