"""A rendered project's migrations, by its own commands, against PostgreSQL."""

import asyncio
import json
import re
from textwrap import dedent

import asyncpg
import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.support import Project

from alembic_safety.database.url import DatabaseURL

Database = psycopg.Connection[TupleRow]

ORDERS = '''\
"""The tables of the app."""

import enum

from sqlalchemy import Enum
from sqlalchemy.orm import Mapped, mapped_column

from core.models import Base


class Status(enum.Enum):
    """Where an order stands."""

    NEW = "new"
    PAID = "paid"


class Order(Base):
    """An order."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[Status] = mapped_column(Enum(Status, name="order_status"))
'''


def tables(database: Database) -> set[str]:
    rows = database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {row[0] for row in rows} - {"alembic_version", "alembic_version_history"}


def types(database: Database) -> dict[str, list[str]]:
    rows = database.execute(
        "SELECT t.typname, array_agg(e.enumlabel::text ORDER BY e.enumsortorder) "
        "FROM pg_type t JOIN pg_enum e ON e.enumtypid = t.oid GROUP BY 1"
    )
    return {str(name): values for name, values in rows}


def test_up_status_down(project: Project, database: Database, database_url: DatabaseURL) -> None:
    status = project.make("migrate-status").stdout
    assert "pending:  3f1c9b7d5a20  2026-01-01 00:00  Create users" in status
    assert "never migrated; 1 revision pending; run `alembic upgrade head`" in status
    project.make("migrate-up")
    assert tables(database) == {"users"}
    status = project.make("migrate-status").stdout
    assert f"database: {database_url.database}" in status
    assert "current:  3f1c9b7d5a20 (Create users)" in status
    assert "The database is at head." in status
    project.make("migrate-down")
    assert tables(database) == set()
    assert "behind by 1 revision" in project.make("migrate-status").stdout
    again = project.make("migrate-down", expect=2)
    assert "not so many revisions" in again.stderr


@pytest.mark.parametrize(
    ("layout", "package"),
    [
        ("models.py", True),
        ("models.py", False),
        ("models/__init__.py", True),
        ("models/order.py", False),
    ],
)
def test_a_new_app_needs_no_list(
    project: Project, database: Database, layout: str, *, package: bool
) -> None:
    project.make("migrate-up")
    if package:
        project.write("src/apps/orders/__init__.py", "")
    project.write(f"src/apps/orders/{layout}", ORDERS)
    created = project.make("migrate-create", "MSG=Add orders").stdout
    new = project.revisions()[-1]
    assert new.name in created
    assert re.fullmatch(r"\d{8}_\d{4}_[0-9a-f]{12}_add_orders\.py", new.name)
    project.make("migrate-up")
    assert tables(database) == {"users", "orders"}
    assert types(database) == {"order_status": ["NEW", "PAID"]}
    project.alembic("check")
    project.make("migrate-down", "STEPS=2")
    assert (tables(database), types(database)) == (set(), {})
    project.make("migrate-up")


def test_enum_values_are_added_removed_and_dropped(project: Project, database: Database) -> None:
    project.write("src/apps/orders/models.py", ORDERS)
    project.make("migrate-up")
    project.make("migrate-create", "MSG=Add orders")
    project.make("migrate-up")
    database.execute("INSERT INTO orders (status) VALUES ('NEW')")
    for values in (["NEW", "PAID", "SENT"], ["NEW", "SENT"]):
        members = "".join(f'    {value} = "{value.lower()}"\n' for value in values)
        text = re.sub(r'    NEW = "new"\n    PAID = "paid"\n', members, ORDERS)
        project.write("src/apps/orders/models.py", text)
        project.make("migrate-create", f"MSG=Now {len(values)}")
        project.make("migrate-up")
        assert types(database) == {"order_status": values}
    project.alembic("check")
    project.make("check")
    project.make("migrate-down", "STEPS=2")
    assert types(database) == {"order_status": ["NEW", "PAID"]}
    assert database.execute("SELECT status FROM orders").fetchall() == [("NEW",)]
    project.make("migrate-up")
    (project.path / "src/apps/orders/models.py").unlink()
    project.make("migrate-create", "MSG=Drop orders")
    project.make("migrate-up")
    assert (tables(database), types(database)) == ({"users"}, {})


def test_a_revision_with_nothing_in_it_is_not_written(project: Project) -> None:
    project.make("migrate-up")
    before = project.revisions()
    printed = project.make("migrate-create", "MSG=Nothing").stderr
    assert "`alembic revision` without --autogenerate writes an empty one" in printed
    program = dedent("""
        import sys
        sys.path.insert(0, "src")
        from alembic import command
        from pathlib import Path
        from alembic_safety.config import make_config
        command.revision(make_config(Path.cwd()), "Nothing", autogenerate=True)
        command.check(make_config(Path.cwd()))
    """)
    assert "no revision written" in project.python(program).stderr
    assert project.revisions() == before
    project.make("migrate-create", "MSG=Fill in names", "EMPTY=1")
    assert len(project.revisions()) == len(before) + 1
    project.make("migrate-up")


def test_drift_is_found(project: Project, database: Database) -> None:
    project.make("migrate-up")
    project.alembic("check")
    database.execute("ALTER TABLE users ALTER full_name TYPE varchar(100)")
    assert "full_name" in drift(project)
    database.execute("ALTER TABLE users ALTER full_name TYPE varchar(200)")
    database.execute("ALTER TABLE users ALTER created_at SET DEFAULT '2000-01-01'")
    assert "created_at" in drift(project)


def drift(project: Project) -> str:
    done = project.alembic("check", expect=None)
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_what_is_not_the_models_own_is_left_alone_and_what_was_is_dropped(
    project: Project, database: Database
) -> None:
    project.make("migrate-up")
    database.execute(
        dedent("""
        CREATE EXTENSION vector;
        CREATE TABLE of_extension (id int);
        ALTER EXTENSION vector ADD TABLE of_extension;
        CREATE FOREIGN DATA WRAPPER nothing;
        CREATE SERVER elsewhere FOREIGN DATA WRAPPER nothing;
        CREATE FOREIGN TABLE far_away (id int) SERVER elsewhere;
        CREATE TABLE events (at date NOT NULL) PARTITION BY RANGE (at);
        CREATE TABLE events_2026 PARTITION OF events
            FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
        CREATE INDEX ON events (at);
        CREATE TABLE forgotten (id int);
        """)
    )
    project.write(
        "src/apps/events/models.py",
        dedent('''\
            """The tables of the app."""

            from datetime import date

            from sqlalchemy import Column, Date, Index, Table

            from core.models import Base

            events = Table(
                "events",
                Base.metadata,
                Column("at", Date, nullable=False),
                Index("events_at_idx", "at"),
                postgresql_partition_by="RANGE (at)",
            )
            assert date
            '''),
    )
    project.make("migrate-create", "MSG=Clean up")
    text = project.revisions()[-1].read_text(encoding="utf-8").partition("def downgrade")[0]
    assert re.findall(r'op\.(\w+)\(\s*"(\w+)"', text) == [("drop_table", "forgotten")]


def test_a_models_file_that_fails_to_import_stops_with_its_path(project: Project) -> None:
    project.write("src/apps/orders/models.py", ORDERS + "\n\nraise RuntimeError('half-written')\n")
    done = project.make("migrate-create", "MSG=Add orders", expect=2)
    assert "src/apps/orders/models.py:27: RuntimeError: half-written" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Traceback" in project.alembic("--raiseerr", "check", expect=1).stderr


def test_two_heads_are_refused(project: Project, database: Database) -> None:
    for name in ("one", "two"):
        project.alembic("revision", "-m", name, "--head", "3f1c9b7d5a20", "--splice")
    done = project.make("migrate-up", expect=2)
    assert "two heads" in done.stderr
    assert "alembic merge heads" in done.stderr
    assert tables(database) == set()
    project.alembic("merge", "heads", "-m", "Merge")
    project.make("migrate-up")
    assert "at head" in project.make("migrate-status").stdout


def test_a_database_ahead_of_the_code_is_said_and_left_alone(
    project: Project, database: Database
) -> None:
    project.make("migrate-up")
    project.make("migrate-create", "MSG=Newer", "EMPTY=1")
    project.make("migrate-up")
    newer = project.revisions()[-1]
    newer.unlink()
    revision = newer.name.split("_")[2]
    assert f"no revision '{revision}' in this code" in project.make("migrate-up", expect=2).stderr
    status = project.make("migrate-status").stdout
    assert f"at revision {revision}, which this code does not have" in status
    assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [(revision,)]


def test_plain_alembic_from_another_folder(project: Project, database: Database) -> None:
    elsewhere = project.path.parent / "else where"
    elsewhere.mkdir()
    project.write("src/apps/orders/models.py", ORDERS)

    def alembic(*arguments: str) -> str:
        prefix = ["uv", "run", "--project", str(project.path), "alembic"]
        file = str(project.path / "pyproject.toml")
        return project.run(*prefix, "-c", file, *arguments, cwd=elsewhere).stdout

    alembic("upgrade", "head")
    alembic("revision", "--autogenerate", "-m", "Add orders")
    alembic("upgrade", "head")
    assert tables(database) == {"users", "orders"}
    assert "(head)" in alembic("current")
    assert "Add orders" in alembic("history")
    assert "No new upgrade operations" in alembic("check")
    alembic("downgrade", "-1")
    assert tables(database) == {"users"}


def test_the_sql_alone_brings_a_database_to_head(project: Project, database: Database) -> None:
    nowhere = {"DATABASE_URL": "postgresql://u:p@127.0.0.1:1/app"}
    database.execute(project.alembic("upgrade", "head", "--sql", env=nowhere).stdout)
    assert tables(database) == {"users"}
    assert "at head" in project.make("migrate-status").stdout


def test_percent_signs_of_the_url_are_no_interpolation(
    project: Project, database: Database
) -> None:
    """A `%` in the URL is no interpolation."""
    database.execute("CREATE ROLE \"a%d\" LOGIN SUPERUSER PASSWORD 'p%(here)s@/'")
    try:
        url = project.environment["DATABASE_URL"].replace(
            "postgres@", "a%25d:p%25%28here%29s%40%2F@"
        )
        project.make("migrate-up", env={"DATABASE_URL": url})
        assert tables(database) == {"users"}
        database.execute("DROP TABLE users, alembic_version, alembic_version_history")
    finally:
        database.execute('REASSIGN OWNED BY "a%d" TO postgres; DROP OWNED BY "a%d"')
        database.execute('DROP ROLE "a%d"')


def test_where_an_option_comes_from_reaches_the_connection(project: Project) -> None:
    project.make("migrate-create", "MSG=Show", "EMPTY=1")
    revision = project.revisions()[-1]
    shown = 'print("lock_timeout is", op.get_bind().exec_driver_sql("SHOW lock_timeout").scalar())'
    text = revision.read_text(encoding="utf-8")
    begins = '"""Bring the schema to this revision."""\n'
    assert begins in text
    text = text.replace(begins, f"{begins}    {shown}\n", 1)
    revision.write_text(
        text if "from alembic import op" in text else "from alembic import op\n" + text,
        encoding="utf-8",
    )

    def upgrade(*arguments: str, **environment: str) -> str:
        done = project.alembic(*arguments, "upgrade", "head", env=environment).stdout
        project.alembic("downgrade", "-1")
        return done

    assert "lock_timeout is 2s" in upgrade()
    assert "lock_timeout is 3s" in upgrade(MIGRATION_LOCK_TIMEOUT="3s")
    assert "lock_timeout is 4s" in upgrade("-x", "lock_timeout=4s", MIGRATION_LOCK_TIMEOUT="3s")
    program = dedent("""
        import sys
        sys.path.insert(0, "src")
        from alembic import command
        from alembic.config import Config
        command.upgrade(
            Config(toml_file="pyproject.toml", attributes={"lock_timeout": "5s"}), "head"
        )
    """)
    assert (
        "lock_timeout is 5s" in project.python(program, env={"MIGRATION_LOCK_TIMEOUT": "3s"}).stdout
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("truncate_slug_length = '40'", "truncate_slug_length: expected a valid integer, not '40'"),
        ("file_tempalte = 'x'", "file_tempalte: unknown key; did you mean file_template?"),
    ],
)
def test_a_wrong_key_stops_with_its_name(project: Project, line: str, says: str) -> None:
    text = re.sub(r"truncate_slug_length = 40", line, project.read("pyproject.toml"))
    project.write("pyproject.toml", text)
    # An integer that is text is refused by Alembic itself where it needs it first.
    assert says in project.alembic("upgrade", "head", expect=1).stderr


def test_a_caller_s_connection_transaction_and_logging_are_its_own(
    project: Project, database: Database
) -> None:
    program = dedent("""
        import asyncio, logging, sys
        sys.path.insert(0, "src")
        logging.basicConfig(format="MINE %(message)s", level=logging.INFO)
        from alembic import command
        from core.config import get_settings
        from core.database import create_engine
        from pathlib import Path
        from alembic_safety.config import make_config

        async def main():
            engine = create_engine(get_settings().url)
            async with engine.connect() as connection:
                transaction = await connection.begin()
                await connection.run_sync(
                    lambda sync: command.upgrade(make_config(Path.cwd(), connection=sync), "head")
                )
                await transaction.rollback()
            command.current(make_config(Path.cwd()))  # inside the running loop
            async with engine.begin() as connection:
                await connection.run_sync(
                    lambda sync: command.upgrade(make_config(Path.cwd(), connection=sync), "head")
                )
        asyncio.run(main())
    """)
    done = project.python(program)
    assert "MINE Running upgrade  -> 3f1c9b7d5a20" in done.stderr
    assert "[info" not in done.stderr
    assert tables(database) == {"users"}


def test_prod_logs_migrations_as_json(project: Project) -> None:
    done = project.make("migrate-up", env={"ENVIRONMENT": "prod"})
    records = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert any("Running upgrade" in record["event"] for record in records)


def test_asyncpg_is_what_connects(project: Project, database_url: DatabaseURL) -> None:
    async def version() -> str:
        connection = await asyncpg.connect(**database_url.asyncpg_arguments())
        try:
            return str(await connection.fetchval("SHOW server_version"))
        finally:
            await connection.close()

    assert asyncio.run(version()).startswith("18")
