"""What is unsafe about a revision, and why."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from alembic_safety.plan import safe_ways
from alembic_safety.plan.catalog import Change, ChangeKind, Effect, Lock
from alembic_safety.plan.rehearsal import Rehearsed, Statement
from alembic_safety.source.deployed import Models

_BYTES_PER_SECOND = 200_000_000
"""What a server reads in a scan, give or take: disks of cloud providers do 100 to 500 MB/s."""
_BYTES_WRITTEN_PER_SECOND = 50_000_000
"""What it writes where each row goes to a new file, and into each index again."""

_TIMES = (
    (0.1, "moments"),
    (1, "up to a second"),
    (10, "seconds"),
    (60, "tens of seconds"),
    (600, "minutes"),
    (3600, "tens of minutes"),
)


class Verdict(StrEnum):
    """What a revision does that it should not do unasked."""

    SAFE = "safe"
    BLOCKS_WRITES = "blocks writes"
    BLOCKS_READS = "blocks reads"
    REWRITES = "rewrites"
    DESTROYS_DATA = "destroys data"
    BREAKS_RUNNING_CODE = "breaks running code"
    CANNOT_BE_UNDONE = "cannot be undone"


_TAKES_LONG = {Verdict.BLOCKS_WRITES, Verdict.BLOCKS_READS, Verdict.REWRITES}
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_DEFINES = re.compile(r"\s*(CREATE|ALTER|COMMENT)\b", re.IGNORECASE)
_DELETES = re.compile(
    r"\bDELETE\s+FROM\b|\bMERGE\s+INTO\b(?=.*\bTHEN\s+DELETE\b)", re.IGNORECASE | re.DOTALL
)
_CHANGES = re.compile(r"\bUPDATE\b|\bDELETE\s+FROM\b|\bMERGE\s+INTO\b", re.IGNORECASE)
_TRUNCATES = re.compile(r"\bTRUNCATE\b", re.IGNORECASE)

_REQUIRED = "{what} is required and has no default: an INSERT that does not know it fails"
_RENAMED = "{what} is called {change.detail} now: code that knows the old name fails"
_BROKEN = {
    ChangeKind.TABLE_DROPPED: "{what} is dropped: code that uses it fails",
    ChangeKind.VIEW_DROPPED: "{what} is dropped: code that uses it fails",
    ChangeKind.COLUMN_DROPPED: "the column {what} is dropped: code that names it fails",
    ChangeKind.TABLE_RENAMED: _RENAMED,
    ChangeKind.COLUMN_RENAMED: _RENAMED,
    ChangeKind.COLUMN_RETYPED: (
        "{what} goes from {change.detail}: code that has the old type may fail"
    ),
    ChangeKind.COLUMN_ADDED: _REQUIRED,
    ChangeKind.COLUMN_REQUIRED: _REQUIRED,
    ChangeKind.COLUMN_GENERATED: (
        "{what} is generated always: an INSERT that gives it a value fails"
    ),
    ChangeKind.PARTITION_DETACHED: (
        "{change.name} is no partition any more: its rows are gone from {change.table}"
    ),
    ChangeKind.ROWS_SECURED: "row level security hides rows of {what} from all but its owner",
    ChangeKind.INDEX_DROPPED: (
        "nothing keeps {change.enforces} of {change.table} unique: INSERT ... ON CONFLICT fails"
    ),
}

_OF_MODELS = {
    ChangeKind.TABLE_DROPPED,
    ChangeKind.TABLE_RENAMED,
    ChangeKind.COLUMN_ADDED,
    ChangeKind.COLUMN_DROPPED,
    ChangeKind.COLUMN_RENAMED,
    ChangeKind.COLUMN_RETYPED,
    ChangeKind.COLUMN_REQUIRED,
    ChangeKind.COLUMN_GENERATED,
}
"""What models tell whether they use it; views, functions and the like may be used in SQL."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a table is, live; with its partitions."""

    rows: int
    bytes: int
    index_bytes: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The live tables, and what of them is small."""

    tables: Mapping[str, Size] | None
    """None where there is no live database: any table may be large that is not new."""
    small_rows: int = 0
    small_bytes: int = 0

    def of(self, table: str) -> Size | None:
        """Return the size of a table; None where it is not known, or there is none live."""
        return (self.tables or {}).get(table)

    def is_small(self, table: str) -> bool:
        """Return whether a table is small; one that is not there live has no rows."""
        if self.tables is None:
            return not table
        size = self.of(table)
        return size is None or (size.rows < self.small_rows and size.bytes < self.small_bytes)


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One thing that is unsafe."""

    verdict: Verdict
    table: str
    why: str
    safe_way: str = ""
    statement: str = ""
    measured: str = ""
    """The live table whose size says for how long."""
    small: bool = False
    """That table is small, so that it was let through."""
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
    sizes: Sizes,
    acknowledged: Mapping[str, str],
    deployed: Models | None = None,
) -> list[Reason]:
    """Return what is unsafe about a revision, each once.

    Args:
        item: what was seen in its rehearsal.
        sizes: the live tables.
        acknowledged: the revision's own, a key of a reason to why.
        deployed: what the code that runs now uses; None where all that is there counts as used.
    """
    found: dict[tuple[Verdict, str, str], Reason] = {}
    for statement in item.statements:
        for reason in _reasons(statement, item, sizes, deployed):
            # What takes long is said once a table, of the first statement that does; each column
            # that is lost is said by itself.
            what = "" if reason.verdict in _TAKES_LONG else reason.why
            key = (reason.verdict, reason.table, what)
            known = found.get(key)
            small = known is not None and sizes.is_small(known.measured)
            if known is None or (small and not sizes.is_small(reason.measured)):
                found[key] = reason
    reasons = [*found.values(), *_of_objects(item)]
    if item.downgrade_error:
        reasons.append(
            Reason(
                verdict=Verdict.CANNOT_BE_UNDONE,
                table="",
                why=item.downgrade_error,
                safe_way=safe_ways.UNDO,
            )
        )
    return [
        replace(
            reason,
            small=reason.verdict in _TAKES_LONG and sizes.is_small(reason.measured),
            acknowledged=_words(acknowledged.get(reason.key)),
        )
        for reason in reasons
    ]


def _words(why: object) -> str:
    return why.strip() if isinstance(why, str) else ""


def wrong_acknowledgements(reasons: list[Reason], acknowledged: Mapping[str, str]) -> list[str]:
    """Return what is wrong with a revision's `acknowledged`: no reason given, or nothing happens."""
    keys = {reason.key for reason in reasons}
    wrong = [
        f"{key!r} is acknowledged without a reason"
        for key, why in acknowledged.items()
        if not _words(why)
    ]
    wrong += [
        f"{key!r} is acknowledged and does not happen" for key in acknowledged if key not in keys
    ]
    return wrong


def _reasons(
    statement: Statement, item: Rehearsed, sizes: Sizes, deployed: Models | None
) -> Iterator[Reason]:
    for reason in (*_of_locks(statement, sizes), *_of_rows(statement)):
        yield replace(reason, statement=statement.sql)
    rewritten = {effect.table for effect in statement.observation.effects if effect.rewritten}
    for change in statement.observation.changes:
        # What the live database does not have yet, no code uses, and it has no data.
        if change.new or (change.table not in rewritten and _is_wider(change)):
            continue
        for reason in _of_change(change, statement, item, deployed):
            yield replace(reason, statement=statement.sql)


def _of_locks(statement: Statement, sizes: Sizes) -> Iterator[Reason]:
    """Return what takes long while a lock is held, on the same table or on another one."""
    changes = statement.observation.changes
    builds = {ChangeKind.INDEX_BUILT, ChangeKind.INDEX_REBUILT}
    built = {change.table for change in changes if change.kind in builds}
    long = {
        effect.table: what
        for effect in statement.observation.effects
        # Of a partitioned table, only the partitions have rows.
        if effect.kind != "p"
        and (what := _takes_long(effect, statement, indexed=effect.table in built))
    }
    # The one that takes longest stands for all.
    by_size = sorted(
        (effect for effect in statement.observation.effects if effect.table in long),
        key=lambda effect: -_seconds(effect, sizes),
    )
    for effect in statement.observation.effects:
        reason = None
        if effect.table in long:
            reason = _of_long(effect, statement, long[effect.table])
        elif (
            by_size
            and effect.lock >= Lock.SHARE
            and statement.in_transaction
            and not _blocks_nobody(effect)
        ):
            other = by_size[0]
            verdict, nobody = _blocked(effect.lock)
            reason = Reason(
                verdict=verdict,
                table=effect.table,
                why=(
                    f"{long[other.table]} of {other.table} while {effect.lock} on {effect.table} "
                    f"is held: {nobody} meanwhile"
                ),
                safe_way=(
                    safe_ways.instead_of_a_scan(other, changes, statement.sql)
                    if effect.acquired
                    else safe_ways.APART
                ),
                measured=other.live,
            )
        if reason is not None:
            yield replace(reason, why=reason.why + _how_long(reason, sizes))


def _takes_long(effect: Effect, statement: Statement, *, indexed: bool) -> str:
    """Return what takes long, as the beginning of a sentence; empty if nothing does."""
    if _empties(effect, statement):
        return ""
    if effect.rewritten:
        return "every row is written anew"
    if indexed:
        return "an index is built"
    return "every row is read" if effect.scanned and not _blocks_nobody(effect) else ""


def _blocks_nobody(effect: Effect) -> bool:
    """Return whether it is a materialized view that can be read: nobody writes to it."""
    return effect.kind == "m" and effect.lock < Lock.ACCESS_EXCLUSIVE


def _blocked(lock: Lock) -> tuple[Verdict, str]:
    if lock >= Lock.ACCESS_EXCLUSIVE:
        return Verdict.BLOCKS_READS, "nobody reads or writes it"
    return Verdict.BLOCKS_WRITES, "nobody writes to it"


def _of_long(effect: Effect, statement: Statement, what: str) -> Reason | None:
    """Return the reason of a statement that takes long on a table."""
    table, changes = effect.table, statement.observation.changes
    if effect.rewritten:
        return Reason(
            verdict=Verdict.REWRITES,
            table=table,
            why=f"every row of {table} is written anew, and nobody reads or writes it meanwhile",
            safe_way=safe_ways.instead_of_a_rewrite(effect, changes, statement.sql),
            measured=effect.live,
        )
    if effect.lock >= Lock.SHARE:
        verdict, nobody = _blocked(effect.lock)
        return Reason(
            verdict=verdict,
            table=table,
            why=f"{what} under {effect.lock} on {table}: {nobody} meanwhile",
            safe_way=safe_ways.instead_of_a_scan(effect, changes, statement.sql),
            measured=effect.live,
        )
    # The lock of rows that were changed before stays: it says nothing of this statement.
    changing = effect.acquired or effect.rows > 0 or _names(statement, table, _CHANGES)
    if effect.lock == Lock.ROW_EXCLUSIVE and changing:
        return Reason(
            verdict=Verdict.BLOCKS_WRITES,
            table=table,
            why=f"rows of {table} are changed in one transaction: nobody changes those meanwhile",
            safe_way=safe_ways.in_batches(effect, statement.sql),
            measured=effect.live,
        )
    return None


def _of_rows(statement: Statement) -> Iterator[Reason]:
    """Return which tables lose rows."""
    for effect in statement.observation.effects:
        why = ""
        if _empties(effect, statement):
            why = f"all rows of {effect.table} are deleted"
        elif effect.lock >= Lock.ROW_EXCLUSIVE and _names(statement, effect.table, _DELETES):
            why = f"rows of {effect.table} are deleted"
        if why:
            yield Reason(
                verdict=Verdict.DESTROYS_DATA,
                table=effect.table,
                why=why,
                safe_way=safe_ways.acknowledge(f"{Verdict.DESTROYS_DATA}:{effect.table}"),
            )


def _empties(effect: Effect, statement: Statement) -> bool:
    text = f"{statement.sql}\n{statement.observation.called}"
    return effect.rewritten and bool(_TRUNCATES.search(text)) and not _DEFINES.match(text)


def _names(statement: Statement, table: str, verb: re.Pattern[str]) -> bool:
    """Return whether the statement, or a function that it calls, does that to the table."""
    text = _COMMENT.sub(" ", f"{statement.sql}\n{statement.observation.called}")
    if _DEFINES.match(text):
        return False
    name = re.escape(table.rpartition(".")[2].strip('"'))
    return any(
        re.match(rf'\s+(ONLY\s+)?("?\w+"?\.)?"?{name}"?(?!\w)', text[found.end() :], re.IGNORECASE)
        for found in verb.finditer(text)
    )


def _of_change(
    change: Change, statement: Statement, item: Rehearsed, deployed: Models | None
) -> Iterator[Reason]:
    """Return what a change of the schema does to data, and to the code that runs meanwhile."""
    table, name = change.table, change.name
    effects = statement.observation.effects
    key = next((effect.key for effect in effects if effect.table == table), "")
    if change.kind in {ChangeKind.TABLE_DROPPED, ChangeKind.COLUMN_DROPPED}:
        yield Reason(
            verdict=Verdict.DESTROYS_DATA,
            table=table,
            why=f"the {f'column {table}.{name}' if name else f'table {table}'} is dropped",
            safe_way=safe_ways.acknowledge(f"{Verdict.DESTROYS_DATA}:{table}"),
        )
    broken = _broken(change)
    if broken and _is_used(change, deployed) and not _mended(change, item):
        yield Reason(
            verdict=Verdict.BREAKS_RUNNING_CODE,
            table=table,
            why=broken,
            safe_way=safe_ways.instead_of_a_break(change, key),
        )


def _is_used(change: Change, deployed: Models | None) -> bool:
    """Return whether the code that runs now may use what changes."""
    if deployed is None or change.kind not in _OF_MODELS:
        return True
    columns = deployed.get(change.table.replace('"', ""))
    if columns is None:
        return False
    # Of a table, or of a column that is missing from every INSERT of code which does not know it.
    of_table = {
        ChangeKind.TABLE_DROPPED,
        ChangeKind.TABLE_RENAMED,
        ChangeKind.COLUMN_ADDED,
        ChangeKind.COLUMN_REQUIRED,
    }
    return change.kind in of_table or change.name.replace('"', "") in columns


def _is_wider(change: Change) -> bool:
    """Return whether a column takes what it took, and more: where the server did not rewrite it."""
    if change.kind is not ChangeKind.COLUMN_RETYPED:
        return False
    old, new = (re.sub(r"\(.*?\)", "", name) for name in (change.old_type, change.type))
    return old == new or (old, new) == ("character varying", "text")


def _broken(change: Change) -> str:
    """Return what a change does to code that uses all there was; empty if nothing."""
    of_insert = {ChangeKind.COLUMN_ADDED, ChangeKind.COLUMN_REQUIRED}
    if change.kind in of_insert and not change.required:
        return ""
    if change.kind is ChangeKind.INDEX_DROPPED and not change.enforces:
        return ""
    what = f"{change.table}.{change.name}" if change.name else change.table
    return _BROKEN.get(change.kind, "").format(what=what, change=change)


def _mended(change: Change, item: Rehearsed) -> bool:
    """Return whether the revision's end has again, under the old name, what was changed."""
    old, new = item.before.get(change.table), item.after.get(change.table)
    if old is None or new is None:
        return False
    column = new.column(change.name)
    mended = False
    match change.kind:
        case ChangeKind.TABLE_DROPPED | ChangeKind.VIEW_DROPPED | ChangeKind.TABLE_RENAMED:
            has = {(column.name, column.type) for column in new.columns.values()}
            mended = all((column.name, column.type) in has for column in old.columns.values())
        case ChangeKind.COLUMN_DROPPED | ChangeKind.COLUMN_RENAMED | ChangeKind.COLUMN_RETYPED:
            before = old.column(change.name)
            mended = bool(column and before and column.type == before.type)
        case ChangeKind.COLUMN_ADDED | ChangeKind.COLUMN_REQUIRED:
            mended = column is None or not column.missing
        case ChangeKind.COLUMN_GENERATED:
            mended = column is not None and not column.always
        case ChangeKind.ROWS_SECURED:
            mended = not new.secured
        case ChangeKind.INDEX_DROPPED:
            mended = any(index.enforces == change.enforces for index in new.indexes.values())
    return mended


def _of_objects(item: Rehearsed) -> Iterator[Reason]:
    for gone in item.gone:
        value = f"the value {gone.value!r} of {gone.name}" if gone.value else f"the {gone.kind}"
        name = value if gone.value else f"{value} {gone.name}"
        yield Reason(
            verdict=Verdict.BREAKS_RUNNING_CODE,
            table=gone.name,
            why=f"{name} is gone: code that uses it fails",
            safe_way=safe_ways.NEXT_RELEASE,
        )


def _seconds(effect: Effect, sizes: Sizes) -> float:
    size = sizes.of(effect.live)
    if size is None:
        return 0
    if effect.rewritten:
        return (size.bytes + size.index_bytes) / _BYTES_WRITTEN_PER_SECOND
    return size.bytes / _BYTES_PER_SECOND


def _how_long(reason: Reason, sizes: Sizes) -> str:
    """Return for how long, as an order of magnitude, and from what that is concluded."""
    size = sizes.of(reason.measured)
    if size is None:
        return ""
    rewrites = reason.verdict is Verdict.REWRITES
    speed = _BYTES_WRITTEN_PER_SECOND if rewrites else _BYTES_PER_SECOND
    amount = size.bytes + (size.index_bytes if rewrites else 0)
    words = next((words for limit, words in _TIMES if amount / speed < limit), "hours")
    return (
        f"; {words}: {amount / 1e6:,.1f} MB ({size.rows:,} rows) {'written' if rewrites else 'read'}"
        f" at about {speed / 1e6:.0f} MB/s"
    )
