"""A schema as lines of text, to say whether two are the same, and where they differ."""

from sqlalchemy import Connection, text

Fingerprint = frozenset[str]
_SHOWN = 3

# Names and definitions, never oids or the order of columns: a column that was dropped and added
# again stands at the end, which no statement can change. Each line begins with what it is about.
_FINGERPRINT = text(
    """
    WITH space AS (
        SELECT oid, nspname FROM pg_namespace
        WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
    )
    SELECT concat_ws(' ', 'schema', nspname) FROM space
    UNION ALL
    SELECT concat_ws(' ', CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
                              WHEN 'S' THEN 'sequence' WHEN 'c' THEN 'type' ELSE 'table' END,
                     c.oid::regclass, '|', relkind, relpersistence, relrowsecurity, relreplident,
                     reloptions, relacl, (SELECT amname FROM pg_am WHERE pg_am.oid = relam),
                     obj_description(c.oid, 'pg_class'),
                     CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END,
                     pg_get_partkeydef(c.oid), pg_get_expr(relpartbound, c.oid))
    FROM pg_class c JOIN space ON space.oid = relnamespace
    WHERE relkind NOT IN ('i', 'I', 't') AND relname !~ '^alembic_(version|backfill)'
    UNION ALL
    SELECT concat_ws(' ', 'column', c.oid::regclass || '.' || attname, '|',
                     format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 'NOT NULL' END,
                     nullif(attidentity, ''), nullif(attgenerated, ''), attstorage,
                     attcollation::regcollation, pg_get_expr(adbin, adrelid),
                     col_description(c.oid, attnum))
    FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid JOIN space ON space.oid = relnamespace
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attnum > 0 AND NOT attisdropped AND relkind IN ('r', 'p', 'f', 'c')
      AND relname !~ '^alembic_(version|backfill)'
    UNION ALL
    SELECT concat_ws(' ', 'constraint', conname, 'of', coalesce(nullif(conrelid, 0)::regclass::text,
                     contypid::regtype::text), '|', CASE WHEN NOT convalidated THEN 'NOT VALID' END,
                     pg_get_constraintdef(o.oid))
    FROM pg_constraint o JOIN space ON space.oid = connamespace
    WHERE conrelid::regclass::text !~ '^alembic_(version|backfill)'
    UNION ALL
    SELECT concat_ws(' ', 'index', indexrelid::regclass, '|',
                     CASE WHEN NOT indisvalid THEN 'invalid' END, pg_get_indexdef(indexrelid))
    FROM pg_index i JOIN pg_class c ON c.oid = indrelid JOIN space ON space.oid = relnamespace
    WHERE c.relname !~ '^alembic_(version|backfill)'
    UNION ALL
    SELECT concat_ws(' ', 'sequence', seqrelid::regclass, '|', seqtypid::regtype, seqstart,
                     seqincrement, seqmin, seqmax, seqcache, seqcycle)
    FROM pg_sequence JOIN pg_class c ON c.oid = seqrelid
    WHERE relname !~ '^alembic_(version|backfill)'
    UNION ALL
    SELECT concat_ws(' ', 'function', p.oid::regprocedure, '|', proacl, pg_get_functiondef(p.oid))
    FROM pg_proc p JOIN space ON space.oid = pronamespace WHERE prokind IN ('f', 'p')
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    UNION ALL
    SELECT concat_ws(' ', 'trigger', tgname, 'of', tgrelid::regclass, '|', tgenabled,
                     pg_get_triggerdef(oid))
    FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL
    SELECT concat_ws(' ', 'rule', rulename, 'of', ev_class::regclass, '|', pg_get_ruledef(r.oid))
    FROM pg_rewrite r JOIN pg_class c ON c.oid = ev_class JOIN space ON space.oid = relnamespace
    WHERE rulename <> '_RETURN'
    UNION ALL
    SELECT concat_ws(' ', 'policy', polname, 'of', polrelid::regclass, '|', polcmd,
                     pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
    FROM pg_policy
    UNION ALL
    SELECT concat_ws(' ', 'statistics', stxname, '|', pg_get_statisticsobjdef(oid))
    FROM pg_statistic_ext
    UNION ALL
    SELECT concat_ws(' ', 'type', t.oid::regtype, '|', typtype, typnotnull, typdefault,
                     CASE typtype WHEN 'd' THEN format_type(typbasetype, typtypmod) END,
                     (SELECT string_agg(enumlabel, ', ' ORDER BY enumsortorder)
                      FROM pg_enum WHERE enumtypid = t.oid))
    FROM pg_type t JOIN space ON space.oid = typnamespace WHERE typtype IN ('e', 'd', 'r')
    UNION ALL
    SELECT concat_ws(' ', 'event trigger', evtname, '|', evtevent, evtenabled) FROM pg_event_trigger
    UNION ALL
    SELECT concat_ws(' ', 'publication', pubname, '|', puballtables) FROM pg_publication
    UNION ALL
    SELECT concat_ws(' ', 'extension', extname, '|', extversion) FROM pg_extension
    """
)


def fingerprint(connection: Connection) -> Fingerprint:
    """Return a schema's lines; they are equal for two schemas that are equal."""
    return frozenset(connection.scalars(_FINGERPRINT))


def describe_difference(before: Fingerprint, after: Fingerprint) -> str:
    """Return in one line what a downgrade leaves, loses or changes."""
    old, new = ({line.partition(" | ")[0] for line in lines} for lines in (before, after))
    changed = {line.partition(" | ")[0] for line in before ^ after} & old & new
    kinds = {"leaves": new - old, "does not bring back": old - new, "brings back changed": changed}
    parts = []
    for verb, names in kinds.items():
        if names:
            more = len(names) - _SHOWN
            shown = ", ".join(sorted(names)[:_SHOWN])
            parts.append(f"{verb} {shown}{f' and {more} more' if more > 0 else ''}")
    return f"the downgrade {'; it '.join(parts)}"
