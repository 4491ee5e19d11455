"""The README's commands, in their order, as a person would type them."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from tests.support import ROOT, Project

# tests/test_take_over.py follows that section.
_TEXT = re.sub(
    r"\n## Taking over .*?(?=\n## )", "", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL
)
BLOCKS = re.findall(r"```sh\n(.*?)```", _TEXT, re.DOTALL)
# `make test` is what runs this; tests/test_project.py runs `make demo`.
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    PORT = probe.getsockname()[1]
COVERED_ELSEWHERE = {"make demo\nmake test\n"}


def ask(path: str, body: dict[str, str] | None = None) -> dict[str, object]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}{path}",
        data=json.dumps(body).encode() if body else None,
        headers={"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=5) as response:
        answer: dict[str, object] = json.load(response)
        return answer


def serve_and_ask(project: Project) -> None:
    """Run `make dev`, create a user over HTTP, read it back, press Ctrl-C."""
    with (project.path.parent / "dev.log").open("w") as log:
        process = subprocess.Popen(
            ["make", "dev", f"PORT={PORT}"],
            cwd=project.path,
            env=project.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            for _ in range(600):
                assert process.poll() is None, (project.path.parent / "dev.log").read_text()
                try:
                    assert ask("/health/ready")["schema_state"] == "at head"
                except OSError:
                    time.sleep(0.1)
                else:
                    break
            created = ask("/users", {"email": "ada@example.com", "full_name": "Ada Lovelace"})
            assert ask(f"/users/{created['id']}") == created
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(20)


def test_every_command_of_the_readme_works(template: Path, tmp_path: Path) -> None:
    repository = Project(shutil.copytree(template, tmp_path / "repository"))
    repository.commit("A release")
    clone = tmp_path / "clone"
    repository.run("git", "clone", "--quiet", str(repository.path), str(clone))
    person = Project(tmp_path)
    project = Project(tmp_path / "newproj")
    copying, first_app, here, updating = BLOCKS
    assert here in COVERED_ELSEWHERE

    *commands, last = copying.replace("gh:org/tpl", shlex.quote(str(clone))).splitlines()
    assert last == "make dev"
    commands[0] += " --defaults"  # nobody is there to answer
    person.run("bash", "-euc", "\n".join(commands))
    try:
        serve_and_ask(project)
        done = project.run("bash", "-euc", first_app)
        assert "Running upgrade 3f1c9b7d5a20 -> " in done.stderr
        assert "Running downgrade " in done.stderr
        assert "(Add orders)" in done.stdout
        assert re.search(r"^=+ \d+ passed", done.stdout, re.MULTILINE)
        project.make("format")
        project.commit("Add orders")
        (repository.path / "template/src/core/added.py").write_text('"""New."""\n')
        repository.commit("An improvement")
        Project(clone).run("git", "pull", "--quiet")
        project.run("bash", "-euc", updating.strip() + " --defaults")
        assert (project.path / "src/core/added.py").exists()
        assert (project.path / "src/apps/orders/models.py").exists()
        assert (
            "(Add orders)"
            in project.make("migrate-up").stderr + project.make("migrate-status").stdout
        )
    finally:
        project.make("db-stop")


def test_no_path_and_no_name_of_the_readme_is_made_up() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([\w./]+)\)", text):
        assert (ROOT / path).exists(), path
    questions = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    for question in questions:
        assert re.search(rf"^{question}:$", (ROOT / "copier.yml").read_text(), re.MULTILINE)
    assert len(questions) == 8


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_that_is_named_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    paths = ("Makefile", "template/Makefile", "template/deploy/deploy.mk")
    makefiles = "".join((ROOT / path).read_text(encoding="utf-8") for path in paths)
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert re.search(rf"^{target}:", makefiles, re.MULTILINE), target
