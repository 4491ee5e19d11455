"""What a migration would do, rehearsed. The template's own tests have the long list of cases."""

import json
import logging
import re
import shutil
import subprocess
from collections.abc import Callable

import psycopg
import pytest
from tests.inside.support import Project

from alembic_safety import cli as migrations
from alembic_safety import project as safety
from alembic_safety.backup.clients import find_client
from alembic_safety.commands import review
from alembic_safety.errors import ClientProgramError
from alembic_safety.plan import progress
from core.config import get_settings

Plan = Callable[..., tuple[int, str]]

UNSAFE = """
op.execute("CREATE INDEX ix_a1 ON t_a1 (id)")
    op.execute("ALTER TABLE t_a1 ADD FOREIGN KEY (id) REFERENCES other")
    op.execute("ALTER TABLE t_a1 ALTER COLUMN id TYPE bigint")
    op.execute("ALTER TABLE t_a1 ADD COLUMN token uuid DEFAULT gen_random_uuid()")
    op.execute("ALTER TABLE t_a1 ADD COLUMN kind text NOT NULL")
    op.execute("ALTER TABLE t_a1 RENAME COLUMN kind TO sort")
    op.execute("ALTER TABLE other DROP COLUMN name")
    op.execute("ALTER TABLE other ALTER COLUMN sort SET NOT NULL")
    op.execute("ALTER TABLE t_a1 RENAME TO t_b1")
    op.execute("DELETE FROM third")
    op.execute("DROP TABLE fourth")
    with op.get_context().autocommit_block():
        op.execute("CREATE INDEX CONCURRENTLY ix_third ON third (id)")
        op.execute("VACUUM FULL third")
"""
FIRST = """
op.execute("CREATE TABLE other (id bigint PRIMARY KEY, name text, sort text)")
    op.execute("CREATE TABLE third (id bigint)")
    op.execute("CREATE TABLE fourth (id bigint)")
"""


@pytest.fixture
def plan(
    project: Project,
    commands: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Plan:
    """Plan the test's own revisions: returns the exit code and what was printed."""
    version = project.connection.info.server_version // 10000
    project.connection.rollback()
    try:
        find_client("pg_dump", None, server_major=version)
    except ClientProgramError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("MIGRATION_PLAN_SMALL_ROWS", "0")

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = migrations.main(["plan", *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def databases(project: Project) -> list[str]:
    with project.connection.transaction():
        rows = project.connection.execute("SELECT datname FROM pg_database ORDER BY 1").fetchall()
    return [
        name for (name,) in rows if name.startswith(f"{project.connection.info.dbname}_scratch_")
    ]


def test_what_is_unsafe_is_said_in_each_format(project: Project, plan: Plan) -> None:
    project.write("a1", None, FIRST.strip())
    project.run("upgrade", "head")
    project.write("b2", "a1", UNSAFE.strip(), table=False)
    code, said = plan()
    assert code == review.UNSAFE
    for expected in (
        "rewrites: every row of t_a1 is rewritten",
        "breaks running code: the column other.name is dropped",
        "destroys data: the table fourth is dropped",
        "destroys data: rows of third are deleted",
        "cannot be undone",
        "CREATE INDEX CONCURRENTLY",
        "(outside a transaction)",
        "Unsafe: b2.",
    ):
        assert expected in " ".join(said.split())
    document = json.loads(plan("--format=json")[1])
    [revision] = document["revisions"]
    keys = {reason["key"] for reason in revision["reasons"]}
    assert {"rewrites:t_a1", "rewrites:third", "blocks reads:other"} <= keys
    first = revision["statements"][0]
    assert first["tables"][0]["lock"] == "SHARE"
    assert "### `b2`" in plan("--format=markdown")[1]
    assert databases(project) == []
    assert project.tables() == {"t_a1", "other", "third", "fourth"}


def test_a_plan_waits_no_longer_for_a_table_than_lock_wait(
    project: Project, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    project.write("b2", "a1", "pass", table=False)
    monkeypatch.setenv("MIGRATION_LOCK_WAIT", "200ms")
    with psycopg.connect(get_settings().url.libpq) as holder:
        holder.execute("LOCK TABLE t_a1")
        code, said = plan()
    assert code == 1
    assert "another session locked a table for longer than lock_wait" in said
    assert databases(project) == []
    assert plan()[0] == 0


def test_a_long_plan_says_how_far_it_has_come(
    project: Project,
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    project.write("a1")
    project.write("b2", "a1")
    caplog.set_level(logging.INFO, logger="alembic_safety")
    plan()
    assert "rehearsing" not in caplog.text
    monkeypatch.setattr(progress, "PROGRESS_INTERVAL", 0)
    plan()
    said = [re.sub(r"\d+ s", "0 s", line) for line in caplog.messages if "rehearsing" in line]
    applied = ["rehearsing a1: 0 done after 0 s", "rehearsing b2: 1 done after 0 s"]
    reverted = ["rehearsing b2: 0 done after 0 s", "rehearsing a1: 1 done after 0 s"]
    assert said == applied + reverted


def test_rows_that_were_never_counted_are_not_called_none(project: Project, plan: Plan) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    project.connection.execute("INSERT INTO t_a1 SELECT generate_series(1, 1000)")
    project.connection.commit()
    project.write("b2", "a1", 'op.execute("CREATE INDEX ON t_a1 (id)")', table=False)
    said = " ".join(plan()[1].split())
    assert "MB read at about 200 MB/s" in said
    assert "rows)" not in said
    project.connection.execute("ANALYZE t_a1")
    project.connection.commit()
    assert "MB (1,000 rows) read at about 200 MB/s" in " ".join(plan()[1].split())


def test_a_large_table_is_not_small_before_it_is_analyzed(
    project: Project, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIGRATION_PLAN_SMALL_ROWS", "10000")
    project.write("a1")
    project.run("upgrade", "head")
    project.connection.execute("ALTER TABLE t_a1 SET (autovacuum_enabled = off)")
    project.connection.execute("INSERT INTO t_a1 SELECT generate_series(1, 100)")
    project.connection.commit()
    project.write("b2", "a1", 'op.execute("CREATE INDEX ON t_a1 (id)")', table=False)
    assert "let through: the table is small" in " ".join(plan()[1].split())
    project.connection.execute("INSERT INTO t_a1 SELECT generate_series(1, 30000)")
    project.connection.commit()
    code, said = plan()
    assert code == review.UNSAFE
    assert "let through" not in said


def test_what_a_downgrade_does_not_restore_is_named(project: Project, plan: Plan) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    project.write("b2", "a1", 'op.execute("ALTER TABLE t_a1 ALTER id SET DEFAULT 7")', table=False)
    said = " ".join(plan()[1].split())
    assert "cannot be undone: the downgrade does not fully restore column t_a1.id" in said


def test_what_is_safe_is_safe(project: Project, plan: Plan) -> None:
    project.write("a1")
    assert plan("--from=base")[0] == 0
    project.run("upgrade", "head")
    assert plan() == (0, f"Nothing is pending in the database {project.connection.info.dbname}.\n")
    project.write("b2", "a1", "op.add_column('t_a1', sa.Column('name', sa.Text))", table=False)
    text = project.folder / "b2.py"
    text.write_text(
        text.read_text().replace("DROP TABLE IF EXISTS t_b2", "ALTER TABLE t_a1 DROP name")
    )
    code, said = plan()
    assert (code, "All of it is safe." in said) == (0, True)
    assert plan("--with-data")[0] == 0


def test_a_revision_that_fails_is_said_and_the_copy_is_dropped(
    project: Project, plan: Plan
) -> None:
    project.write("a1")
    project.write("b2", "a1", "raise RuntimeError('halfway')")
    code, said = plan()
    assert code == 1
    assert "RuntimeError: halfway" in " ".join(said.split())
    assert databases(project) == []


def test_a_plan_after_an_interrupted_run_goes_on_as_the_run_will(
    project: Project, plan: Plan
) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    index = "create_index('ix', 't_a1', ['id'], postgresql_concurrently=True)"
    block = f"with op.get_context().autocommit_block(): op.{index}"
    project.write("b2", "a1", f"{block}; op.execute('VACUUM t_a1')", table=False)
    with project.connection.transaction():
        project.connection.execute("CREATE INDEX ix ON t_a1 (id)")
    code, said = plan()
    assert "skipped: CREATE INDEX CONCURRENTLY ix ON t_a1 (id)" in " ".join(said.split())
    assert "VACUUM t_a1" in said
    assert code != 1


def test_acknowledgements_are_checked(project: Project, plan: Plan) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    module = "acknowledged = {'destroys data:t_a1': 'unused', 'rewrites:t_a1': ''}"
    project.write("b2", "a1", "op.execute('DELETE FROM t_a1')", table=False, module=module)
    code, said = plan()
    assert code == review.UNSAFE
    assert "(acknowledged: unused)" in said
    assert "'rewrites:t_a1' is acknowledged without a reason" in said


def test_a_wrong_timeout_of_a_revision_is_refused(
    project: Project, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("a1")
    project.write("b2", "a1", module="lock_timeout = 5")
    code, said = plan()
    assert code == 1
    assert "b2.py: lock_timeout: expected a duration such as" in said
    assert databases(project) == []

    monkeypatch.setenv("MIGRATION_LOCK_TIMEOUT", "99999999h")
    code, said = plan()
    assert code == 1
    assert (
        said
        == "MIGRATION_LOCK_TIMEOUT: expected at most 596h, PostgreSQL's limit, not '99999999h'\n"
    )


def test_no_table_is_small_if_the_limits_are_zero(
    project: Project, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    with project.connection.transaction():
        project.connection.execute("INSERT INTO t_a1 VALUES (1)")
        project.connection.execute("ANALYZE t_a1")
    one_way = "acknowledged = {'cannot be undone': 'test'}"
    index = "op.create_index('ix', 't_a1', ['id'])"
    project.write("b2", "a1", index, table=False, module=one_way)
    monkeypatch.setenv("MIGRATION_PLAN_SMALL_ROWS", "10000")
    code, said = plan()
    assert code == 0, said
    monkeypatch.setenv("MIGRATION_PLAN_SMALL_BYTES", "0")
    assert plan()[0] == review.UNSAFE


def test_a_downgrade_is_blamed_for_what_it_leaves_itself(project: Project, plan: Plan) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    project.write("b2", "a1")
    project.write("c3", "b2", "op.add_column('t_a1', sa.Column('note', sa.Text))")
    document = json.loads(plan("--format=json")[1])
    errors = {item["revision"]: item["downgrade_error"] for item in document["revisions"]}
    assert errors == {"b2": "", "c3": "the downgrade leaves column t_a1.note"}


def test_tables_of_pending_revisions_are_used_by_nobody(project: Project, plan: Plan) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    project.write("b2", "a1")
    project.write("c3", "b2", "op.rename_table('t_b2', 'other')")
    text = project.folder / "c3.py"
    back = '    op.execute("ALTER TABLE other RENAME TO t_b2")\n'
    text.write_text(text.read_text() + back)
    code, said = plan()
    assert code == 0, said


def reasons_of(plan: Plan) -> set[str]:
    [revision] = json.loads(plan("--format=json")[1])["revisions"]
    return {reason["key"] for reason in revision["reasons"]}


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("ALTER ROLE CURRENT_USER CONNECTION LIMIT 3", "ALTER ROLE is for the whole server"),
        ("DO $$ BEGIN EXECUTE 'DROP OWNED BY x'; END $$", "DROP OWNED is for the whole server"),
        ("COMMIT", "COMMIT in a revision ends Alembic's transaction"),
    ],
)
def test_what_would_leave_the_copy_is_not_rehearsed(
    project: Project, plan: Plan, statement: str, message: str
) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    project.write("b2", "a1", f"op.execute({statement!r})")
    code, said = plan()
    assert code == 1
    assert message in " ".join(said.split())


def test_a_revision_that_commits_itself_is_planned(project: Project, plan: Plan) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    project.write("b2", "a1", "op.get_bind().commit()")
    code, said = plan()
    assert code == 0, said


def test_words_in_texts_and_comments_are_no_statements(project: Project, plan: Plan) -> None:
    project.write("a1", None, 'op.execute("CREATE TABLE users (id int PRIMARY KEY, note text)")')
    project.run("upgrade", "head")
    harmless = "INSERT INTO users VALUES (1, 'drop user x') -- alembic_version, DELETE FROM users"
    project.write("b2", "a1", f"op.execute({harmless!r})")
    assert reasons_of(plan) == set()
    project.write("b2", "a1", "op.execute('DELETE FROM users /* not alembic_version */')")
    assert "destroys data:users" in reasons_of(plan)


def test_a_new_column_that_is_required_in_the_end_breaks_running_code(
    project: Project, plan: Plan
) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    column = "sa.Column('kind', sa.Text, nullable=False, server_default='x')"
    drop_default = "op.alter_column('t_a1', 'kind', server_default=None)"
    project.write("b2", "a1", f"op.add_column('t_a1', {column})\n    {drop_default}")
    assert "breaks running code:t_a1" in reasons_of(plan)
    project.write("b2", "a1", f"op.add_column('t_a1', {column})")
    assert "breaks running code:t_a1" not in reasons_of(plan)


def test_a_safe_way_can_be_pasted(project: Project, plan: Plan) -> None:
    table = """op.execute('CREATE TABLE "Things" (id bigint PRIMARY KEY, "Name" text, n int)')"""
    project.write("a1", None, table)
    project.run("upgrade", "head")
    unsafe = """
        op.execute('ALTER TABLE "Things" ADD CONSTRAINT "Uq" UNIQUE NULLS NOT DISTINCT ("Name")')
        op.execute('ALTER TABLE "Things" ALTER COLUMN "Name" SET NOT NULL')
        op.execute('''UPDATE "Things" SET n = n + 1 WHERE n = 1 OR "Name" = 'a  b' ''')
    """
    project.write("b2", "a1", "\n    ".join(line.strip() for line in unsafe.strip().splitlines()))
    [revision] = json.loads(plan("--format=json")[1])["revisions"]
    ways = "\n".join(reason["safe_way"] for reason in revision["reasons"])
    compile(ways, "safe ways", "exec")
    for part in (
        r"CREATE UNIQUE INDEX CONCURRENTLY \"Uq\" ON \"Things\" (\"Name\") NULLS NOT DISTINCT",
        r"ADD CONSTRAINT \"Uq\" UNIQUE USING INDEX \"Uq\"",
    ):
        assert part in ways


@pytest.fixture
def based(project: Project, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A repository whose branch `base` has the heads a1 and b1; nothing of it is in a database."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    monkeypatch.setattr(safety.Project, "root", project.folder)
    project.write("a1")
    project.write("b1")
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for arguments in (
        ["init", "--quiet", "--initial-branch=base"],
        ["add", "--all"],
        [*identity, "commit", "--quiet", "--message=Commit"],
    ):
        subprocess.run([git, *arguments], cwd=project.folder, check=True)
    return project


def test_what_a_branch_adds_is_planned_from_all_heads_of_its_base(
    based: Project, plan: Plan
) -> None:
    assert plan("--base=base") == (0, "This branch adds no revision to base.\n")
    based.write("a2", "a1", "op.create_index('ix', 't_b1', ['id'])")
    code, said = plan("--base=base", "--format=json")
    assert code == review.UNSAFE
    document = json.loads(said)
    assert (document["base"], document["current"]) == ("base", ["a1", "b1"])
    [revision] = document["revisions"]
    assert revision["revision"] == "a2"
    assert "blocks writes:t_b1" in {reason["key"] for reason in revision["reasons"]}
    code, said = plan("--base=base", "--allow-unsafe", "--format=markdown")
    assert code == 0
    assert "1 revision new to base" in said
    assert based.tables() == set()
    assert databases(based) == []


def test_a_branch_is_planned_whatever_the_database_has(based: Project, plan: Plan) -> None:
    based.run("upgrade", "a1")
    based.connection.execute("UPDATE alembic_version SET version_num = 'unknown'")
    based.connection.commit()
    based.write("a2", "a1")
    assert "a2" in plan("--base=base")[1]
    code, said = plan()
    assert code == 1
    assert "which this code does not have" in said


def test_what_keeps_a_branch_from_being_planned_is_said(based: Project, plan: Plan) -> None:
    for arguments, message in {
        ("--base=nowhere",): "BASE=nowhere: there is no such branch or commit here",
        ("--base=base", "--from=a1"): "leave FROM out",
        ("--base=base", "--with-data"): "leave WITH_DATA out",
        ("--base=base", "--deployed=nowhere"): "DEPLOYED=nowhere: there is no such branch",
    }.items():
        based.write("a2", "a1")
        code, said = plan(*arguments)
        assert (code, message in said) == (1, True), said
    (based.folder / "a2.py").unlink()
    (based.folder / "b1.py").unlink()
    code, said = plan("--base=base")
    assert code == 1
    assert said == "base has revisions that are not here: merge it first\n"


def test_a_revision_that_fails_after_its_base_is_said(based: Project, plan: Plan) -> None:
    based.write("a2", "a1", "raise RuntimeError('halfway')")
    code, said = plan("--base=base", "--allow-unsafe")
    assert code == 1
    assert "RuntimeError: halfway (the copy has no rows)" in " ".join(said.split())
    assert databases(based) == []
