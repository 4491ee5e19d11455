"""What Alembic's commands say when something is wrong, and that nothing of it stays."""

from pathlib import Path

import pytest
from alembic import command
from alembic.util import CommandError
from tests.inside.support import Project

from alembic_safety.config import make_config
from core import apps
from core.config import get_settings
from core.project import ROOT


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("raise ValueError('no such thing')", "ValueError: no such thing"),
        ("op.execute('SELECT nothing')", 'column "nothing" does not exist'),
        (
            "op.execute(\"SELECT 'abc'::int\")",
            'invalid input syntax for type integer: "abc"',
        ),
    ],
)
def test_a_revision_that_raises_is_named_and_leaves_nothing(
    project: Project, statement: str, says: str
) -> None:
    project.write("a1")
    project.write("b2", "a1", statement)
    message = project.refused("upgrade", "head")
    assert "b2.py:12, in upgrade" in message
    assert says in message
    assert project.tables() == {"t_a1"}


@pytest.mark.parametrize("text", ["def :", "import nowhere", "1 / 0"])
def test_a_revision_that_does_not_import_is_named(project: Project, text: str) -> None:
    project.write("a1", module=text)
    assert "a1.py:7: " in project.refused("upgrade", "head")


def test_two_heads_are_refused_with_the_way_out(project: Project) -> None:
    project.write("a1")
    project.write("b2", "a1")
    project.write("c3", "a1")
    assert "alembic merge heads" in project.refused("upgrade", "head")
    assert project.tables() == set()


def test_a_database_ahead_of_the_code_is_said(project: Project) -> None:
    project.write("a1")
    project.write("b2", "a1")
    project.run("upgrade", "head")
    (project.folder / "b2.py").unlink()
    for name, argument in (("upgrade", "head"), ("downgrade", "-1")):
        message = project.refused(name, argument)
        assert "no revision 'b2' in this code" in message
    assert project.tables() == {"t_a1", "t_b2"}


def test_a_parent_that_does_not_exist_is_named(project: Project) -> None:
    project.write("a1", "deadbeef")
    assert "a revision follows 'deadbeef', which does not exist" in project.refused(
        "upgrade", "head"
    )


def test_a_step_down_from_a_merge_asks_where_to(project: Project) -> None:
    project.write("a1")
    project.write("b2", "a1")
    project.write("c3", "a1")
    (project.folder / "d4.py").write_text(
        "revision = 'd4'\ndown_revision = ('b2', 'c3')\n\n\n"
        "def upgrade():\n    pass\n\n\ndef downgrade():\n    pass\n",
        encoding="utf-8",
    )
    project.run("upgrade", "head")
    assert "name the revision to go to" in project.refused("downgrade", "-1")


def test_more_steps_down_than_there_are_is_said(project: Project) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    assert "not so many revisions" in project.refused("downgrade", "-2")


def test_models_are_not_compared_with_a_database_behind(project: Project) -> None:
    project.write("a1")
    config = make_config(ROOT)
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", str(project.folder))
    with pytest.raises(CommandError, match="run `alembic upgrade head` first"):
        command.revision(config, autogenerate=True)


def test_a_lock_that_is_held_does_not_hold_all_others(project: Project) -> None:
    project.write("a1")
    project.run("upgrade", "head")
    project.write("b2", "a1", "op.add_column('t_a1', sa.Column('name', sa.Text))")
    with project.connection.transaction():
        project.connection.execute("SELECT FROM t_a1")
        message = project.refused("upgrade", "head", lock_timeout="50ms", lock_retries=0)
    assert "a table was locked by another session" in message
    assert project.tables() == {"t_a1"}


def test_a_wrong_option_is_said(project: Project) -> None:
    message = project.refused("upgrade", "head", lock_timeout="soon")
    assert message.startswith("attributes['lock_timeout']: expected a duration")


def test_a_server_that_is_away_is_said_without_the_password(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:secret@127.0.0.1:1/app")
    get_settings.cache_clear()
    message = project.refused("upgrade", "head")
    assert message.startswith("can't connect to postgresql://u@127.0.0.1:1/app: ")
    assert "secret" not in message


@pytest.fixture
def apps_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for apps of the test's own, beside the real ones."""
    folder = tmp_path_factory.mktemp("root") / "src" / "apps"
    folder.mkdir(parents=True)
    monkeypatch.setattr(apps, "ROOT", folder.parents[1])
    monkeypatch.setattr(apps, "APPS", folder)
    import apps as package  # noqa: PLC0415

    monkeypatch.setattr(package, "__path__", [str(folder)])
    return folder


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("broken_a/models.py", "x = 1\nimport nowhere\n", "broken_a/models.py:2: ModuleNotFoundError"),
        ("broken_b/models.py", "def :\n", "broken_b/models.py:1: SyntaxError"),
        ("broken_c/models/order.py", "1 / 0\n", "broken_c/models/order.py:1: ZeroDivisionError"),
        ("not-a-name/models.py", "", "not-a-name/models.py: 'not-a-name' can't be imported"),
    ],
)  # fmt: skip
def test_models_that_fail_to_import_stop_with_their_path(
    project: Project, apps_folder: Path, file: str, text: str, says: str
) -> None:
    path = apps_folder / file
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    message = project.refused("check")
    assert message.startswith(f"src/apps/{says}")


def test_models_are_found_without_a_list(apps_folder: Path) -> None:
    for file in ("one/models.py", "two/models/__init__.py", "two/models/deep.py"):
        path = apps_folder / f"found_{file}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
    names = [module.__name__ for module in apps.import_app_modules("models")]
    assert names == ["apps.found_one.models", "apps.found_two.models", "apps.found_two.models.deep"]


def test_a_lost_connection_is_said_with_what_stays(project: Project) -> None:
    project.write("a1")
    ended = "op.execute('SELECT pg_terminate_backend(pg_backend_pid())')"
    project.write("b2", "a1", ended)
    message = project.refused("upgrade", "head")
    assert "b2.py:" in message
    assert "the connection was lost: completed revisions stay applied" in message
    assert project.tables() == {"t_a1"}


def test_a_statement_that_runs_too_long_is_said_with_what_to_do(project: Project) -> None:
    project.write("a1", None, "op.execute('SELECT pg_sleep(5)')")
    message = project.refused("upgrade", "head", statement_timeout="100ms")
    assert "canceling statement due to statement timeout" in message
    assert "statement_timeout, raise it in the revision" in message
