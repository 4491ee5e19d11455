"""A project's Makefile and deploy/deploy.mk: their size, and options that nothing evaluates."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support import ROOT, Project, copy

TEMPLATE = ROOT / "template"


def read(path: str) -> str:
    return (TEMPLATE / path).read_text(encoding="utf-8")


def split_rules(text: str) -> dict[str, str]:
    """Return the rules by target, each with its prerequisites and recipe."""
    return dict(re.findall(r"^((?!\.PHONY)[.\w/-]+):(?!=)(.*\n(?:\t.*\n)*)", text, re.MULTILINE))


MAKEFILES = read("Makefile") + read("deploy/deploy.mk")
RULES = split_rules(MAKEFILES)
HEADER = re.sub(r"^#.*|^[.\w/-]+:(?!=).*\n(?:\t.*\n)*", "", MAKEFILES, flags=re.MULTILINE)
"""The makefiles without rules and comments."""
DEFINITIONS = dict(re.findall(r"^override (?:export )?(\w+) *:?= (.*)$", HEADER, re.MULTILINE))
del DEFINITIONS["OPTIONS"]


def find_names(text: str) -> set[str]:
    """Return the variables of make and of the shell that a text mentions."""
    text = re.sub(r"##.*", "", text)
    # `$(call x)` is a function of make and `$$(git x)` a command.
    mentioned = re.findall(r"\$\$?(?:[({](?!\w+ ))?([A-Za-z_]\w*)", text)
    return {*mentioned, *re.findall(r"\b[A-Z][A-Z_]+\b", text)}


def find_names_of_rule(rule: str) -> set[str]:
    """Return the variables that a rule mentions: itself, by another variable, or in a script.

    One that a script sets before it reads it is none that anybody else could set.
    """
    scripts = "".join(read(script) for script in re.findall(r"deploy/[\w-]+\.sh", rule))
    names = find_names(rule) | set(re.findall(r"\$\{?([A-Za-z_]\w*)", scripts))
    names -= {
        name
        for name in re.findall(r"^(\w+)=", scripts, re.MULTILINE)
        if not re.search(rf"\$\{{?{name}\b", scripts.partition(f"\n{name}=")[0])
    }
    while more := find_names("".join(DEFINITIONS.get(name, "") for name in names)) - names:
        names |= more
    return names


PAYLOADS = (
    "$(shell touch {})",
    "$$(touch {})",
    "`touch {}`",
    ";touch {}",
    "' ; touch {} '",
    '"; touch {} "',
    "x\ntouch {}\n",
    "$(eval $(shell touch {}))",
    "${{shell touch {}}}",
    "| touch {}",
    "&& touch {}",
)
NAIVE = "override VALUE ?=\nall:\n\t@echo $(VALUE)\n\t@echo '$(VALUE)'\n\t@echo \"$(VALUE)\"\n"


def test_the_makefile_fits_on_two_screens() -> None:
    text = read("Makefile")
    assert len(text.splitlines()) <= 110
    assert len(re.findall(r"^[a-z-]+:.*## ", text, re.MULTILINE)) <= 24


def test_every_option_is_read_and_every_target_is_phony() -> None:
    options = re.search(r"^override OPTIONS := ((?:.*\\\n)*.*)$", MAKEFILES, re.MULTILINE)
    assert options is not None
    names = {name for rule in RULES.values() for name in find_names_of_rule(rule)}
    assert {*options[1].replace("\\", "").split()} <= names
    phony = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)$", MAKEFILES, re.MULTILINE)
    assert {*" ".join(phony).replace("\\", "").split()} == set(RULES) - {".uv/bin/uv"}


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A committed project. The programs that recipes run print their arguments and end."""
    folder = tmp_path_factory.mktemp("makefile")
    project = Project(copy(template, folder / "project", {}))
    for name in ("uv", "docker"):
        program = project.write(f"../programs/{name}", "#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
        program.chmod(0o755)
    project.environment["PATH"] = f"{folder / 'programs'}:{project.environment['PATH']}"
    project.write("deploy/postgres-client.sh", "# would install packages\n")
    project.commit()
    return project


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


def run_with(project: Project, target: str, name: str, payload: str, way: str) -> str:
    """Run the target with the payload in the variable; return what it printed."""
    if way == "argument":
        done = project.make(target, f"{name}={payload}", expect=None)
    else:
        done = project.make(target, expect=None, env={name: payload})
    return done.stdout + done.stderr


@pytest.mark.parametrize("way", ["argument", "environment"])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_each_payload_runs_in_a_naive_makefile(
    tmp_path: Path, marker: Path, payload: str, way: str
) -> None:
    naive = Project(tmp_path)
    naive.write("Makefile", NAIVE)
    run_with(naive, "all", "VALUE", payload.format(marker), way)
    assert marker.exists()


@pytest.mark.parametrize("target", [*RULES])
def test_nothing_in_a_variable_is_evaluated(project: Project, tmp_path: Path, target: str) -> None:
    names = find_names_of_rule(RULES[target])
    if target == "help":
        names |= find_names(HEADER)

    def attack(number: int, name: str, payload: str, way: str) -> str | None:
        marker = tmp_path / f"{number}-{way}"
        run_with(project, target, name, payload.format(marker), way)
        return f"{name}={payload} ({way})" if marker.exists() else None

    with ThreadPoolExecutor(2) as threads:
        runs = [
            threads.submit(attack, number, name, payload, way)
            for number, (name, payload) in enumerate(
                (name, payload) for name in sorted(names) for payload in PAYLOADS
            )
            for way in ("argument", "environment")
        ]
    assert [run.result() for run in runs if run.result()] == []
    assert not list(tmp_path.iterdir())


def test_an_option_arrives_as_it_was_given(project: Project) -> None:
    for payload in PAYLOADS:
        for way in ("argument", "environment"):
            assert f"--message={payload}\n" in run_with(
                project, "migrate-create", "MSG", payload, way
            )


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", True), ("yes", True), ("0", False), ("no", False), ("false", False), ("", False)],
)
def test_a_switch_is_off_by_0_no_and_false(project: Project, value: str, *, expected: bool) -> None:
    assert (
        "--allow-unsafe" in project.make("migrate-plan", f"ALLOW_UNSAFE={value}").stdout
    ) is expected
    assert (
        "--dry-run" in project.make("alembic-export", env={"DRY_RUN": value}).stdout
    ) is expected
    assert (
        "--autogenerate" in project.make("migrate-create", "MSG=x", f"EMPTY={value}").stdout
    ) is not expected


def test_what_a_command_line_sets_reaches_the_programs(project: Project) -> None:
    project.write("../programs/uv", "#!/bin/sh\nprintenv DATABASE_URL PYTHONPATH\n")
    said = project.make(
        "-s", "migrate-up", "DATABASE_URL=postgresql://a:$b@c/d", "PYTHONPATH=x"
    ).stdout
    project.write("../programs/uv", "#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    assert said.split() == ["postgresql://a:$b@c/d", str(project.path / "src")]


def test_makefile_local_adds_targets_and_sets_variables(project: Project) -> None:
    local = project.write(
        "Makefile.local",
        "PORT = 9000\nCHECK_ALSO = own-check\nTEST_ALSO := own-check\n"
        "own-check: $(OWN_UV) ## Check what is mine\n\t@echo mine: $(RUN)\n",
    )
    try:
        assert "--port\n9000\n" in project.make("dev").stdout
        assert "--port\n9001\n" in project.make("dev", "PORT=9001").stdout
        for target in ("check", "test"):
            for arguments, env in (
                ([], {}),
                (["CHECK_ALSO=x", "TEST_ALSO=x"], {}),
                ([], {"CHECK_ALSO": "x", "TEST_ALSO": "x"}),
            ):
                assert "mine: uv run\n" in project.make(target, *arguments, env=env).stdout
        assert re.search(r"^  own-check +Check what is mine$", project.make().stdout, re.MULTILINE)
    finally:
        local.unlink()


@pytest.mark.parametrize(
    ("argument", "printed"), [("name", "my-service"), ("python", "3.14"), ("postgres", "18")]
)
def test_service_prints_one_value(project: Project, argument: str, printed: str) -> None:
    assert project.run("python3", "deploy/service.py", argument).stdout == f"{printed}\n"
