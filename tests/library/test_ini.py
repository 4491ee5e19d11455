"""Conversions from alembic.ini to `[tool.alembic]` and back, on files as public projects have them."""

import os
import shutil
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import alembic
import pytest
from tests.conftest import Render
from tests.forks import Forks
from tests.library.ini_corpus import CASES, FILE_CONFIG, LOGGING, MALFORMED, Case, env
from tests.support import ROOT
from tests.support import Project as Runner

from alembic_safety.cancellation import Interrupted
from alembic_safety.cli import main
from alembic_safety.ini import trial
from alembic_safety.ini.ini_text import ini_text

TEMPLATES = Path(alembic.__file__).parent / "templates"
REVISION = '''"""{message}"""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = {down}
branch_labels = None
depends_on = None


def upgrade({parameter}):
    op.create_table("{revision}", sa.Column("id", sa.Integer, primary_key=True))
    op.execute("INSERT INTO {revision} VALUES (1)")


def downgrade({parameter}):
    op.drop_table("{revision}")
'''


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as forks:
        yield forks


@pytest.fixture
def fast(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run Alembic in forked processes, which start faster than new ones."""

    def run(
        python: str, code: str, arguments: Sequence[str], folder: Path, variables: Mapping[str, str]
    ) -> trial.Result:
        return trial.Result(*forks.run(code, arguments, folder, variables))

    monkeypatch.setattr(trial, "run_python", run)


def make_project(root: Path, case: Case) -> Path:
    """Write a case's project and return its folder."""
    root.mkdir(parents=True)
    text = case.ini if case.ini.startswith("[") else f"[alembic]\n{case.ini}"
    newline = "\r\n" if "\r\n" in text else "\n"
    logging = LOGGING.replace("\n", newline) if case.logging else ""
    (root / "alembic.ini").write_bytes((text + logging).encode())
    location = root / case.location
    location.mkdir(parents=True)
    stock = TEMPLATES / (case.env if case.env.isidentifier() else "generic")
    shutil.copy(stock / "script.py.mako", location)
    env = (stock / "env.py").read_text("utf-8") if case.env.isidentifier() else case.env
    (location / "env.py").write_bytes(env.encode())
    folders = [root / folder for folder in case.versions or [f"{case.location}/versions"]]
    down = None
    for number in range(3):
        folder = folders[number % len(folders)]
        folder.mkdir(parents=True, exist_ok=True)
        revision = f"r{number + 1}"
        parameter = "engine_name" if case.env == "multidb" else ""
        (folder / f"{revision}.py").write_text(
            REVISION.format(
                message=f"Make {revision}", revision=revision, down=repr(down), parameter=parameter
            )
        )
        down = revision
    for name, content in case.files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode())
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Return every file of a project."""
    files = [path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def run(*arguments: str) -> int:
    return main(["ini", arguments[0], "--python", sys.executable, *arguments[1:]])


def table(root: Path) -> dict[str, object]:
    found = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["alembic"]
    assert isinstance(found, dict)
    return found


Project = Callable[[Case], Path]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Write a case's project and change to its folder."""

    def write(case: Case) -> Path:
        root = make_project(tmp_path / "project", case)
        monkeypatch.chdir(root)
        monkeypatch.delenv("DATABASE_URL", raising=False)
        return root

    return write


def test_the_corpus_is_large_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert len(CASES) >= 60


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_ini_is_imported_exported_and_imported_again(
    case: Case,
    project: Project,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = project(case)
    before = contents(root)

    assert run("import", *case.arguments) == 0, capsys.readouterr()
    printed = capsys.readouterr().out
    after = contents(root)
    assert after.pop("alembic.ini.bak") == before["alembic.ini"]
    assert "alembic.ini" not in after
    imported = table(root)
    assert {key: imported[key] for key in imported if key != "logging"} == case.table
    for words in case.says:
        assert words in printed
    newline = b"\r\n" if "\r\n" in case.env else b"\n"
    assert after[f"{case.location}/env.py"].count(b"\n") == after[f"{case.location}/env.py"].count(
        newline
    )
    for secret in case.never:
        assert secret not in printed
        assert not [
            name for name, text in after.items() if secret.encode() in text and name not in before
        ]
        assert secret.encode() not in after["pyproject.toml"]
    # The other lines of pyproject.toml are unchanged.
    kept = [line for line in before.get("pyproject.toml", b"").splitlines() if b"=" not in line]
    if "pyproject-hooks" not in case.name:
        assert set(kept) <= set(after["pyproject.toml"].splitlines())

    # The export leaves env.py alone and the URL in the environment.
    assert run("export") == 0, capsys.readouterr()
    exported = contents(root)
    assert exported[f"{case.location}/env.py"] == after[f"{case.location}/env.py"]
    assert case.never[0].encode() not in exported["alembic.ini"]
    # A second import changes those two files only.
    assert run("import") == 0, capsys.readouterr()
    again = contents(root)
    assert table(root) == imported
    assert again[f"{case.location}/env.py"] == after[f"{case.location}/env.py"]
    assert ini_text(imported, "pyproject.toml").encode() == exported["alembic.ini"]


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    ("text", "says"), [pytest.param(*rest, id=name) for name, *rest in MALFORMED]
)
def test_a_malformed_ini_is_refused_by_file_and_line(
    text: str, says: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project(Case("malformed", text or "[", {}, logging=False))
    (root / "alembic.ini").write_text(text, "utf-8")
    before = contents(root)
    assert run("import") == 1
    shown = capsys.readouterr()
    assert says in shown.err
    assert shown.err.endswith("\nNothing was changed.\n")
    assert len(shown.err.splitlines()) == 2
    assert "s3cret" not in shown.err
    assert contents(root) == before


GENERIC = CASES[0]


@pytest.mark.usefixtures("fast")
def test_a_dry_run_shows_the_diff_and_changes_nothing(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project(GENERIC)
    before = contents(root)
    assert run("import", "--dry-run") == 0
    shown = capsys.readouterr().out
    for line in (
        "+++ b/pyproject.toml",
        "+[tool.alembic]",
        "+++ b/migrations/env.py",
        "+import os",
    ):
        assert line in shown.splitlines()
    assert shown.endswith("Nothing was changed: --dry-run.\n")
    assert contents(root) == before


@pytest.mark.usefixtures("fast")
def test_a_change_after_which_env_py_fails_is_refused(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    # This env.py reads the file itself, which only running it shows.
    head = f'{FILE_CONFIG}prefix = open("alembic.ini").read().partition("# ")[2][:4]\n'
    url = '"postgresql://a@b/c" if prefix else ""'
    root = project(Case("own-reader", f"# mine\n{GENERIC.ini}", {}, env=env(head, url=url)))
    before = contents(root)
    assert run("import") == 1
    error = capsys.readouterr().err
    assert "alembic upgrade base:heads --sql gives a different result after the change" in error
    assert "No such file or directory: 'alembic.ini'" in error
    assert contents(root) == before


@pytest.mark.usefixtures("fast")
def test_a_change_after_which_the_sql_differs_is_refused(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    head = f'{FILE_CONFIG}url = "sqlite://" if os.path.exists("alembic.ini") else "mysql://"\n'
    root = project(Case("other-dialect", GENERIC.ini, {}, env=env(head, url="url")))
    before = contents(root)
    assert run("import") == 1
    error = capsys.readouterr().err
    assert "-    id INTEGER NOT NULL," in error
    assert "+    id INTEGER NOT NULL AUTO_INCREMENT," in error
    assert contents(root) == before


@pytest.mark.usefixtures("fast")
def test_sql_that_differs_in_each_run_is_compared_without_numbers(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project(GENERIC)
    file = root / "migrations" / "versions" / "r3.py"
    file.write_text(
        file.read_text()
        .replace('VALUES (1)"', 'VALUES {[str(uuid.uuid4()) for _ in range(50)]}"')
        .replace('op.execute("', 'import uuid\n    op.execute(f"')
    )
    assert run("import") == 0, capsys.readouterr()
    assert "prints other numbers in each run; numbers were not compared" in capsys.readouterr().out


@pytest.mark.usefixtures("fast")
def test_files_are_restored_when_writing_is_interrupted(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = project(GENERIC)
    before = contents(root)
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.is_relative_to(root):
            raise Interrupted(signal.SIGINT)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    assert run("import") == 130
    assert contents(root) == before


@pytest.mark.usefixtures("fast")
def test_a_broken_project_is_refused(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    root = project(GENERIC)
    (root / "migrations" / "versions" / "r2.py").unlink()
    before = contents(root)
    assert run("import") == 1
    assert "alembic heads fails before any change: KeyError: 'r2'" in capsys.readouterr().err
    assert contents(root) == before


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("pyproject.toml", "[project]\nname = x\n", "pyproject.toml:2: not valid TOML"),
        (
            "pyproject.toml",
            "tool.alembic.timezone = 'UTC'\n",
            "tool.alembic has no separate header",
        ),
        ("pyproject.toml", "[tool]\nalembic = {}\n", "tool.alembic has no separate header"),
        (
            "pyproject.toml",
            "[tool]\nalembic = 1\n",
            "pyproject.toml: tool.alembic: expected a table",
        ),
        ("migrations/env.py", "import os\nif:\n", "migrations/env.py:2: invalid syntax"),
        (
            "migrations/env.py",
            "from alembic import context\nif 1: fileConfig(context.config.config_file_name)\n",
            "migrations/env.py:2: fileConfig shares its line with other code; move the call to a separate line",
        ),
    ],
)
@pytest.mark.usefixtures("fast")
def test_other_unusable_files_are_refused_by_name(
    file: str,
    text: str,
    says: str,
    project: Project,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = project(GENERIC)
    (root / file).write_text(text)
    before = contents(root)
    assert run("import") == 1
    assert says in capsys.readouterr().err
    assert contents(root) == before


HOOK = '[[tool.alembic.post_write_hooks]]\nname = "{}"\ntype = "exec"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tool.alembic.safety]\na = 1\n", "[tool.alembic] has nothing to export"),
        ("[tool.x]\na = 1\n", "[tool.alembic] has nothing to export"),
        ("[tool.alembic]\nmine = ['a']\n", "[tool.alembic]: mine: an ini cannot hold a list"),
        ("[tool.alembic]\ntimezone = ' UTC'\n", "timezone: an ini cannot hold ' UTC'"),
        (HOOK.format("ruff") * 2, "the name 'ruff' must be unique"),
        (HOOK.format("Ruff"), "the name 'Ruff' must be unique, in lower case"),
    ],
)
@pytest.mark.usefixtures("fast")
def test_what_an_ini_cannot_hold_is_not_exported(
    text: str, says: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project(GENERIC)
    (root / "alembic.ini").unlink()
    (root / "pyproject.toml").write_text(text)
    before = contents(root)
    assert run("export") == 1
    assert says in capsys.readouterr().err
    assert contents(root) == before


@pytest.mark.usefixtures("fast")
def test_an_existing_ini_is_not_overwritten(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project(GENERIC)
    (root / "pyproject.toml").write_text("[tool.alembic]\ntimezone = 'UTC'\n")
    assert run("export") == 1
    assert "alembic.ini exists and has precedence over [tool.alembic]" in capsys.readouterr().err


def test_a_missing_and_an_old_alembic_are_refused(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = project(GENERIC)
    before = contents(root)
    assert main(["ini", "import", "--python", "no-such-python"]) == 1
    assert (
        "no Alembic found in no-such-python; name the project's Python" in capsys.readouterr().err
    )
    monkeypatch.setattr(trial, "run_python", lambda *_: trial.Result(0, "1.13.1\n", ""))
    assert run("import") == 1
    assert "has Alembic 1.13.1; [tool.alembic] requires 1.16.5 or later" in capsys.readouterr().err
    assert contents(root) == before


@pytest.mark.parametrize("run_from", ["the root", "its own folder"])
@pytest.mark.usefixtures("fast")
def test_paths_of_an_ini_below_pyproject_toml_are_kept(
    run_from: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    # A repository whose backend is one folder of several.
    prefix = "db/" if run_from == "the root" else ""
    text = f"script_location = {prefix}migrations\nprepend_sys_path = .\nsqlalchemy.url = sqlite:///%(here)s/a.db\n"
    text += "[post_write_hooks]\nhooks = a\na.type = exec\na.executable = %(here)s/run\n"
    root = project(Case("below", text, {}, location="db/migrations"))
    (root / "alembic.ini").rename(root / "db" / "alembic.ini")
    (root / "pyproject.toml").write_text("[project]\nname = 'x'\nversion = '1'\n")
    assert run("import", "db/alembic.ini") == 0, capsys.readouterr()
    own = run_from == "its own folder"
    assert table(root)["script_location"] == ("%(here)s/db/migrations" if own else "db/migrations")
    assert table(root)["prepend_sys_path"] == ["%(here)s/db" if own else "."]
    [hook] = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["alembic"][
        "post_write_hooks"
    ]
    assert hook["executable"] == "%(here)s/db/run"
    printed = capsys.readouterr().out
    assert f"set DATABASE_URL=sqlite:///{root}/db/a.db" in printed
    assert (f"run Alembic in {root} instead of {root}/db" in printed) == own


@pytest.mark.usefixtures("fast")
def test_revisions_next_to_the_project_are_found(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "script_location = migrations\npath_separator = newline\nversion_locations =\n  ../plugin\n  migrations/versions\n"
    root = project(Case("next-to-it", text, {}, versions=("migrations/versions", "../plugin")))
    (root.parent / ".git").mkdir()
    assert run("import") == 0, capsys.readouterr()
    assert table(root)["version_locations"] == ["../plugin", "migrations/versions"]


@pytest.mark.usefixtures("fast")
def test_other_files_that_name_the_ini_are_listed(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "tests/conftest.py": '\nconfig = Config("alembic.ini")\n',
        "run.sh": "alembic -c my-alembic.ini\n",
    }
    project(Case("mentions", GENERIC.ini, {}, files=files))
    assert run("import") == 0
    printed = capsys.readouterr().out
    assert "tests/conftest.py:2 still names alembic.ini" in printed
    assert "run.sh" not in printed


@pytest.mark.usefixtures("fast")
def test_engine_options_of_the_ini_reach_a_connection(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    # env.py adds the URL to the ini's section, which has an option for the engine.
    head = f"{FILE_CONFIG}section = config.get_section(config.config_ini_section)\n"
    head += 'section["sqlalchemy.url"] = "sqlite:///app.db"\n'
    text = "script_location = migrations\nsqlalchemy.echo = true\n"
    engine = 'engine_from_config(section, prefix="sqlalchemy.")'
    root = project(Case("section", text, {}, env=env(head, url='"sqlite://"', engine=engine)))
    assert run("import") == 0, capsys.readouterr()
    result = trial.run_python(
        sys.executable,
        "from alembic.config import main; main()",
        ["upgrade", "head"],
        root,
        os.environ,
    )
    assert result.code == 0, result
    assert (root / "app.db").exists()
    assert "CREATE TABLE r1" in result.out + result.error


@pytest.mark.parametrize("kind", ["generic", "async", "multidb", "pyproject"])
def test_projects_of_alembic_init_work_after_an_import(kind: str, tmp_path: Path) -> None:
    root = Runner(tmp_path)
    root.environment["DATABASE_URL"] = "sqlite:///app.db"
    root.environment |= {f"ENGINE{n}_DATABASE_URL": f"sqlite:///{n}.db" for n in (1, 2)}
    python = [sys.executable, "-m", "alembic"]
    root.run(*python, "init", "-t", kind, "migrations")
    text = root.read("alembic.ini").replace(
        "driver://user:pass@localhost/dbname2", "sqlite:///2.db"
    )
    text = text.replace("driver://user:pass@localhost/dbname", "sqlite:///1.db")
    hook = "hooks = copy\ncopy.type = exec\ncopy.executable = cp\ncopy.options = REVISION_SCRIPT_FILENAME copied.py\n"
    root.write("alembic.ini", text.replace("[post_write_hooks]\n", f"[post_write_hooks]\n{hook}"))
    root.run(*python, "revision", "-m", "One")
    before = root.run(*python, "upgrade", "head", expect=None)
    shutil.rmtree(root.path / "copied.py", ignore_errors=True)
    for database in root.path.glob("*.db"):
        database.unlink()

    root.environment["PYTHONPATH"] = str(ROOT / "template" / "packages" / "alembic-safety" / "src")
    done = root.run(sys.executable, "-m", "alembic_safety", "ini", "import")
    del root.environment["PYTHONPATH"]
    assert "alembic.ini becomes alembic.ini.bak" in done.stdout
    assert not (root.path / "alembic.ini").exists()
    after = root.run(*python, "upgrade", "head", expect=None)
    # sqlite3 is not an async driver: the upgrade fails with the same error as before.
    assert after.returncode == before.returncode == ("async" in kind)
    assert after.stderr.splitlines()[-1] == before.stderr.splitlines()[-1]
    assert ("INFO  [alembic.runtime.migration] Running upgrade  -> " in after.stderr) == (
        "async" not in kind
    )
    (root.path / "copied.py").unlink(missing_ok=True)
    root.run(*python, "revision", "-m", "Two")
    assert (root.path / "copied.py").exists() == (not kind.startswith("pyproject"))
    if kind == "generic":
        # The URL that a program sets has precedence, so that tests migrate their own database.
        code = (
            "from alembic import command\nfrom alembic.config import Config\n"
            'config = Config(toml_file="pyproject.toml")\n'
            'config.set_main_option("sqlalchemy.url", "sqlite:///other.db")\n'
            'command.upgrade(config, "head")'
        )
        (root.path / "app.db").unlink()
        root.run(sys.executable, "-c", code)
        assert (root.path / "other.db").exists()
        assert not (root.path / "app.db").exists()
        unset = root.run(*python, "upgrade", "head", expect=1, env={"DATABASE_URL": ""})
        assert "Could not parse SQLAlchemy URL" in unset.stderr


def test_an_empty_section_for_hooks_removes_a_rendered_project_s_hooks(render: Render) -> None:
    project = render()
    before = tomllib.loads(project.read("pyproject.toml"))["tool"]["alembic"]
    ini = "[alembic]\nscript_location = %(here)s/migrations\nprepend_sys_path = src\n[post_write_hooks]\n"
    project.write("alembic.ini", ini)
    done = project.make("alembic-import")
    assert "alembic.ini:4: the section has no hooks" in done.stdout + done.stderr
    after = tomllib.loads(project.read("pyproject.toml"))["tool"]["alembic"]
    assert ("post_write_hooks" in before, "post_write_hooks" in after) == (True, False)
    assert after["safety"] == before["safety"]
    assert not (project.path / "alembic.ini").exists()
    assert "3f1c9b7d5a20 (head)" in project.alembic("heads").stdout
