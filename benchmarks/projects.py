"""The projects that are measured: rendered from this checkout, and floors beside them."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from copier import run_copy
from copier.errors import DirtyLocalWarning

from benchmarks.measure import Sample, command

ROOT = Path(__file__).resolve().parents[1]
_FOREIGN = {
    "CI",
    "DATABASE_URL",
    "ENVIRONMENT",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPATH",
    "SQLALCHEMY_DATABASE_URI",
    "VIRTUAL_ENV",
}
_FOREIGN_PREFIXES = ("PG", "MAKE", "MIGRATION_", "OTEL_", "PYTEST", "UV_PROJECT")


def clean_environment() -> dict[str, str]:
    """Return the environment without what belongs to this checkout or points to a database."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _FOREIGN and not name.startswith(_FOREIGN_PREFIXES)
    }
    environment["PATH"] += os.pathsep + str(Path(sys.executable).parent)  # for uv
    return environment


class Folder:
    """A folder with a Python project, and the environment that its commands run in."""

    def __init__(self, path: Path, python: Path, environment: dict[str, str]) -> None:
        self.path = path
        self.python = python
        """The interpreter that has its dependencies."""
        self.environment = environment

    def run(self, *arguments: str | Path, **variables: str) -> str:
        """Run a command and return what it printed. One that fails ends the benchmark."""
        done = subprocess.run(
            arguments,
            cwd=self.path,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            sys.exit(f"{arguments}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def measure(self, *arguments: str | Path, allowed: int = 0, **variables: str) -> Sample:
        """Measure `python ...`."""
        environment = {**self.environment, **variables}
        return command(
            self.python, *arguments, cwd=self.path, environment=environment, allowed=allowed
        )


def render(target: Path, **answers: object) -> Folder:
    """Render the working tree, install the project and migrate its database.

    The project's own PostgreSQL runs from then on: `make db-stop` ends it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DirtyLocalWarning)
        ref = "HEAD" if (ROOT / ".git").exists() else None
        run_copy(str(ROOT), target, data=answers, defaults=True, quiet=True, vcs_ref=ref)
    environment = clean_environment()
    environment["PYTHONPATH"] = str(target / "src")
    environment["PYTEST_DEBUG_TEMPROOT"] = str(target.parent)
    project = Folder(target, target / ".venv" / "bin" / "python", environment)
    project.run("make", "migrate-up")
    return project


@contextmanager
def revisions(project: Folder, texts: Mapping[str, str]) -> Iterator[None]:
    """Let the project have further revisions until the block ends; `texts` are by name."""
    versions = project.path / "migrations" / "versions"
    files = {versions / f"{name}.py": text for name, text in texts.items()}
    try:
        for file, text in files.items():
            file.write_text(text, encoding="utf-8")
        yield
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def database_url(project: Folder, database: str) -> str:
    """Return the address of a database on the project's server."""
    code = (
        "from core.config import get_settings; "
        f"print(get_settings().url.with_database({database!r}).libpq)"
    )
    return project.run(project.python, "-c", code).strip()
