"""migrations/env.py: short, reads what a command needs, and says what is wrong in one line."""

from textwrap import dedent

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.conftest import Render
from tests.support import ROOT, Project

MOST_LINES = 45


def require_one_line(project: Project, *command: str, says: str, **environment: str) -> None:
    """Require that a command fails, and prints nothing but one line that begins with `says`."""
    done = project.run(*command, expect=1, env=environment)
    [line] = (done.stdout + done.stderr).splitlines()
    assert line.startswith(says), line


def test_env_py_fits_on_a_screen() -> None:
    text = (ROOT / "template" / "migrations" / "env.py").read_text(encoding="utf-8")
    assert "import tomllib\n" in text
    assert "def load_alembic_config()" in text
    assert len(text.splitlines()) <= MOST_LINES


def test_sql_needs_neither_settings_nor_a_server(render: Render) -> None:
    project = render()
    for environment in ({"DATABASE_URL": "nonsense", "LOG_LEVEL": "LOUD"}, {}):
        done = project.alembic("upgrade", "head", "--sql", env=environment)
        assert "CREATE TABLE users" in done.stdout
    assert not (project.path / ".postgres").exists()


@pytest.mark.parametrize("model", ["def :\n", "import nowhere\n"])
def test_only_commands_that_compare_import_the_models(project: Project, model: str) -> None:
    project.write("src/apps/orders/models.py", model)
    project.alembic("upgrade", "head")
    assert "(head)" in project.alembic("current").stdout
    says = "FAILED: src/apps/orders/models.py:1: "
    before = project.revisions()
    for command in (["check"], ["revision", "--autogenerate", "--message=Orders"]):
        require_one_line(project, "uv", "run", "alembic", *command, says=says)
    assert project.revisions() == before


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"DATABASE_URL": "nonsense"}, "DATABASE_URL: is not a URL; expected "),
        ({"LOG_LEVEL": "LOUD"}, "LOG_LEVEL: "),
        ({"MIGRATION_LOCK_TIMEOUT": "soon"}, "MIGRATION_LOCK_TIMEOUT: expected a duration "),
    ],
)
def test_a_wrong_setting_is_one_line(
    project: Project, environment: dict[str, str], says: str
) -> None:
    for command in (["upgrade", "head"], ["current"]):
        require_one_line(
            project, "uv", "run", "alembic", *command, says=f"FAILED: {says}", **environment
        )
    require_one_line(project, "uv", "run", "alembic-safety", "status", says=says, **environment)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("file_template =", "file_tempalte =", "[tool.alembic]: file_tempalte: unknown key; did"),
        (
            'lock_timeout = "2s"',
            "lock_timeout = 2",
            "[tool.alembic]: safety.lock_timeout: expected",
        ),
        ('metadata = "core', 'metadat = "core', "[tool.alembic]: safety.metadat: unknown key; did"),
    ],
)
def test_a_wrong_key_is_one_line(project: Project, old: str, new: str, says: str) -> None:
    text = project.read("pyproject.toml")
    assert text.count(old) == 1
    says = f"{project.write('pyproject.toml', text.replace(old, new))}: {says}"
    for command in (["upgrade", "head"], ["upgrade", "head", "--sql"]):
        require_one_line(project, "uv", "run", "alembic", *command, says=f"FAILED: {says}")
    require_one_line(project, "uv", "run", "alembic-safety", "status", says=says)


def test_wrong_toml_is_said_with_its_file_and_line(project: Project) -> None:
    file = project.write("pyproject.toml", "= 1\n" + project.read("pyproject.toml"))
    # uv reads the file first, and so does plain Alembic, whose message is a traceback.
    said = project.alembic("current", expect=2).stderr
    assert "error: Failed to parse: pyproject.toml" in said
    assert "at line 1, column 1" in said
    assert "Traceback" not in said
    program = f"{project.environment['UV_PROJECT_ENVIRONMENT']}/bin/alembic-safety"
    says = f"{file}: not valid TOML: Invalid statement (at line 1, column 1)"
    require_one_line(project, program, "status", says=says)


def test_a_program_upgrades_inside_a_running_loop(
    project: Project, database: psycopg.Connection[TupleRow]
) -> None:
    program = dedent("""
        import asyncio
        from alembic import command
        from alembic.config import Config

        async def main():
            command.upgrade(Config(toml_file="pyproject.toml"), "head")

        asyncio.run(main())
    """)
    project.python(program)
    assert database.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)


@pytest.mark.parametrize(
    "private", ["ScriptDirectory._version_locations", "Script._all_down_revisions"]
)
@pytest.mark.parametrize("program", ["alembic.config", "alembic_safety.cli"])
def test_a_private_part_that_this_alembic_does_not_have_is_named(
    project: Project, private: str, program: str
) -> None:
    owner, _, name = private.partition(".")
    code = dedent(f"""
        import sys
        from alembic.script import {owner}
        owner = next(kind for kind in {owner}.__mro__ if {name!r} in vars(kind))
        delattr(owner, {name!r})
        from {program} import main
        sys.exit(main(["{"current" if program == "alembic.config" else "status"}"]))
    """)
    done = project.python(code, expect=1)
    [line] = done.stderr.splitlines()
    assert f" has no {private}, which alembic-safety uses; install a version that is known" in line
    assert "(1.18.5 to " in line
