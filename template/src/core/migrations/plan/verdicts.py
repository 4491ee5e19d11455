"""What is unsafe about a revision, why, and the safe way to get there."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from core.migrations.plan.catalog import Change, ChangeKind, Effect, Lock
from core.migrations.plan.rehearsal import Rehearsed, Statement

_BYTES_PER_SECOND = 200_000_000
"""What a server reads in a scan, give or take: disks of cloud providers do 100 to 500 MB/s."""
_BYTES_WRITTEN_PER_SECOND = 50_000_000
"""What it writes where each row goes to a new file, and into each index again."""


class Verdict(StrEnum):
    """What a revision does that it should not do unasked."""

    SAFE = "safe"
    BLOCKS_WRITES = "blocks writes"
    BLOCKS_READS = "blocks reads"
    REWRITES = "rewrites"
    DESTROYS_DATA = "destroys data"
    BREAKS_RUNNING_CODE = "breaks running code"
    CANNOT_BE_UNDONE = "cannot be undone"


_SELECT = re.compile(r"\s*SELECT\b", re.IGNORECASE)
_BATCH = "WHERE id BETWEEN :first AND :last"
_OF_SIZE = {Verdict.BLOCKS_WRITES, Verdict.BLOCKS_READS, Verdict.REWRITES}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a table is, live."""

    rows: int
    bytes: int
    index_bytes: int


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """What is small: both have to hold."""

    rows: int
    bytes: int

    def is_small(self, size: Size | None) -> bool:
        """Return whether a table is small; one that is not there live has no rows."""
        return size is None or (size.rows < self.rows and size.bytes < self.bytes)


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One thing that is unsafe."""

    verdict: Verdict
    table: str
    why: str
    safe_way: str = ""
    statement: str = ""
    small: bool = False
    """The table is small, so that it was let through."""
    acknowledged: str = ""
    """Why the revision does it all the same, in its author's words."""

    @property
    def key(self) -> str:
        """What `acknowledged` of a revision names it by."""
        return f"{self.verdict}:{self.table}" if self.table else str(self.verdict)

    @property
    def open(self) -> bool:
        """Whether it stands in the way."""
        return not self.small and not self.acknowledged


def judge(
    item: Rehearsed,
    sizes: Mapping[str, Size],
    threshold: Threshold,
    acknowledged: Mapping[str, str],
) -> list[Reason]:
    """Return what is unsafe about a revision, each once.

    Args:
        item: what was seen in its rehearsal.
        sizes: the live tables.
        threshold: what is small.
        acknowledged: the revision's own, a key of a reason to why.
    """
    found: dict[str, Reason] = {}
    for statement in item.statements:
        for reason in _reasons(statement, sizes):
            found.setdefault(reason.key, reason)
    if item.downgrade_error:
        found[Verdict.CANNOT_BE_UNDONE] = Reason(
            verdict=Verdict.CANNOT_BE_UNDONE, table="", why=item.downgrade_error
        )
    reasons = []
    for key, reason in found.items():
        small = reason.verdict in _OF_SIZE and threshold.is_small(sizes.get(reason.table))
        words = acknowledged.get(key, "").strip()
        reasons.append(replace(reason, small=small, acknowledged=words))
    return reasons


def wrong_acknowledgements(reasons: list[Reason], acknowledged: Mapping[str, str]) -> list[str]:
    """Return what is wrong with a revision's `acknowledged`: no reason given, or nothing happens."""
    keys = {reason.key for reason in reasons}
    wrong = [
        f"{key!r} is acknowledged without a reason"
        for key, why in acknowledged.items()
        if not why.strip()
    ]
    wrong += [
        f"{key!r} is acknowledged and does not happen" for key in acknowledged if key not in keys
    ]
    return wrong


def _reasons(statement: Statement, sizes: Mapping[str, Size]) -> Iterator[Reason]:
    sql = statement.sql
    observation = statement.observation
    built = {
        change.table for change in observation.changes if change.kind is ChangeKind.INDEX_BUILT
    }
    for effect in observation.effects:
        reason = _of_effect(effect, statement, indexed=effect.table in built)
        if reason is not None:
            how_long = _how_long(reason.verdict, sizes.get(effect.table))
            yield replace(reason, why=reason.why + how_long, statement=sql)
        if _truncates(sql, effect):
            yield Reason(
                verdict=Verdict.DESTROYS_DATA,
                table=effect.table,
                why="all rows are deleted",
                statement=sql,
            )
        elif (
            re.match(r"\s*(WITH\b.*)?DELETE\b", sql, re.IGNORECASE)
            and effect.lock >= Lock.ROW_EXCLUSIVE
        ):
            yield Reason(
                verdict=Verdict.DESTROYS_DATA,
                table=effect.table,
                why="rows are deleted",
                statement=sql,
            )
    for change in observation.changes:
        for reason in _of_change(change):
            yield replace(reason, statement=sql)


def _truncates(sql: str, effect: Effect) -> bool:
    return effect.rewritten and bool(re.search(r"\bTRUNCATE\b", sql, re.IGNORECASE))


def _of_effect(effect: Effect, statement: Statement, *, indexed: bool) -> Reason | None:
    """Return the reason of a statement that takes long while a lock is held."""
    table, changes = effect.table, statement.observation.changes
    if _truncates(statement.sql, effect):
        return None
    if effect.rewritten:
        return Reason(
            verdict=Verdict.REWRITES,
            table=table,
            why=f"every row of {table} is written anew, and nobody reads or writes it meanwhile",
            safe_way=_instead_of_a_rewrite(table, changes),
        )
    long = "an index is built" if indexed else "every row is read" if effect.scanned else ""
    reason = None
    if long and effect.lock >= Lock.SHARE:
        reads = effect.lock >= Lock.ACCESS_EXCLUSIVE
        blocked = "reads or writes it" if reads else "writes to it"
        reason = Reason(
            verdict=Verdict.BLOCKS_READS if reads else Verdict.BLOCKS_WRITES,
            table=table,
            why=f"{long} under {effect.lock} on {table}: nobody {blocked} meanwhile",
            safe_way=_instead_of_a_scan(table, changes),
        )
    elif long and effect.lock == Lock.ROW_EXCLUSIVE and not _SELECT.match(statement.sql):
        reason = Reason(
            verdict=Verdict.BLOCKS_WRITES,
            table=table,
            why=f"rows of {table} are changed in one transaction: nobody changes those meanwhile",
            safe_way=(
                "from core.migrations.batches import in_batches\n"
                f'in_batches("... {_BATCH}", table="{table}")\n'
                "# in a revision of its own"
            ),
        )
    return reason


def _update(table: str) -> str:
    return f"UPDATE {table}"


def _instead_of_a_rewrite(table: str, changes: tuple[Change, ...]) -> str:
    for change in changes:
        if change.table != table:
            continue
        if change.kind is ChangeKind.COLUMN_RETYPED:
            new = change.detail.split(" to ")[-1]
            return (
                f'op.execute("ALTER TABLE {table} ADD COLUMN {change.name}_new {new}")\n'
                "# the code writes both; in the next revision:\n"
                f'in_batches("{_update(table)} SET {change.name}_new = {change.name}::{new}'
                f' {_BATCH}", table="{table}")\n'
                f"# the code reads {change.name}_new; in a later release drop {change.name}"
            )
        if change.kind is ChangeKind.COLUMN_ADDED:
            return (
                f'op.execute("ALTER TABLE {table} ADD COLUMN {change.name} {change.detail}")\n'
                f'op.execute("ALTER TABLE {table} ALTER COLUMN {change.name} SET DEFAULT ...")\n'
                "# in the next revision:\n"
                f'in_batches("{_update(table)} SET {change.name} = ... {_BATCH}", table="{table}")'
            )
    return ""


def _instead_of_a_scan(table: str, changes: tuple[Change, ...]) -> str:
    ours = [change for change in changes if change.table == table]
    for change in ours or changes:
        if change.kind is ChangeKind.CONSTRAINT_ADDED and change.constraint in "fc":
            return (
                f'op.execute("ALTER TABLE {change.table} ADD CONSTRAINT {change.name}'
                f' {change.detail} NOT VALID")\n'
                "# in the next revision:\n"
                f'op.execute("ALTER TABLE {change.table} VALIDATE CONSTRAINT {change.name}")'
            )
        if change.kind is ChangeKind.CONSTRAINT_ADDED and change.constraint in "pu":
            kind = "PRIMARY KEY" if change.constraint == "p" else "UNIQUE"
            columns = change.detail[change.detail.find("(") :]
            return (
                "with op.get_context().autocommit_block():\n"
                f'    op.execute("CREATE UNIQUE INDEX CONCURRENTLY {change.name}'
                f' ON {table} {columns}")\n'
                "# in the next revision:\n"
                f'op.execute("ALTER TABLE {table} ADD CONSTRAINT {change.name}'
                f' {kind} USING INDEX {change.name}")'
            )
    for change in ours:
        if change.kind is ChangeKind.COLUMN_REQUIRED:
            check = f"ck_{table.rsplit('.', maxsplit=1)[-1]}_{change.name}"
            return (
                f'op.execute("ALTER TABLE {table} ADD CONSTRAINT {check}'
                f' CHECK ({change.name} IS NOT NULL) NOT VALID")\n'
                "# in the next revision:\n"
                f'op.execute("ALTER TABLE {table} VALIDATE CONSTRAINT {check}")\n'
                "# and in the one after it:\n"
                f'op.alter_column("{table}", "{change.name}", nullable=False)\n'
                f'op.drop_constraint("{check}", "{table}")'
            )
        if change.kind is ChangeKind.INDEX_BUILT:
            concurrently = re.sub(r"^(CREATE (?:UNIQUE )?INDEX)", r"\1 CONCURRENTLY", change.detail)
            return (
                "with op.get_context().autocommit_block():\n"
                f'    op.execute("{concurrently}")\n'
                "# in a revision of its own"
            )
    return "# in a revision of its own, before the statement that takes the lock"


def _of_change(change: Change) -> Iterator[Reason]:
    """Return what a change of the schema does to data, and to the code that runs meanwhile."""
    table, name = change.table, change.name
    later = "# first a release whose code does not use it; then, in the next one, this revision"
    expand = (
        "# add the new one, fill it, let the code write both and read it; drop the old one later"
    )
    broken = Verdict.BREAKS_RUNNING_CODE
    if change.kind is ChangeKind.TABLE_DROPPED:
        why = f"the table {table} is dropped"
        yield Reason(verdict=Verdict.DESTROYS_DATA, table=table, why=why, safe_way=later)
        yield Reason(
            verdict=broken, table=table, why=f"{why}: code that uses it fails", safe_way=later
        )
    elif change.kind is ChangeKind.COLUMN_DROPPED:
        why = f"the column {table}.{name} is dropped"
        yield Reason(verdict=Verdict.DESTROYS_DATA, table=table, why=why, safe_way=later)
        yield Reason(
            verdict=broken, table=table, why=f"{why}: code that names it fails", safe_way=later
        )
    elif change.kind in {ChangeKind.TABLE_RENAMED, ChangeKind.COLUMN_RENAMED}:
        what = f"{table}.{name}" if name else table
        why = f"{what} is called {change.detail} now: code that knows the old name fails"
        yield Reason(verdict=broken, table=table, why=why, safe_way=expand)
    elif change.kind is ChangeKind.COLUMN_RETYPED:
        why = f"{table}.{name} goes from {change.detail}: code that has the old type may fail"
        yield Reason(verdict=broken, table=table, why=why, safe_way=expand)
    elif change.required:
        why = (
            f"{table}.{name} is required and has no default: an INSERT that does not know it fails"
        )
        yield Reason(
            verdict=broken,
            table=table,
            why=why,
            safe_way="# give it a server_default, or let the code write it a release before",
        )


def _how_long(verdict: Verdict, size: Size | None) -> str:
    """Return for how long, as an order of magnitude, and from what that is concluded."""
    if size is None:
        return ""
    speed = _BYTES_WRITTEN_PER_SECOND if verdict is Verdict.REWRITES else _BYTES_PER_SECOND
    amount = size.bytes + (size.index_bytes if verdict is Verdict.REWRITES else 0)
    seconds = amount / speed
    words = next(
        (words for limit, words in ((0.1, "moments"), (1, "up to a second"), (10, "seconds"),
         (60, "tens of seconds"), (600, "minutes"), (3600, "tens of minutes")) if seconds < limit),
        "hours",
    )  # fmt: skip
    verb = "written" if verdict is Verdict.REWRITES else "read"
    return (
        f"; {words}: {amount / 1e6:,.1f} MB ({size.rows:,} rows) {verb} at about"
        f" {speed / 1e6:.0f} MB/s"
    )
