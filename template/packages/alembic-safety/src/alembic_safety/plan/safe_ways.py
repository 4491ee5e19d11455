"""The safe way to get where an unsafe statement leads, as the code of Alembic revisions.

After strong_migrations (https://github.com/ankane/strong_migrations#checks) and PostgreSQL's notes
on ALTER TABLE (https://www.postgresql.org/docs/current/sql-altertable.html#SQL-ALTERTABLE-NOTES).
"""

import json
import re

from alembic_safety.plan.catalog import Change, ChangeKind, Effect

Changes = tuple[Change, ...]

NEXT = "# in the next revision:\n"
UNDO = "# let downgrade() bring back what upgrade() changed; what can't come back, acknowledge"
NEXT_RELEASE = "# in a release whose predecessor does not use it any more"
APART = "# in a revision of its own: a lock is held until its revision ends"


def execute(sql: str) -> str:
    """Return the code that runs a statement."""
    return f"op.execute({_quoted(sql)})"


def _quoted(text: str) -> str:
    """Return the Python literal of a text."""
    return json.dumps(text, ensure_ascii=False)


def _outside(sql: str) -> str:
    return f"with op.get_context().autocommit_block():\n    {execute(sql)}"


def acknowledge(key: str) -> str:
    """Return the code that acknowledges a reason."""
    return "acknowledged = {" + f'{_quoted(key)}: "why nobody misses it"' + "}"


def in_batches(effect: Effect, sql: str) -> str:
    """Return the code that changes rows in batches."""
    # What is not as plain as this, is for people to take apart.
    plain = re.fullmatch(r"\s*(UPDATE|DELETE FROM) [\w.\"]+ (SET|WHERE)\b[^;]*;?\s*", sql)
    unclear = re.search(r"\$|--|/\*|\bSELECT\b|\bFROM\b.*\bFROM\b|\bUSING\b", sql)
    of_another = re.search(r"\bUPDATE\b.*\bFROM\b", sql, re.DOTALL)
    own = plain and not unclear and not of_another and sql.upper().count("WHERE") <= 1
    statement = sql.strip() if own else f"UPDATE {effect.table} SET ..."
    return f"# in a revision of its own:\n{_batches(effect.table, effect.key, statement)}"


def instead_of_a_rewrite(effect: Effect, changes: Changes, sql: str) -> str:
    """Return the way to a statement that writes every row of a table anew."""
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
                f"{execute(f'ALTER TABLE {table} ADD COLUMN {change.name} {change.type}')}\n"
                f"{execute(f'ALTER TABLE {column} SET DEFAULT ...')}\n"
                f"{NEXT}{_batches(table, effect.key, update)}"
            )
    if re.search(r"\bREFRESH\b", sql, re.IGNORECASE):
        return (
            f"{_outside(f'CREATE UNIQUE INDEX CONCURRENTLY ... ON {table} (...)')}\n"
            f"{NEXT}{execute(f'REFRESH MATERIALIZED VIEW CONCURRENTLY {table}')}"
        )
    if re.search(r"\bVACUUM\b", sql, re.IGNORECASE):
        return f"{_outside(f'VACUUM (ANALYZE) {table}')}\n# gives space back for new rows"
    return "# no statement does it without: in a window, acknowledged; or in a copy of the table"


def instead_of_a_scan(effect: Effect, changes: Changes, sql: str) -> str:
    """Return the way to a statement that reads every row while it keeps others out."""
    if way := _of_text(sql):
        return way
    for change in sorted(changes, key=lambda change: change.table != effect.table):
        if change.kind is ChangeKind.CONSTRAINT_ADDED and change.type in "fcpux":
            return _constraint(change)
        if change.kind is ChangeKind.CONSTRAINT_VALIDATED:
            return f"# in a revision of its own:\n{execute(_validate(change))}"
        if change.kind is ChangeKind.COLUMN_REQUIRED:
            return _required(change)
        if change.kind is ChangeKind.INDEX_BUILT:
            return _index(change)
    return APART


def _of_text(sql: str) -> str:
    if re.search(r"\bREINDEX\b", sql, re.IGNORECASE):
        statement = re.sub(r"\b(INDEX|TABLE|SCHEMA)\b", r"\1 CONCURRENTLY", sql, count=1)
        return _outside(statement)
    if attached := re.search(r"\bATTACH PARTITION (\S+) FOR VALUES", sql, re.IGNORECASE):
        add = f"ALTER TABLE {attached[1]} ADD CONSTRAINT ck_bounds CHECK (...) NOT VALID"
        validate = f"ALTER TABLE {attached[1]} VALIDATE CONSTRAINT ck_bounds"
        return (
            "# its bounds as a CHECK, so that ATTACH need not read the rows:\n"
            f"{execute(add)}\n{NEXT}{execute(validate)}\n"
            f"# and in the one after it:\n{execute(sql)}"
        )
    return ""


def _constraint(change: Change) -> str:
    if change.type in "fc":
        definition = f"{change.name} {change.detail} NOT VALID"
        add = f"ALTER TABLE {change.table} ADD CONSTRAINT {definition}"
        return f"{execute(add)}\n{NEXT}{execute(_validate(change))}"
    if change.type == "x":
        return "# PostgreSQL has no way to build it beside writers: in a window, acknowledged"
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
        first = "# columns that may be NULL: first the way to SET NOT NULL (a CHECK, validated)\n"
    add = execute(f"ALTER TABLE {change.table} {use}")
    return f"{first}{_outside(index)}\n{NEXT}{add}"


def _required(change: Change) -> str:
    table, name = change.table, change.name
    check = f"ck_{_bare(table)}_{name}".replace('"', "").lower()
    add = f"ADD CONSTRAINT {check} CHECK ({name} IS NOT NULL) NOT VALID"
    return (
        f"{execute(f'ALTER TABLE {table} {add}')}\n"
        f"{NEXT}{execute(f'ALTER TABLE {table} VALIDATE CONSTRAINT {check}')}\n"
        "# and in the one after it:\n"
        f"{execute(f'ALTER TABLE {table} ALTER COLUMN {name} SET NOT NULL')}\n"
        f"{execute(f'ALTER TABLE {table} DROP CONSTRAINT {check}')}"
    )


def instead_of_a_break(change: Change, key: str) -> str:
    """Return the way to a change that running code does not notice; `key` is the primary key."""
    table, name = change.table, change.name
    way = NEXT_RELEASE
    match change.kind:
        case ChangeKind.TABLE_RENAMED:
            view = f"CREATE VIEW {table} AS SELECT * FROM {change.detail}"
            way = (
                f"{execute(_renaming(table, change.detail))}\n"
                f"# the running code goes on with a view of the old name:\n{execute(view)}\n"
                f"# in a later release:\n{execute(f'DROP VIEW {table}')}"
            )
        case ChangeKind.COLUMN_RENAMED:
            way = _another_column(table, key, change, change.detail)
        case ChangeKind.COLUMN_RETYPED:
            way = _another_column(table, key, change, f"{name}_new")
        case ChangeKind.COLUMN_ADDED:
            add = f"ADD COLUMN {name} {change.type} NOT NULL DEFAULT ..."
            way = execute(f"ALTER TABLE {table} {add}")
        case ChangeKind.COLUMN_REQUIRED:
            default = f"ALTER TABLE {table} ALTER COLUMN {name} SET DEFAULT ..."
            way = f"{execute(default)}\n# or let a release before this one write it"
        case ChangeKind.VIEW_DROPPED:
            way = f"# in this revision, make it anew with all the columns it had; or:\n{way}"
    return way


def _another_column(table: str, key: str, change: Change, new: str) -> str:
    update = f"UPDATE {table} SET {new} = {change.name}::{change.type}"
    return (
        f"{execute(f'ALTER TABLE {table} ADD COLUMN {new} {change.type}')}\n"
        f"# the code writes both; {NEXT[2:]}"
        f"{_batches(table, key, update)}\n"
        f"# the code reads {new}; in a later release:\n"
        f"{execute(f'ALTER TABLE {table} DROP COLUMN {change.name}')}"
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
    """Return the way to an index; of a partitioned table each partition gets its own."""
    if " ON ONLY " in change.detail:
        only = execute(change.detail)
        name = change.name
        return (
            f"{only}\n# then for each partition, in a revision of its own:\n"
            f"{_outside('CREATE INDEX CONCURRENTLY ... ON ...')}\n"
            f"{execute(f'ALTER INDEX {name} ATTACH PARTITION ...')}"
        )
    concurrently = re.sub(r"^(CREATE (?:UNIQUE )?INDEX)", r"\1 CONCURRENTLY", change.detail)
    return f"# in a revision of its own:\n{_outside(concurrently)}"


def _renaming(table: str, name: str) -> str:
    if _bare(table) == _bare(name):
        return f"ALTER TABLE {table} SET SCHEMA {name.rpartition('.')[0] or 'public'}"
    return f"ALTER TABLE {table} RENAME TO {_bare(name)}"


def _bare(name: str) -> str:
    return name.rpartition(".")[2]
