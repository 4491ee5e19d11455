"""Commands for roles as managed servers have them: no superuser, often no CREATEDB."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.stock import StockProject

from alembic_safety.database.lock import VERSION_TABLE, lock_key
from alembic_safety.database.url import DatabaseURL

Database = psycopg.Connection[TupleRow]
ROLES = {
    "creator": "CREATEDB",
    "owner": "",
    "watcher": "IN ROLE pg_read_all_stats",
    "grantee": "",
    "reader": "",
}
OWNERS = ("creator", "owner", "watcher")
CREATE = 'op.execute("CREATE TABLE orders (id int PRIMARY KEY, number text)")'
DROP = 'op.execute("DROP TABLE orders")'
ADD = 'op.execute("ALTER TABLE orders ADD note text")'


class Role:
    """A project on a database, as a role."""

    def __init__(self, name: str, project: StockProject, admin: Database) -> None:
        self.name = name
        self.project = project
        self.admin = admin
        self.database = admin.info.dbname

    def says(self, *command: str, expect: int) -> str:
        run = self.project.alembic if command[0] == "alembic" else self.project.safety
        done = run(*(command[1:] if command[0] == "alembic" else command), expect=expect)
        assert "Traceback" not in done.stderr
        assert "None" not in done.stderr
        return f"{done.stdout}{done.stderr}"


@pytest.fixture
def connect(
    database: Database, database_url: DatabaseURL, tmp_path: Path
) -> Iterator[Callable[[str], Role]]:
    """Make a role, and a project that connects as it."""
    made: list[str] = []

    def connect(name: str) -> Role:
        role = f"{name}_{database.info.backend_pid}"
        database.execute(f"CREATE ROLE {role} LOGIN {ROLES[name]}".encode())
        made.append(role)
        if name in OWNERS:
            database.execute(f'ALTER DATABASE "{database.info.dbname}" OWNER TO {role}'.encode())
        if name == "grantee":
            database.execute(f"GRANT CREATE ON SCHEMA public TO {role}".encode())
        url = replace(database_url, user=role)
        return Role(role, StockProject(tmp_path / name, "generic", url, "asyncpg"), database)

    yield connect
    database.execute(f'ALTER DATABASE "{database.info.dbname}" OWNER TO postgres'.encode())
    for role in made:
        database.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}".encode())


def fix(role: Role, said: str) -> None:
    """Run the statement that a message gives."""
    statement = re.search(r"a superuser runs: (.*?)$", said, re.MULTILINE)
    assert statement is not None, said
    role.admin.execute(statement[1].encode())


@pytest.mark.parametrize("name", [name for name in ROLES if name != "reader"])
def test_a_role_that_owns_its_tables_can_do_all_that_needs_no_new_database(
    connect: Callable[[str], Role], name: str
) -> None:
    role = connect(name)
    role.project.revise("a1", None, CREATE, DROP)
    role.says("alembic", "upgrade", "head", expect=0)
    assert "at head" in role.says("status", expect=0)
    assert "upgrade    a1" in role.says("history", expect=0)
    backup = role.says("backup", expect=0).splitlines()[0]
    assert "verified" in role.says("backups", expect=0)
    assert "Nothing to clean up." in role.says("cleanup", expect=0)

    role.project.revise("b2", "a1", ADD, 'op.execute("ALTER TABLE orders DROP note")')
    restored = f"{role.database}_restored"
    for command in (["plan"], ["restore", backup, "--into", restored]):
        if name != "creator":
            said = role.says(*command, expect=1)
            assert "no database could be created: permission denied" in said
            fix(role, said)
        role.says(*command, expect=0)
        role.admin.execute(
            f"ALTER ROLE {role.name} {ROLES[name].partition(' ')[0] if name == 'creator' else 'NOCREATEDB'}".encode()
        )
    role.admin.execute(f'DROP DATABASE "{restored}"'.encode())
    if name != "creator":
        checked = role.says("check", expect=1)
        assert "FAIL  up, down, up" in checked
        assert f"a superuser runs: ALTER ROLE {role.name} CREATEDB" in checked
    role.says("reset", "--confirm", role.database, expect=0)
    assert role.admin.execute("SELECT to_regclass('orders')").fetchone() == (None,)


def test_a_role_that_reads_is_told_what_it_lacks(
    connect: Callable[[str], Role], database_url: DatabaseURL, tmp_path: Path
) -> None:
    role = connect("reader")
    admin = StockProject(tmp_path / "admin", "generic", database_url, "asyncpg")
    for project in (admin, role.project):
        project.revise("a1", None, CREATE, DROP)
    admin.alembic("upgrade", "head")
    lacks = role.says("status", expect=1)
    assert "permission denied for table alembic_version" in lacks
    role.admin.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role.name}".encode())
    assert "at head" in role.says("status", expect=0)
    assert "upgrade    a1" in role.says("history", expect=0)
    role.project.revise("b2", "a1", ADD, "pass")
    assert "must be owner of table orders" in role.says("alembic", "upgrade", "head", expect=1)
    assert "lacks a privilege" in role.says("alembic", "upgrade", "head", expect=1)
    said = role.says("backup", expect=1)
    assert "nothing was changed" in said
    fix(role, said)
    said = role.says("backup", expect=0)
    assert said.splitlines()[0].endswith(".dump")
    assert "the backup was taken, but could not be recorded: permission denied" in said


@pytest.mark.parametrize("name", ["owner", "watcher"])
def test_the_holder_of_a_lock_is_named_as_far_as_the_role_may_see(
    connect: Callable[[str], Role], name: str
) -> None:
    role = connect(name)
    role.project.revise("a1", None, CREATE, DROP)
    role.says("alembic", "upgrade", "head", expect=0)
    role.project.revise("b2", "a1", ADD, "pass")
    role.project.environment |= {"MIGRATION_LOCK_TIMEOUT": "600ms", "MIGRATION_LOCK_RETRIES": "0"}
    pid = role.admin.info.backend_pid
    with role.admin.transaction():
        role.admin.execute("SELECT count(*) FROM orders")
        said = role.says("alembic", "upgrade", "head", expect=1)
    if name == "owner":
        hint = f"to see what it runs: GRANT pg_read_all_stats TO {role.name}"
        assert f"pid {pid} (unnamed, of the role postgres; {hint})" in said
    else:
        assert re.search(rf"pid {pid} \(unnamed, idle in transaction, .*: SELECT count", said)

    key = lock_key(role.database, VERSION_TABLE)
    role.admin.execute("SELECT pg_advisory_lock(%s)", [key])
    role.project.environment["MIGRATION_LOCK_WAIT"] = "off"
    said = role.says("alembic", "upgrade", "head", expect=1)
    role.admin.execute("SELECT pg_advisory_unlock(%s)", [key])
    known = r"since \d\d:\d\d:\d\d" if name == "watcher" else "of the role postgres"
    assert re.search(rf"pid {pid} \(unnamed, {known}\) is migrating this database", said), said


@pytest.mark.parametrize(
    "parameter", ["search_path=tenant", "options=-csearch_path%3Dtenant,public"]
)
def test_a_search_path_of_the_url_holds_in_every_command(
    database: Database, database_url: DatabaseURL, tmp_path: Path, parameter: str
) -> None:
    database.execute("CREATE SCHEMA tenant")
    name, _, value = parameter.partition("=")
    url = replace(database_url, query=((name, value.replace("%3D", "=")),))
    project = StockProject(tmp_path / "shop", "generic", url, "asyncpg")
    project.revise("a1", None, CREATE, DROP)
    project.alembic("upgrade", "head")
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'tenant' ORDER BY 1"
    assert [row[0] for row in database.execute(tables)] == [
        "alembic_version", "alembic_version_history", "orders",
    ]  # fmt: skip
    assert "at head" in project.safety("status").stdout
    assert "a1 (head)" in project.alembic("current").stdout
    assert "upgrade    a1" in project.safety("history").stdout
    backup = project.safety("backup").stdout.strip()
    assert "_a1_" in backup
    project.revise("b2", "a1", ADD, 'op.execute("ALTER TABLE orders DROP note")')
    assert "b2  Revision b2  safe" in project.safety("plan").stdout
    assert re.search(r"ok +up, down, up +2 revisions", project.safety("check", expect=1).stdout)
    restored = f"{database.info.dbname}_restored"
    project.safety("restore", backup, "--into", restored)
    database.execute(f'DROP DATABASE "{restored}"'.encode())
    project.safety("reset", "--confirm", database.info.dbname)
    assert database.execute("SELECT to_regclass('tenant.orders')").fetchone() == (None,)


def test_cleanup_takes_what_is_provably_left_and_names_what_it_may_not_drop(
    connect: Callable[[str], Role],
) -> None:
    role = connect("owner")
    left, earlier = (f"{role.database}_{kind}_deadbeef" for kind in ("scratch", "plan"))
    for name in (left, earlier):
        role.admin.execute(f'CREATE DATABASE "{name}"'.encode())
    try:
        said = role.says("cleanup", expect=0)
        assert f"{left} was left by a killed command; drop it: must be owner of" in said
        role.admin.execute(f'ALTER DATABASE "{left}" OWNER TO {role.name}'.encode())
        assert role.says("cleanup", expect=0) == f"Removed: database {left}\n"
        # Release 1.2 holds no lock on the copy of a running plan.
        assert role.admin.execute(
            "SELECT count(*) FROM pg_database WHERE datname = %s", [earlier]
        ).fetchone() == (1,)
    finally:
        role.admin.execute(f'DROP DATABASE "{earlier}"'.encode())
        role.admin.execute(f'DROP DATABASE IF EXISTS "{left}"'.encode())
