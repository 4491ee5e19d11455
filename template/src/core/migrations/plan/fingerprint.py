"""A schema as one short text, to say whether two are the same."""

from sqlalchemy import Connection, text

# Names and definitions, never oids or the order of columns: a column that was dropped and added
# again stands at the end, which no statement can change.
_FINGERPRINT = text(
    """
    WITH space AS (
        SELECT oid, nspname FROM pg_namespace
        WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
    ), object (line) AS (
        SELECT concat_ws('|', 'schema', nspname) FROM space
        UNION ALL
        SELECT concat_ws('|', 'relation', nspname, relname, relkind, relpersistence, relrowsecurity,
                         reloptions, relacl, obj_description(c.oid, 'pg_class'),
                         CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END,
                         pg_get_expr(relpartbound, c.oid))
        FROM pg_class c JOIN space ON space.oid = relnamespace
        WHERE relkind NOT IN ('i', 'I', 't')
          AND relname NOT IN ('alembic_version', 'alembic_version_history', 'alembic_backfill',
                              'alembic_version_history_id_seq')
        UNION ALL
        SELECT concat_ws('|', 'column', nspname, relname, attname,
                         format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated,
                         attcollation::regcollation, pg_get_expr(adbin, adrelid),
                         col_description(c.oid, attnum))
        FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid JOIN space ON space.oid = relnamespace
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attnum > 0 AND NOT attisdropped AND relkind IN ('r', 'p', 'f', 'c')
          AND relname !~ '^alembic_(version|backfill)'
        UNION ALL
        SELECT concat_ws('|', 'constraint', conrelid::regclass, conname, convalidated,
                         pg_get_constraintdef(o.oid))
        FROM pg_constraint o JOIN space ON space.oid = connamespace
        WHERE conrelid::regclass::text !~ '^alembic_(version|backfill)'
        UNION ALL
        SELECT concat_ws('|', 'index', indisvalid, pg_get_indexdef(indexrelid))
        FROM pg_index i JOIN pg_class c ON c.oid = indrelid JOIN space ON space.oid = relnamespace
        WHERE c.relname !~ '^alembic_(version|backfill)'
        UNION ALL
        SELECT concat_ws('|', 'function', pg_get_functiondef(p.oid))
        FROM pg_proc p JOIN space ON space.oid = pronamespace WHERE prokind IN ('f', 'p')
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
        UNION ALL
        SELECT concat_ws('|', 'trigger', pg_get_triggerdef(oid), tgenabled)
        FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL
        SELECT concat_ws('|', 'policy', polrelid::regclass, polname, polcmd,
                         pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
        FROM pg_policy
        UNION ALL
        SELECT concat_ws('|', 'type', nspname, typname, typtype,
                         (SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder)
                          FROM pg_enum WHERE enumtypid = t.oid))
        FROM pg_type t JOIN space ON space.oid = typnamespace WHERE typtype IN ('e', 'd', 'r')
        UNION ALL
        SELECT concat_ws('|', 'extension', extname, extversion) FROM pg_extension
    )
    SELECT md5(string_agg(line, E'\\n' ORDER BY line COLLATE "C")) FROM object
    """
)


def fingerprint(connection: Connection) -> str:
    """Return a text that is equal for two schemas that are equal."""
    return str(connection.scalar(_FINGERPRINT))
