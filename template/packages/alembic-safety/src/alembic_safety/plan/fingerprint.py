"""Fingerprints of a schema: lines of text that two equal schemas share."""

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import Connection, text

Fingerprint = frozenset[str]
_SHOWN = 3
_OWN = "relname !~ '^alembic_(version|backfill)'"


# Lines have names and definitions, never oids or the order of columns: a column that was dropped
# and added again comes last, and no statement can move it. Each line begins with its subject.
def _of_tables(chosen: str) -> str:
    """Return the query for the lines of tables; `chosen` is a condition on pg_class, c."""
    return f"""
    SELECT c.oid::bigint AS oid,
           concat_ws(' ', CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
                              WHEN 'c' THEN 'type' ELSE 'table' END,
                     c.oid::regclass, '|', relkind, relpersistence, relrowsecurity, relreplident,
                     reloptions, (SELECT amname FROM pg_am WHERE pg_am.oid = relam),
                     obj_description(c.oid, 'pg_class'),
                     CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END,
                     CASE relkind WHEN 'p' THEN pg_get_partkeydef(c.oid) END,
                     pg_get_expr(relpartbound, c.oid)) AS line
    FROM space JOIN pg_class c ON relnamespace = space.oid
    WHERE relkind NOT IN ('i', 'I', 't', 'S') AND {_OWN} AND {chosen}
    UNION ALL
    SELECT c.oid::bigint,
           concat_ws(' ', 'column', c.oid::regclass || '.' || attname, '|',
                     format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 'NOT NULL' END,
                     nullif(attidentity, ''), nullif(attgenerated, ''), attstorage,
                     nullif(attcollation, 0)::regcollation, pg_get_expr(adbin, adrelid),
                     col_description(c.oid, attnum))
    FROM space JOIN pg_class c ON relnamespace = space.oid JOIN pg_attribute a ON attrelid = c.oid
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attnum > 0 AND NOT attisdropped AND relkind IN ('r', 'p', 'f', 'c') AND {_OWN} AND {chosen}
    UNION ALL
    SELECT c.oid::bigint,
           concat_ws(' ', 'constraint', conname, 'of', c.oid::regclass, '|',
                     CASE WHEN NOT convalidated THEN 'NOT VALID' END, pg_get_constraintdef(o.oid))
    FROM space JOIN pg_class c ON relnamespace = space.oid JOIN pg_constraint o ON conrelid = c.oid
    WHERE {_OWN} AND {chosen}
    UNION ALL
    SELECT c.oid::bigint,
           concat_ws(' ', 'index', indexrelid::regclass, '|',
                     CASE WHEN NOT indisvalid THEN 'invalid' END, pg_get_indexdef(indexrelid))
    FROM space JOIN pg_class c ON relnamespace = space.oid JOIN pg_index i ON indrelid = c.oid
    WHERE {_OWN} AND {chosen}
    UNION ALL
    SELECT c.oid::bigint,
           concat_ws(' ', 'trigger', tgname, 'of', tgrelid::regclass, '|', tgenabled,
                     pg_get_triggerdef(t.oid))
    FROM space JOIN pg_class c ON relnamespace = space.oid JOIN pg_trigger t ON tgrelid = c.oid
    WHERE NOT tgisinternal AND {chosen}
    UNION ALL
    SELECT c.oid::bigint,
           concat_ws(' ', 'rule', rulename, 'of', ev_class::regclass, '|', pg_get_ruledef(r.oid))
    FROM space JOIN pg_class c ON relnamespace = space.oid JOIN pg_rewrite r ON ev_class = c.oid
    WHERE rulename <> '_RETURN' AND {chosen}
    UNION ALL
    SELECT c.oid::bigint,
           concat_ws(' ', 'policy', polname, 'of', polrelid::regclass, '|', polcmd, polroles,
                     pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
    FROM space JOIN pg_class c ON relnamespace = space.oid JOIN pg_policy ON polrelid = c.oid
    WHERE {chosen}
"""


_SPACE = """
    space AS (
        SELECT oid, nspname FROM pg_namespace
        WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
    )
"""
_ALL_TABLES = text(f"WITH {_SPACE} {_of_tables('true')}")
# Foreign keys, views and partitions name a table in their definitions, and change with it.
_SOME_TABLES = text(
    f"""
    WITH {_SPACE}, touched AS (
        SELECT unnest(CAST(:oids AS bigint[]))::oid AS oid
    ), related AS (
        SELECT oid FROM touched
        UNION SELECT conrelid FROM pg_constraint JOIN touched ON confrelid = touched.oid
        UNION SELECT inhrelid FROM pg_inherits JOIN touched ON inhparent = touched.oid
        UNION SELECT ev_class FROM pg_rewrite JOIN pg_depend
              ON classid = 'pg_rewrite'::regclass AND objid = pg_rewrite.oid
              JOIN touched ON refobjid = touched.oid
    )
    SELECT related.oid::bigint AS oid, found.line FROM related LEFT JOIN (
    {_of_tables("c.oid = ANY (ARRAY(SELECT oid FROM related))")}
    ) AS found ON found.oid = related.oid
    """
)
_OF_DATABASE = text(
    f"""
    WITH {_SPACE}
    SELECT concat_ws(' ', 'schema', nspname) FROM space
    UNION ALL
    SELECT concat_ws(' ', 'privileges on', c.oid::regclass, '|', relacl)
    FROM space JOIN pg_class c ON relnamespace = space.oid WHERE relacl IS NOT NULL
    UNION ALL
    SELECT concat_ws(' ', 'sequence', seqrelid::regclass, '|', seqtypid::regtype, seqstart,
                     seqincrement, seqmin, seqmax, seqcache, seqcycle)
    FROM pg_sequence JOIN pg_class c ON c.oid = seqrelid WHERE {_OWN}
    UNION ALL
    SELECT concat_ws(' ', 'function', p.oid::regprocedure, '|', proacl, pg_get_functiondef(p.oid))
    FROM space JOIN pg_proc p ON pronamespace = space.oid WHERE prokind IN ('f', 'p')
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    UNION ALL
    SELECT concat_ws(' ', 'statistics', stxname, '|', pg_get_statisticsobjdef(oid))
    FROM pg_statistic_ext
    UNION ALL
    SELECT concat_ws(' ', 'type', t.oid::regtype, '|', typtype, typnotnull, typdefault,
                     CASE typtype WHEN 'd' THEN format_type(typbasetype, typtypmod) END,
                     (SELECT string_agg(enumlabel, ', ' ORDER BY enumsortorder)
                      FROM pg_enum WHERE enumtypid = t.oid),
                     (SELECT string_agg(pg_get_constraintdef(o.oid), ', ' ORDER BY conname)
                      FROM pg_constraint o WHERE contypid = t.oid))
    FROM space JOIN pg_type t ON typnamespace = space.oid WHERE typtype IN ('e', 'd', 'r')
    UNION ALL
    SELECT concat_ws(' ', 'event trigger', evtname, '|', evtevent, evtenabled) FROM pg_event_trigger
    UNION ALL
    SELECT concat_ws(' ', 'publication', pubname, '|', puballtables) FROM pg_publication
    UNION ALL
    SELECT concat_ws(' ', 'extension', extname, '|', extversion) FROM pg_extension
    """
)


def settle_search_path(connection: Connection) -> None:
    """Set the search path for the transaction, so that names are always qualified alike."""
    connection.execute(text("SELECT set_config('search_path', 'public', true)"))


class FingerprintReader:
    """Reads the fingerprint of a schema repeatedly, and only the tables that may have changed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tables: dict[int, frozenset[str]] = {}
        self._database: Fingerprint = frozenset()

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the schema when it was last read."""
        return self._database.union(*self._tables.values())

    def read(self, touched: Collection[int] | None = None) -> bool:
        """Read the schema; return whether more than the touched tables has changed.

        Args:
            touched: oids of all tables that may have changed since the last time: those that the
                transaction has locked; None if that is unknown.
        """
        settle_search_path(self._connection)
        database = frozenset(self._connection.scalars(_OF_DATABASE))
        more = touched is None or database != self._database
        self._database = database
        if touched is None or more:
            self._tables.clear()
            self._take(self._connection.execute(_ALL_TABLES))
        elif touched:
            self._take(self._connection.execute(_SOME_TABLES, {"oids": list(touched)}))
        return more

    def _take(self, rows: Iterable[Any]) -> None:
        found: dict[int, list[str]] = {}
        for oid, line in rows:
            found.setdefault(oid, []).extend([line] if line else [])
        self._tables.update((oid, frozenset(lines)) for oid, lines in found.items())


def describe_difference(before: Fingerprint, after: Fingerprint) -> str:
    """Return what a downgrade leaves, loses or changes, as a clause."""
    old, new = ({line.partition(" | ")[0] for line in lines} for lines in (before, after))
    changed = {line.partition(" | ")[0] for line in before ^ after} & old & new
    kinds = {"leaves": new - old, "does not restore": old - new, "does not fully restore": changed}
    parts = []
    for verb, names in kinds.items():
        if names:
            more = len(names) - _SHOWN
            shown = ", ".join(sorted(names)[:_SHOWN])
            parts.append(f"{verb} {shown}{f' and {more} more' if more > 0 else ''}")
    return "; it ".join(parts)
