"""Safe ways to reach what an unsafe statement does, as code for Alembic revisions.

Based on strong_migrations (https://github.com/ankane/strong_migrations#checks) and PostgreSQL's notes
on ALTER TABLE (https://www.postgresql.org/docs/current/sql-altertable.html#SQL-ALTERTABLE-NOTES).
"""

import json
import re

from alembic_safety.plan.diff import Change, ChangeKind
from alembic_safety.plan.effects import TableEffect

Changes = tuple[Change, ...]

NEXT = "# in the next revision:\n"
UNDO = "# let downgrade() restore what upgrade() changed, and acknowledge what can't be restored"
NEXT_RELEASE = "# in the release after the one that stops using it"
OWN_REVISION = "# in a separate revision: a lock is held until the revision ends"


def _execute(sql: str) -> str:
    return f"op.execute({_quoted(sql)})"


def _quoted(text: str) -> str:
    """Return a text as a Python literal."""
    return json.dumps(text, ensure_ascii=False)


def _outside(sql: str) -> str:
    return f"with op.get_context().autocommit_block():\n    {_execute(sql)}"


def acknowledge(key: str) -> str:
    """Return the code that acknowledges a reason."""
    return "acknowledged = {" + f'{_quoted(key)}: "why nobody misses it"' + "}"


def change_in_batches(effect: TableEffect, sql: str) -> str:
    """Return the code that changes rows in batches."""
    # Anything more complex needs to be rewritten by hand.
    plain = re.fullmatch(r"\s*(UPDATE|DELETE FROM) [\w.\"]+ (SET|WHERE)\b[^;]*;?\s*", sql)
    unclear = re.search(r"\$|--|/\*|\bSELECT\b|\bFROM\b.*\bFROM\b|\bUSING\b", sql)
    of_another = re.search(r"\bUPDATE\b.*\bFROM\b", sql, re.DOTALL)
    simple = plain and not unclear and not of_another and sql.upper().count("WHERE") <= 1
    statement = sql.strip() if simple else f"UPDATE {effect.table} SET ..."
    return f"# in a separate revision:\n{_batches(effect.table, effect.key, statement)}"


def avoid_rewrite(effect: TableEffect, changes: Changes, sql: str) -> str:
    """Return the code to use instead of a statement that rewrites a table."""
    table = effect.table
    for change in changes:
        if change.table != table:
            continue
        if change.kind is ChangeKind.COLUMN_RETYPED:
            return _another_column(table, effect.key, change, f"{change.name}_new")
        if change.kind is ChangeKind.COLUMN_ADDED:
            column = f"{table} ALTER COLUMN {change.name}"
            update = f"UPDATE {table} SET {change.name} = ..."
            return (
                f"{_execute(f'ALTER TABLE {table} ADD COLUMN {change.name} {change.type}')}\n"
                f"{_execute(f'ALTER TABLE {column} SET DEFAULT ...')}\n"
                f"{NEXT}{_batches(table, effect.key, update)}"
            )
    if re.search(r"\bREFRESH\b", sql, re.IGNORECASE):
        return (
            f"{_outside(f'CREATE UNIQUE INDEX CONCURRENTLY ... ON {table} (...)')}\n"
            f"{NEXT}{_execute(f'REFRESH MATERIALIZED VIEW CONCURRENTLY {table}')}"
        )
    if re.search(r"\bVACUUM\b", sql, re.IGNORECASE):
        return f"{_outside(f'VACUUM (ANALYZE) {table}')}\n# makes the space available for new rows"
    return "# no statement avoids it: run it in a maintenance window, acknowledged"


def avoid_scan(effect: TableEffect, changes: Changes, sql: str) -> str:
    """Return the code to use instead of a statement that reads every row while it blocks others."""
    if way := _of_text(sql):
        return way
    for change in sorted(changes, key=lambda change: change.table != effect.table):
        if change.kind is ChangeKind.CONSTRAINT_ADDED and change.type in "fcpux":
            return _constraint(change)
        if change.kind is ChangeKind.CONSTRAINT_VALIDATED:
            return f"# in a separate revision:\n{_execute(_validate(change))}"
        if change.kind is ChangeKind.COLUMN_REQUIRED:
            return _required(change)
        if change.kind is ChangeKind.INDEX_BUILT:
            return _index(change)
    return OWN_REVISION


def _of_text(sql: str) -> str:
    if re.search(r"\bREINDEX\b", sql, re.IGNORECASE):
        statement = re.sub(r"\b(INDEX|TABLE|SCHEMA)\b", r"\1 CONCURRENTLY", sql, count=1)
        return _outside(statement)
    if attached := re.search(r"\bATTACH PARTITION (\S+) FOR VALUES", sql, re.IGNORECASE):
        add = f"ALTER TABLE {attached[1]} ADD CONSTRAINT ck_bounds CHECK (...) NOT VALID"
        validate = f"ALTER TABLE {attached[1]} VALIDATE CONSTRAINT ck_bounds"
        return (
            "# the bounds as a CHECK, so that ATTACH does not read the rows:\n"
            f"{_execute(add)}\n{NEXT}{_execute(validate)}\n"
            f"# and in the one after it:\n{_execute(sql)}"
        )
    return ""


def _constraint(change: Change) -> str:
    if change.type in "fc":
        definition = f"{change.name} {change.detail} NOT VALID"
        add = f"ALTER TABLE {change.table} ADD CONSTRAINT {definition}"
        return f"{_execute(add)}\n{NEXT}{_execute(_validate(change))}"
    if change.type == "x":
        return (
            "# PostgreSQL can't build it while rows are written: run it in a window, acknowledged"
        )
    # UNIQUE NULLS NOT DISTINCT (a, b) INCLUDE (c) DEFERRABLE INITIALLY DEFERRED
    kind = "PRIMARY KEY" if change.type == "p" else "UNIQUE"
    rest = change.detail.removeprefix(kind).strip()
    deferred = re.search(r" (NOT )?DEFERRABLE.*$| INITIALLY .*$", rest)
    columns = rest[: deferred.start()] if deferred else rest
    if columns.startswith("NULLS NOT DISTINCT"):
        columns = f"{columns.removeprefix('NULLS NOT DISTINCT').strip()} NULLS NOT DISTINCT"
    index = f"CREATE UNIQUE INDEX CONCURRENTLY {change.name} ON {change.table} {columns}"
    use = f"ADD CONSTRAINT {change.name} {kind} USING INDEX {change.name}"
    use += deferred[0] if deferred else ""
    first = ""
    if change.type == "p":
        first = "# nullable columns first need SET NOT NULL, by way of a validated CHECK\n"
    add = _execute(f"ALTER TABLE {change.table} {use}")
    return f"{first}{_outside(index)}\n{NEXT}{add}"


def _required(change: Change) -> str:
    table, name = change.table, change.name
    check = f"ck_{_bare(table)}_{name}".replace('"', "").lower()
    add = f"ADD CONSTRAINT {check} CHECK ({name} IS NOT NULL) NOT VALID"
    return (
        f"{_execute(f'ALTER TABLE {table} {add}')}\n"
        f"{NEXT}{_execute(f'ALTER TABLE {table} VALIDATE CONSTRAINT {check}')}\n"
        "# and in the one after it:\n"
        f"{_execute(f'ALTER TABLE {table} ALTER COLUMN {name} SET NOT NULL')}\n"
        f"{_execute(f'ALTER TABLE {table} DROP CONSTRAINT {check}')}"
    )


def avoid_break(change: Change, key: str) -> str:
    """Return the code to use instead of a change that breaks running code.

    Args:
        change: the change.
        key: the column of the table's primary key; empty if there is none.
    """
    table, name = change.table, change.name
    way = NEXT_RELEASE
    match change.kind:
        case ChangeKind.TABLE_RENAMED:
            view = f"CREATE VIEW {table} AS SELECT * FROM {change.detail}"
            way = (
                f"{_execute(_renaming(table, change.detail))}\n"
                f"# running code uses a view of the old name:\n{_execute(view)}\n"
                f"# in a later release:\n{_execute(f'DROP VIEW {table}')}"
            )
        case ChangeKind.COLUMN_RENAMED:
            way = _another_column(table, key, change, change.detail)
        case ChangeKind.COLUMN_RETYPED:
            way = _another_column(table, key, change, f"{name}_new")
        case ChangeKind.COLUMN_ADDED:
            add = f"ADD COLUMN {name} {change.type} NOT NULL DEFAULT ..."
            way = _execute(f"ALTER TABLE {table} {add}")
        case ChangeKind.COLUMN_REQUIRED:
            default = f"ALTER TABLE {table} ALTER COLUMN {name} SET DEFAULT ..."
            way = f"{_execute(default)}\n# or first release code that writes it"
        case ChangeKind.VIEW_DROPPED:
            way = f"# create it again in this revision, with all its columns; or:\n{way}"
    return way


def _another_column(table: str, key: str, change: Change, new: str) -> str:
    update = f"UPDATE {table} SET {new} = {change.name}::{change.type}"
    return (
        f"{_execute(f'ALTER TABLE {table} ADD COLUMN {new} {change.type}')}\n"
        f"# the code writes both; {NEXT[2:]}"
        f"{_batches(table, key, update)}\n"
        f"# the code reads {new}; in a later release:\n"
        f"{_execute(f'ALTER TABLE {table} DROP COLUMN {change.name}')}"
    )


def _batches(table: str, key: str, update: str) -> str:
    change, where, condition = re.split(r"(\bWHERE\b|$)", update.rstrip("; "), maxsplit=1)
    bounds = f"{key or 'id'} BETWEEN :first AND :last"
    also = f"({condition.strip()}) AND " if where else ""
    statement = f"{change.strip()} WHERE {also}{bounds}"
    named = f", key={_quoted(key.strip(chr(34)))}" if key not in {"", "id"} else ""
    return (
        "from alembic_safety.batches import in_batches\n"
        f"in_batches({_quoted(statement)}, table={_quoted(table)}{named})"
    )


def _validate(change: Change) -> str:
    return f"ALTER TABLE {change.table} VALIDATE CONSTRAINT {change.name}"


def _index(change: Change) -> str:
    """Return the code to build an index; on a partitioned table, on each partition by itself."""
    if " ON ONLY " in change.detail:
        only = _execute(change.detail)
        name = change.name
        return (
            f"{only}\n# then for each partition, in a separate revision:\n"
            f"{_outside('CREATE INDEX CONCURRENTLY ... ON ...')}\n"
            f"{_execute(f'ALTER INDEX {name} ATTACH PARTITION ...')}"
        )
    concurrently = re.sub(r"^(CREATE (?:UNIQUE )?INDEX)", r"\1 CONCURRENTLY", change.detail)
    return f"# in a separate revision:\n{_outside(concurrently)}"


def _renaming(table: str, name: str) -> str:
    if _bare(table) == _bare(name):
        return f"ALTER TABLE {table} SET SCHEMA {name.rpartition('.')[0] or 'public'}"
    return f"ALTER TABLE {table} RENAME TO {_bare(name)}"


def _bare(name: str) -> str:
    return name.rpartition(".")[2]
