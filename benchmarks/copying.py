"""What it costs to have a project: the copy, and the way to its first green tests."""

import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.measure import Benchmark, Row, Sample, command, interleaved
from benchmarks.projects import ROOT, Folder

ONE_FILE = {
    "copier.yml": "_subdirectory: template\nproject_name:\n  type: str\n  default: My Service\n",
    "template/README.md.jinja": "# {{ project_name }}\n",
}
ONE_TEST = "def test_nothing() -> None:\n    assert True\n"


def measure(bench: Benchmark, project: Folder) -> None:
    """Measure the copy, and the copy with the first tests."""
    # Floor and project on the same Python: this one.
    environment = {**project.environment, "UV_PYTHON": sys.executable}
    del environment["PYTHONPATH"]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o711)  # for PostgreSQL
        ours = _repository(home / "ours", _working_tree())
        one_file = _repository(home / "one-file", {k: v.encode() for k, v in ONE_FILE.items()})
        copied = Folder(home / "copied", Path(sys.executable), environment)
        tested = Folder(home / "tested", Path(sys.executable), environment)
        tested.path.mkdir()
        (tested.path / "test_nothing.py").write_text(ONE_TEST, encoding="utf-8")
        shutil.copy2(project.path / "pyproject.toml", tested.path)
        shutil.copytree(project.path / "packages", tested.path / "packages")
        try:
            copies = interleaved(
                {
                    "floor": partial(_copy, one_file, copied),
                    "project": partial(_copy, ours, copied),
                },
                bench.of(5, 1),
            )
            first = interleaved(
                {"floor": partial(_sync_and_test, tested), "project": partial(_make, ours, copied)},
                bench.of(3, 1),
            )
        finally:
            _delete(copied)
    bench.add(Row.of("copier copy", "s", copies, at_most=3))
    bench.add(Row.of("copier copy, and make test", "s", first, at_most=2))


def _working_tree() -> dict[str, bytes]:
    """Return the files of the template, with what is not committed."""
    names = ["copier.yml", "CHANGELOG.md"]
    names += [
        str(path.relative_to(ROOT))
        for path in (ROOT / "template").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    return {name: (ROOT / name).read_bytes() for name in names}


def _repository(path: Path, files: dict[str, bytes]) -> Path:
    """Return a repository with one commit of the files."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    git = ["git", "-C", str(path), "-c", "user.name=bench", "-c", "user.email=bench@example.com"]
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "All"]):
        subprocess.run([*git, *arguments], check=True)
    return path


def _delete(project: Folder) -> None:
    if (project.path / ".postgres").exists():
        project.run("make", "db-stop")
    shutil.rmtree(project.path, ignore_errors=True)


def _copy(template: Path, project: Folder) -> Sample:
    """Copy the template into a folder that is not there."""
    _delete(project)
    arguments = ("-m", "copier", "copy", "--quiet", "--defaults", template, project.path)
    return command(project.python, *arguments, cwd=template.parent, environment=project.environment)


def _make(template: Path, project: Folder) -> Sample:
    """Copy, and make what is copied run its tests."""
    copied = _copy(template, project)
    return _sum(copied, command("make", "test", cwd=project.path, environment=project.environment))


def _sync_and_test(project: Folder) -> Sample:
    """Install the same packages, and run a test that needs none of them."""
    for name in (".venv", "__pycache__"):
        shutil.rmtree(project.path / name, ignore_errors=True)
    (project.path / "uv.lock").unlink(missing_ok=True)
    installed = command("uv", "sync", cwd=project.path, environment=project.environment)
    pytest = command(
        "uv", "run", "python", "-m", "pytest", "test_nothing.py",
        cwd=project.path, environment=project.environment,
    )  # fmt: skip
    return _sum(installed, pytest)


def _sum(*steps: Sample) -> Sample:
    return Sample(sum(step.value for step in steps), max(step.memory for step in steps))
