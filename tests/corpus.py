"""Unsafe operations, each with the safe way beside it, written as bodies of Alembic revisions.

Taken from what strong_migrations, squawk, django-migration-linter, Atlas's analyzers and
PostgreSQL's page on ALTER TABLE name. A safe way is a list: each item is a revision of its own.
"""

from dataclasses import dataclass

BASE = """
    CREATE TYPE mood AS ENUM ('glad', 'sad');
    CREATE TABLE orgs (id bigint PRIMARY KEY, name text NOT NULL);
    CREATE TABLE users (
        id bigint PRIMARY KEY, name text, email varchar(100), age int, born timestamp,
        data json, mood mood, org_id bigint, code varchar(20) NOT NULL DEFAULT ''
    );
    CREATE INDEX ix_users_age ON users (age);
    ALTER TABLE users ADD CONSTRAINT ck_age CHECK (age > 0);
    CREATE TABLE orders (id bigint PRIMARY KEY, user_id bigint REFERENCES users, amount int);
    CREATE TABLE events (id bigint, at date NOT NULL, kind text) PARTITION BY RANGE (at);
    CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
    CREATE TABLE old_events (id bigint, at date NOT NULL, kind text);
    CREATE MATERIALIZED VIEW totals AS SELECT user_id, sum(amount) FROM orders GROUP BY 1;
"""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An unsafe operation, what has to be found about it, and the safe way."""

    name: str
    unsafe: str
    finds: str
    safe: tuple[str, ...]


def _sql(statement: str) -> str:
    return f"op.execute({statement!r})"


def _outside(statement: str) -> str:
    return f"with op.get_context().autocommit_block():\n    op.execute({statement!r})"


def _batches(statement: str, table: str = "users") -> str:
    batch = " ".join([statement, "WHERE id BETWEEN :first AND :last"])
    return f"from core.migrations.batches import in_batches\nin_batches({batch!r}, table={table!r})"


NOT_NULL = (
    _sql("ALTER TABLE users ADD CONSTRAINT ck CHECK (name IS NOT NULL) NOT VALID"),
    _sql("ALTER TABLE users VALIDATE CONSTRAINT ck"),
)

PAIRS = (
    Pair(
        name="an index",
        unsafe="op.create_index('ix_name', 'users', ['name'])",
        finds="blocks writes:users",
        safe=(_outside("CREATE INDEX CONCURRENTLY ix_name ON users (name)"),),
    ),
    Pair(
        name="an index by SQL in a function",
        unsafe=_sql(
            "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN"
            " EXECUTE 'CREATE INDEX ix_name ON users (name)'; END $$"
        )
        + "\n"
        + _sql("SELECT f()"),
        finds="blocks writes:users",
        safe=(_outside("CREATE INDEX CONCURRENTLY ix_name ON users (name)"),),
    ),
    Pair(
        name="an index in a DO block",
        unsafe=_sql("DO $$ BEGIN CREATE INDEX ix_name ON users (name); END $$"),
        finds="blocks writes:users",
        safe=(_outside("CREATE INDEX CONCURRENTLY ix_name ON users (name)"),),
    ),
    Pair(
        name="a unique constraint",
        unsafe="op.create_unique_constraint('uq', 'users', ['email'])",
        finds="blocks reads:users",
        safe=(
            _outside("CREATE UNIQUE INDEX CONCURRENTLY uq ON users (email)"),
            _sql("ALTER TABLE users ADD CONSTRAINT uq UNIQUE USING INDEX uq"),
        ),
    ),
    Pair(
        name="a primary key",
        unsafe=_sql("ALTER TABLE old_events ADD PRIMARY KEY (at, id)"),
        finds="blocks reads:old_events",
        safe=(
            _sql("ALTER TABLE old_events ADD CONSTRAINT ck CHECK (id IS NOT NULL) NOT VALID"),
            _sql("ALTER TABLE old_events VALIDATE CONSTRAINT ck"),
            _outside("CREATE UNIQUE INDEX CONCURRENTLY pk ON old_events (at)"),
            _sql("ALTER TABLE old_events ADD PRIMARY KEY USING INDEX pk"),
        ),
    ),
    Pair(
        name="a foreign key",
        unsafe="op.create_foreign_key('fk', 'users', 'orgs', ['org_id'], ['id'])",
        finds="blocks writes:users",
        safe=(
            _sql(
                "ALTER TABLE users ADD CONSTRAINT fk FOREIGN KEY (org_id) REFERENCES orgs NOT VALID"
            ),
            _sql("ALTER TABLE users VALIDATE CONSTRAINT fk"),
        ),
    ),
    Pair(
        name="a check constraint",
        unsafe="op.create_check_constraint('ck', 'users', 'age < 200')",
        finds="blocks reads:users",
        safe=(
            _sql("ALTER TABLE users ADD CONSTRAINT ck CHECK (age < 200) NOT VALID"),
            _sql("ALTER TABLE users VALIDATE CONSTRAINT ck"),
        ),
    ),
    Pair(
        name="a required column",
        unsafe="op.alter_column('users', 'name', nullable=False)",
        finds="blocks reads:users",
        safe=(
            *NOT_NULL,
            _sql("ALTER TABLE users ALTER COLUMN name SET DEFAULT ''"),
            _sql("ALTER TABLE users ALTER COLUMN name SET NOT NULL"),
        ),
    ),
    Pair(
        name="all of a required column in one transaction",
        unsafe="\n".join([*NOT_NULL, "op.alter_column('users', 'name', nullable=False)"]),
        finds="blocks reads:users",
        safe=NOT_NULL,
    ),
    Pair(
        name="a required column that INSERTs of the running code do not know",
        unsafe="op.add_column('orgs', sa.Column('kind', sa.Text, nullable=False))",
        finds="breaks running code:orgs",
        safe=(
            "op.add_column('orgs', sa.Column('kind', sa.Text, nullable=False, server_default=''))",
        ),
    ),
    Pair(
        name="a column with a volatile default",
        unsafe=_sql("ALTER TABLE users ADD COLUMN token uuid DEFAULT gen_random_uuid()"),
        finds="rewrites:users",
        safe=(
            _sql("ALTER TABLE users ADD COLUMN token uuid"),
            _sql("ALTER TABLE users ALTER COLUMN token SET DEFAULT gen_random_uuid()"),
            _batches("UPDATE users SET token = gen_random_uuid()"),
        ),
    ),
    Pair(
        name="a stored generated column",
        unsafe=_sql(
            "ALTER TABLE users ADD COLUMN low text GENERATED ALWAYS AS (lower(name)) STORED"
        ),
        finds="rewrites:users",
        safe=(
            _sql("ALTER TABLE users ADD COLUMN low text"),
            _batches("UPDATE users SET low = name"),
        ),
    ),
    Pair(
        name="an identity column",
        unsafe=_sql("ALTER TABLE users ADD COLUMN n bigint GENERATED ALWAYS AS IDENTITY"),
        finds="rewrites:users",
        safe=(_sql("ALTER TABLE users ADD COLUMN n bigint"),),
    ),
    Pair(
        name="a shorter varchar",
        unsafe="op.alter_column('users', 'email', type_=sa.String(50))",
        finds="rewrites:users",
        safe=("op.add_column('users', sa.Column('email_new', sa.String(50)))",),
    ),
    Pair(
        name="int to bigint",
        unsafe="op.alter_column('users', 'age', type_=sa.BigInteger)",
        finds="rewrites:users",
        safe=(
            "op.add_column('users', sa.Column('age_new', sa.BigInteger))",
            _batches("UPDATE users SET age_new = age"),
        ),
    ),
    Pair(
        name="timestamp to timestamptz in another zone",
        unsafe=_sql("SET LOCAL timezone = 'Europe/Berlin'")
        + "\n"
        + _sql("ALTER TABLE users ALTER COLUMN born TYPE timestamptz"),
        finds="rewrites:users",
        safe=("op.add_column('users', sa.Column('born_tz', sa.DateTime(timezone=True)))",),
    ),
    Pair(
        name="json to jsonb",
        unsafe=_sql("ALTER TABLE users ALTER COLUMN data TYPE jsonb"),
        finds="rewrites:users",
        safe=(_sql("ALTER TABLE users ADD COLUMN data_new jsonb"),),
    ),
    Pair(
        name="a column dropped",
        unsafe="op.drop_column('users', 'name')",
        finds="destroys data:users",
        safe=("op.add_column('users', sa.Column('full_name', sa.Text))",),
    ),
    Pair(
        name="a table dropped",
        unsafe="op.drop_table('old_events')",
        finds="destroys data:old_events",
        safe=(_sql("COMMENT ON TABLE old_events IS 'unused'"),),
    ),
    Pair(
        name="a column renamed",
        unsafe="op.alter_column('users', 'name', new_column_name='full_name')",
        finds="breaks running code:users",
        safe=("op.add_column('users', sa.Column('full_name', sa.Text))",),
    ),
    Pair(
        name="a table renamed",
        unsafe="op.rename_table('orders', 'purchases')",
        finds="breaks running code:orders",
        safe=(_sql("CREATE VIEW purchases AS SELECT * FROM orders"),),
    ),
    Pair(
        name="a table emptied",
        unsafe=_sql("TRUNCATE old_events"),
        finds="destroys data:old_events",
        safe=(_sql("ANALYZE old_events"),),
    ),
    Pair(
        name="rows deleted",
        unsafe=_sql("DELETE FROM orders"),
        finds="destroys data:orders",
        safe=(_sql("SELECT count(*) FROM orders"),),
    ),
    Pair(
        name="all rows updated",
        unsafe=_sql("UPDATE users SET name = lower(name)"),
        finds="blocks writes:users",
        safe=(_batches("UPDATE users SET name = lower(name)"),),
    ),
    Pair(
        name="VACUUM FULL",
        unsafe=_outside("VACUUM FULL users"),
        finds="rewrites:users",
        safe=(_outside("VACUUM users"),),
    ),
    Pair(
        name="REINDEX",
        unsafe=_sql("REINDEX TABLE users"),
        finds="blocks reads:users",
        safe=(_outside("REINDEX TABLE CONCURRENTLY users"),),
    ),
    Pair(
        name="a partition attached without a constraint that proves its bounds",
        unsafe=_sql(
            "ALTER TABLE events ATTACH PARTITION old_events"
            " FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')"
        ),
        finds="blocks reads:old_events",
        safe=(
            _sql(
                "ALTER TABLE old_events ADD CONSTRAINT ck"
                " CHECK (at >= '2025-01-01' AND at < '2026-01-01') NOT VALID"
            ),
            _sql("ALTER TABLE old_events VALIDATE CONSTRAINT ck"),
            _sql(
                "ALTER TABLE events ATTACH PARTITION old_events"
                " FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')"
            ),
        ),
    ),
    Pair(
        name="a scan after a quick statement that takes a strong lock",
        unsafe="op.add_column('users', sa.Column('x', sa.Text))\n"
        + _sql("SELECT count(*) FROM users"),
        finds="blocks reads:users",
        safe=(
            "op.add_column('users', sa.Column('x', sa.Text))",
            _sql("SELECT count(*) FROM users"),
        ),
    ),
    Pair(
        name="an exclusion constraint",
        unsafe=_sql("ALTER TABLE users ADD CONSTRAINT ex EXCLUDE USING btree (code WITH =)"),
        finds="blocks reads:users",
        safe=(_outside("CREATE UNIQUE INDEX CONCURRENTLY ex ON users (code)"),),
    ),
    Pair(
        name="a table made unlogged",
        unsafe=_sql("ALTER TABLE old_events SET UNLOGGED"),
        finds="rewrites:old_events",
        safe=(_sql("CREATE UNLOGGED TABLE cache (id bigint)"),),
    ),
    Pair(
        name="a materialized view refreshed",
        unsafe=_sql("REFRESH MATERIALIZED VIEW totals"),
        finds="rewrites:totals",
        safe=(_outside("CREATE UNIQUE INDEX CONCURRENTLY uq ON totals (user_id)"),),
    ),
)
