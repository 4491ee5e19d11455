"""The program `alembic-safety`: options, exit codes, colors and help."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.stock import StockProject

from alembic_safety.database.url import DatabaseURL

COMMANDS = [
    "backup",
    "backup-path",
    "backups",
    "check",
    "cleanup",
    "eject",
    "history",
    "ini",
    "plan",
    "rebase",
    "reset",
    "restore",
    "rolled-out",
    "status",
    "verify",
]
CREATE = 'op.execute("CREATE TABLE t (id int)")'


@pytest.fixture
def project(tmp_path: Path, database_url: DatabaseURL) -> StockProject:
    project = StockProject(tmp_path / "shop", "generic", database_url, "asyncpg")
    project.revise("a1", None, CREATE, 'op.drop_table("t")')
    return project


def test_help_names_every_command_in_a_line(project: StockProject) -> None:
    said = project.safety("--help").stdout
    listed = re.findall(r"(?m)^  ([a-z-]+)  +[A-Z].*\.$", said.partition("Commands:")[2])
    assert listed == COMMANDS
    for command in COMMANDS:
        assert "Usage: alembic-safety " in project.safety(command, "--help").stdout


@pytest.mark.parametrize("arguments", [["statsu"], ["status", "--nope"], ["restore"], ["--nope"]])
def test_a_wrong_command_line_is_named_and_exits_with_2(
    project: StockProject, arguments: list[str]
) -> None:
    said = project.safety(*arguments, expect=2).stderr
    assert said.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in said


def test_verify_says_whether_the_database_is_at_head(project: StockProject) -> None:
    behind = project.safety("verify", expect=1)
    assert behind.stdout == ""
    assert "1 revision pending" in behind.stderr
    project.alembic("upgrade", "head")
    assert project.safety("verify").stdout == ""


def test_x_arguments_reach_the_options_and_env_py(project: StockProject) -> None:
    wrong = project.safety("-x", "lock_timeout=soon", "status", expect=1).stderr
    assert wrong.startswith("-x lock_timeout: expected a duration")
    env = project.read("migrations/env.py")
    project.write("migrations/env.py", env + "\nprint('tenant', context.get_x_argument())\n")
    said = (
        project.safety("-x", "tenant=blue", "plan").stderr
        + project.safety("-x", "tenant=blue", "status").stdout
    )
    assert set(re.findall(r"tenant .*", said)) == {"tenant ['tenant=blue']"}


def test_c_and_n_name_the_configuration(
    project: StockProject, database: psycopg.Connection[TupleRow]
) -> None:
    ini = project.read("alembic.ini")
    section = "[shop]\nscript_location = %(here)s/migrations\n"
    url = re.search(r"sqlalchemy.url = .*\n", ini)
    assert url is not None
    other = project.path.parent / "other"
    other.mkdir()
    project.write("deploy.ini", f"{section}{url[0]}{ini.replace(url[0], '')}")
    for option, cwd in (("deploy.ini", project.path), (f"{project.path}/deploy.ini", other)):
        said = project.run(
            sys.executable, "-m", "alembic_safety", "-c", option, "-n", "shop", "status", cwd=cwd
        ).stdout
        assert f"database: {database.info.dbname}\n" in said
    missing = project.safety("-c", "nope.ini", "status", expect=1).stderr
    assert missing == "there is no nope.ini; name the configuration with -c\n"
    nothing = project.run(sys.executable, "-m", "alembic_safety", "status", cwd=other, expect=1)
    assert nothing.stderr.startswith(f"there is no alembic.ini or pyproject.toml in {other}; ")
    # Commands that run Alembic's own use the same configuration.
    project.alembic("upgrade", "head")
    project.safety("-c", "deploy.ini", "-n", "shop", "reset", "--confirm", database.info.dbname)
    assert database.execute("SELECT to_regclass('t')").fetchone() == (None,)


def test_of_several_pyproject_toml_the_named_one_counts(project: StockProject) -> None:
    own = project.write("pyproject.toml", project.read("pyproject.toml"))
    other = project.write("deploy/pyproject.toml", '[tool.alembic.safety]\nlock_wait = "long"\n')
    moved = (project.path / "alembic.ini").rename(project.path / "deploy" / "alembic.ini")
    moved.write_text(moved.read_text().replace("%(here)s", "%(here)s/.."))
    wrong = f"{other}: [tool.alembic]: safety.lock_wait: expected a duration"
    for run, current in ((project.alembic, "current"), (project.safety, "status")):
        # Next to the ini.
        said = run("-c", "deploy/alembic.ini", current, expect=None)
        assert wrong in said.stdout + said.stderr
        run("-c", "deploy/alembic.ini", "-c", own.name, current)
        run("-c", "deploy/alembic.ini", "-c", str(own), current)


def test_raiseerr_shows_the_traceback(project: StockProject) -> None:
    ini = project.read("alembic.ini")
    project.write("alembic.ini", re.sub(r"(?m)^(sqlalchemy.url =).*", r"\1 mysql://", ini))
    assert "Traceback" not in project.safety("status", expect=1).stderr
    assert "Traceback" in project.safety("--raiseerr", "status", expect=1).stderr


def on_a_terminal(project: StockProject, *arguments: str, **environment: str) -> str:
    keyboard, screen = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "alembic_safety", *arguments],
        cwd=project.path,
        env={**project.environment, **environment},
        stdin=screen,
        stdout=screen,
        stderr=screen,
    ):
        os.close(screen)
        output = b""
        try:
            while block := os.read(keyboard, 4096):
                output += block
        except OSError:  # the end, on Linux
            pass
    os.close(keyboard)
    return output.decode()


def test_colors_are_for_terminals(project: StockProject) -> None:
    assert "\x1b[" in on_a_terminal(project, "status")
    assert "\x1b[" in on_a_terminal(project, "check")
    assert "\x1b[" not in on_a_terminal(project, "status", NO_COLOR="1")
    assert "\x1b[" not in on_a_terminal(project, "check", NO_COLOR="1")
    assert "\x1b[" not in project.safety("status").stdout


def test_a_shell_can_complete_commands(project: StockProject) -> None:
    project.environment["_ALEMBIC_SAFETY_COMPLETE"] = "bash_source"
    assert "complete -o nosort" in project.safety().stdout
    project.environment |= {
        "_ALEMBIC_SAFETY_COMPLETE": "bash_complete",
        "COMP_WORDS": "alembic-safety ba",
        "COMP_CWORD": "1",
    }
    assert project.safety().stdout.splitlines() == [
        "plain,backup", "plain,backup-path", "plain,backups",
    ]  # fmt: skip


def test_eject_leaves_a_project_that_needs_no_library(
    project: StockProject, database: psycopg.Connection[TupleRow]
) -> None:
    project.alembic("upgrade", "head")
    batches = 'op.execute("SELECT 1")\n    from alembic_safety import in_batches'
    project.revise("b2", "a1", batches, "pass")
    env = project.read("migrations/env.py")
    said = project.safety("eject", "--dry-run").stdout
    assert "+    asyncio.run(run_async_migrations())" in said
    assert "  migrations/versions/b2_test.py:11" in said
    assert (
        project.run(sys.executable, "-m", "alembic_safety", "eject", stdin="n\n", expect=1).stderr
        == "nothing was changed\n"
    )
    assert project.safety("eject", expect=1).stderr.endswith("Nothing was changed.\n")  # no answer
    assert project.read("migrations/env.py") == env

    project.revise("b2", "a1", 'op.execute("CREATE TABLE b ()")', 'op.execute("DROP TABLE b")')
    assert "migrations/env.py is a stock env.py now." in project.safety("eject", "--yes").stdout
    del project.environment["PYTHONPATH"]  # where the library is
    project.environment["PYTHONPATH"] = str(project.path)
    project.alembic("upgrade", "head")
    assert "b2 (head)" in project.alembic("current").stdout
    project.alembic("revision", "--autogenerate", "-m", "Orders", "--rev-id=c3")
    written = project.revisions()[-1].read_text(encoding="utf-8")
    assert "op.create_table('orders'" in written
    assert "alembic_" not in written
    project.alembic("downgrade", "base")
    assert "CREATE TABLE b ()" in project.alembic("upgrade", "head", "--sql").stdout
    assert database.execute("SELECT to_regclass('b')").fetchone() == (None,)


def test_long_work_shows_its_progress(project: StockProject) -> None:
    assert "backing up the database" in project.safety("backup").stderr
    env = project.read("migrations/env.py")
    project.write("migrations/env.py", re.sub(r".*fileConfig\(.*\n", "        pass\n", env))
    assert "backing up the database" in project.safety("backup").stderr
    assert "Rehearsing the revisions" in on_a_terminal(project, "plan")
