"""Answers, and the files that come of them."""

import ast
import itertools
import json
import re
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.support import ROOT, Project, copy

ALWAYS = {
    ".copier-answers.yml",
    ".env.example",
    ".gitignore",
    "Makefile",
    "README.md",
    "docs/monitoring.md",
    "deploy/deploy.mk",
    "deploy/hooks.sh",
    "docs/development.md",
    "docs/updating.md",
    "docs/template-changes.md",
    "migrations/env.py",
    "migrations/script.py.mako",
    "pyproject.toml",
    "src/main.py",
    "src/core/config.py",
    "tests/conftest.py",
}
OPTIONAL: dict[str, tuple[dict[str, object], set[str]]] = {
    "example": (
        {"example_app": True},
        {
            "src/apps/users/models.py",
            "tests/apps/users/test_users.py",
            "migrations/versions/20260101_0000_3f1c9b7d5a20_create_users.py",
        },
    ),
    "github": (
        {"ci": "github"},
        {f".github/workflows/{name}.yml" for name in ("ci", "deploy", "rollback", "template")},
    ),
    "gitlab": ({"ci": "gitlab"}, {".gitlab-ci.yml", ".gitlab/note.py"}),
    "containers": (
        {"container_files": True},
        {"Dockerfile", ".dockerignore", "compose.yaml", "docs/kubernetes.md"},
    ),
    "monitoring": (
        {"monitoring": True},
        {f"deploy/monitoring/{name}" for name in ("README.md", "alerts.yml", "dashboard.json")},
    ),
}


def parse_all(project: Path) -> None:
    """Parse every file of the project by its kind."""
    for path in project.rglob("*"):
        if path.suffix == ".py":
            ast.parse(path.read_text(encoding="utf-8"), str(path))
        elif path.suffix == ".toml":
            tomllib.loads(path.read_text(encoding="utf-8"))
        elif path.suffix in {".yml", ".yaml"}:
            yaml.safe_load(path.read_text(encoding="utf-8"))
    listed = subprocess.run(
        ["make", "--dry-run", "help"], cwd=project, capture_output=True, text=True, check=False
    )
    assert listed.returncode == 0, listed.stderr


QUESTIONS = ("example_app", "ci", "container_files", "monitoring")


@pytest.mark.parametrize(
    "answers",
    [
        *itertools.product([True, False], ["github", "gitlab", "none"], [True, False], [True]),
        (True, "github", True, False),
        (True, "gitlab", False, False),
        (False, "none", False, False),
    ],
)
def test_each_answer_brings_its_files_and_no_others(
    template: Path, tmp_path: Path, answers: tuple[object, ...]
) -> None:
    answered = dict(zip(QUESTIONS, answers, strict=True))
    project = Project(copy(template, tmp_path / "project", answered))
    files = project.files()
    assert files >= ALWAYS
    for wanted, paths in OPTIONAL.values():
        chosen = all(answered[name] == value for name, value in wanted.items())
        assert (paths <= files) if chosen else not (paths & files)
    parse_all(project.path)


@pytest.mark.parametrize("version", ["14", "15", "16", "17", "18"])
def test_the_versions_reach_the_image_and_ci(template: Path, tmp_path: Path, version: str) -> None:
    answers = {"postgres_version": version, "python_version": "3.12", "ci": "gitlab"}
    project = Project(copy(template, tmp_path / "project", answers))
    compose = yaml.safe_load(project.read("compose.yaml"))
    assert compose["services"]["database"]["image"] == f"postgres:{version}"
    gitlab = yaml.safe_load(project.read(".gitlab-ci.yml"))
    assert gitlab[".postgres"]["services"][0]["name"] == f"postgres:{version}"
    assert gitlab["default"]["image"] == "python:3.12"
    assert gitlab["variables"]["UV_PYTHON"] == "3.12"
    assert "\nARG PYTHON_IMAGE=python:3.12-slim\n" in project.read("Dockerfile")
    assert f"install -y --no-install-recommends postgresql-client-{version} " in project.read(
        "Dockerfile"
    )
    assert project.make("-s", "versions").stdout.split() == ["python=3.12", f"postgres={version}"]


def test_nothing_of_the_template_leaks(template: Path, tmp_path: Path) -> None:
    project = Project(copy(template, tmp_path / "project", {}))
    own = {path.name for path in ROOT.iterdir()} - {path.name for path in project.path.iterdir()}
    assert {"copier.yml", "template", "CHANGELOG.md", "scripts"} <= own
    for name in project.files():
        text = project.read(name)
        assert not name.endswith(".jinja")
        assert "{%" not in text or name == "migrations/script.py.mako"
        assert "copier.yml" not in text
        for path in (str(ROOT), str(template)):
            assert path not in text or name == ".copier-answers.yml"


def test_at_most_nine_questions_each_with_help_and_a_check(template: Path) -> None:
    text = (template / "copier.yml").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 140
    document = yaml.safe_load(text)
    questions = {name: value for name, value in document.items() if not name.startswith("_")}
    # Only a project of release 1 is asked the one with a condition.
    assert [name for name, value in questions.items() if "when" in value] == ["keep_name"]
    assert len(questions) - 1 <= 9
    for question in questions.values():
        assert question["help"]
        assert "validator" in question or "choices" in question or question["type"] == "bool"
    assert not {"_tasks", "_migrations", "_jinja_extensions"} & set(document)
    assert document["_min_copier_version"]
    assert document["_envops"]["undefined"] == "jinja2.StrictUndefined"


def test_the_list_of_changes_is_text_to_jinja() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert not {"{{", "{%", "{#"} & set(re.findall(r"\{.", text))


def test_jinja_stands_in_no_python_file() -> None:
    for path in (ROOT / "template").rglob("*.py*"):
        if path.suffix in {".py", ".jinja"} and ".py" in path.suffixes:
            assert path.suffix == ".py", path


def test_after_copying_a_message_says_what_is_next(template: Path, tmp_path: Path) -> None:
    done = Project(tmp_path).run("copier", "copy", "--defaults", str(template), "newproj")
    for words in ("git init", "make dev", "make test"):
        assert words in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("question", "value", "allowed"),
    [
        ("project_name", "", "printable"),
        ("project_name", "x" * 61, "60"),
        ("project_name", "two\nlines", "no line breaks"),
        ("project_name", " x", "no space at either end"),
        ("project_name", "bell\a", "printable"),
        ("project_slug", "../../etc", "at most 40 of a-z"),
        ("project_slug", "a" * 41, "at most 40 of a-z"),
        ("project_slug", "1st", "at most 40 of a-z"),
        ("project_slug", "Upper", "at most 40 of a-z"),
        ("project_slug", "ends-", "at most 40 of a-z"),
        ("project_slug", "line\n", "at most 40 of a-z"),
        ("project_slug", "postgres", "choose another"),
        ("project_slug", "template1", "choose another"),
        ("description", "x\r\ny", "no line breaks"),
        ("python_version", "3.10", "3.11"),
        ("postgres_version", "13", "14"),
        ("ci", "jenkins", "github"),
    ],
)
def test_a_wrong_answer_is_refused_by_the_question_s_name(
    template: Path, tmp_path: Path, question: str, value: str, allowed: str
) -> None:
    done = Project(tmp_path).run(
        "copier", "copy", "--defaults", "--data", f"{question}={value}", str(template), "newproj",
        expect=None,
    )  # fmt: skip
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert question in done.stderr
    assert allowed in last or "Invalid choice" in last
    assert not (tmp_path / "newproj").exists()


HOSTILE = st.sampled_from(
    [
        '"', "'", "\\", "{{ 7 * 7 }}", "{% raw %}", "{# x #}", "$(touch pwned)", "`id`", "#", ": ", "- ",
        "${HOME}", "$$", "%(here)s", "%", "]", "[x]", "'''", '"""', "&a", "*a", "!x", "|", ">", "@", "~",
        "null", "true", "1e3", "0x1F", "2026-01-01", "😀", "👨\u200d👩\u200d👧", "שלום", "سلام", "日本",
        "\u00a0", "<b>", ";", "&&", "..", "/", "\n", "\t", "\x7f", "\u202e", "\ud7ff", "=", ",", "e\u0301",
    ]
)  # fmt: skip
TEXT = st.lists(st.one_of(HOSTILE, st.text(max_size=5)), max_size=8).map("".join)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(name=TEXT, description=TEXT)
@example(name="true", description="null")
@example(name="1e3", description="- x")
@example(name="'", description='"""')
@example(name="{{ 7 * 7 }}", description="{% raw %}")
@example(name="FastAPI", description="")
@example(name="日本語", description="👨\u200d👩\u200d👧")
def test_any_text_is_refused_or_carried_unchanged(
    template: Path, name: str, description: str
) -> None:
    """An answer is refused for a reason that the message gives, or it is in the files as it is."""

    def fits(text: str, longest: int) -> bool:
        joiners = str.maketrans("", "", "\u200c\u200d")
        return (
            text == text.strip() and len(text) <= longest and text.translate(joiners).isprintable()
        )

    accepted = name != "" and fits(name, 60) and fits(description, 200)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "project"
        answers = {"project_name": name, "description": description, "ci": "gitlab"}
        try:
            copy(template, target, answers)
        except ValueError as error:
            assert not accepted
            refused = str(error)
            assert "question 'project_name'" in refused or "question 'description'" in refused
            assert "printable characters" in refused
            assert not target.exists()
            return
        assert accepted
        parse_all(target)
        document = tomllib.loads((target / "pyproject.toml").read_text(encoding="utf-8"))
        assert document["tool"]["service"]["title"] == name
        assert document["project"]["description"] == description
        saved = yaml.safe_load((target / ".copier-answers.yml").read_text(encoding="utf-8"))
        assert (saved["project_name"], saved["description"]) == (name, description)
        readme = (target / "README.md").read_text(encoding="utf-8")
        assert readme.startswith(f"# {name}\n")
        assert description in readme
        assert not (target / "pwned").exists()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(slug=st.one_of(TEXT, st.text("abz09-", max_size=42)))
@example(slug="../../etc/passwd")
@example(slug="a/../b")
@example(slug="a\n")
def test_any_slug_is_refused_or_names_the_project(template: Path, slug: str) -> None:
    accepted = re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", slug) is not None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "project"
        if not accepted:
            with pytest.raises(ValueError, match=r"question 'project_slug'.*at most 40 of a-z"):
                copy(template, target, {"project_slug": slug})
            assert list(Path(folder).iterdir()) == []
            return
        copy(template, target, {"project_slug": slug})
        parse_all(target)
        assert read_name(target) == (f"{slug.removesuffix('-service')}-service", slug)


def test_the_table_of_lint_rules_is_the_same_here_and_there(template: Path, tmp_path: Path) -> None:
    rendered = tomllib.loads(
        (copy(template, tmp_path / "project", {}) / "pyproject.toml").read_text(encoding="utf-8")
    )
    own = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for key in ("select", "ignore"):
        assert own["tool"]["ruff"]["lint"][key] == rendered["tool"]["ruff"]["lint"][key]


def read_name(project: Path) -> tuple[str, str]:
    """Return the name of the distribution, and that of the image and the database."""
    document = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    return document["project"]["name"], document["tool"]["service"]["name"]


def test_no_package_that_a_project_installs_has_a_name_that_a_project_may_have(
    synced: dict[str, str],
) -> None:
    lock = Path(synced["UV_PROJECT_ENVIRONMENT"]).with_name("uv.lock")
    packages = tomllib.loads(lock.read_text(encoding="utf-8"))["package"]
    names = {package["name"] for package in packages}
    assert [name for name in names if name.endswith("-service")] == ["my-service"]


@pytest.mark.parametrize(
    "slug", ["alembic", "pydantic", "pytest", "opentelemetry-api", "alembic-safety", "core", "apps"]
)
def test_a_project_may_be_called_like_a_package_that_it_installs(
    template: Path, tmp_path: Path, slug: str
) -> None:
    project = Project(copy(template, tmp_path / "project", {"project_slug": slug}))
    assert read_name(project.path) == (f"{slug}-service", slug)
    assert f"\n      POSTGRES_DB: {slug}\n" in project.read("compose.yaml")
    if slug in {"alembic", "opentelemetry-api"}:
        project.run("uv", "lock", "--quiet")
        packages = tomllib.loads(project.read("uv.lock"))["package"]
        assert {slug, f"{slug}-service"} <= {package["name"] for package in packages}


@pytest.mark.parametrize("name", ["Postgres", "template1"])
def test_a_default_slug_is_never_the_name_of_a_database_of_postgresql(
    template: Path, tmp_path: Path, name: str
) -> None:
    project = copy(template, tmp_path / "project", {"project_name": name})
    assert read_name(project) == (f"{name.lower()}-service", f"{name.lower()}-service")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize("ci", ["github", "gitlab"])
def test_workflows_are_valid(template: Path, tmp_path: Path, ci: str) -> None:
    project = Project(copy(template, tmp_path / "project", {"ci": ci}))
    files = [str(path) for path in project.path.glob(".github/workflows/*")]
    schema = "vendor.github-workflows"
    if ci == "gitlab":
        files, schema = [".gitlab-ci.yml"], "vendor.gitlab-ci"
    project.run("check-jsonschema", "--builtin-schema", schema, *files)
    own = [str(path) for path in (ROOT / ".github" / "workflows").glob("*.yml")]
    project.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *own)


def test_compose_has_no_password_of_its_own(template: Path, tmp_path: Path) -> None:
    project = Project(copy(template, tmp_path / "project", {}))
    compose = yaml.safe_load(project.read("compose.yaml"))
    assert "${POSTGRES_PASSWORD:?" in json.dumps(compose)
    assert ":-" not in project.read("compose.yaml")
