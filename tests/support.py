"""A rendered project, and the programs that tests run in it."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Self

import psutil  # type: ignore[import-untyped]
from copier import run_copy

ROOT = Path(__file__).resolve().parents[1]
PYTHON_VERSIONS = ("3.11", "3.12", "3.13", "3.14")
COMMAND_TIMEOUT = 900
"""Seconds after which a command hangs, on a machine that is busy with other things, too."""

Env = Mapping[str, str]
NOTHING: Env = MappingProxyType({})
Completed = subprocess.CompletedProcess[str]
MakeOnce = Callable[[str, Callable[[Path], object]], Path]
"""Returns a folder that is made once for all tests: `make_once(name, make)`."""


def clean_environment() -> dict[str, str]:
    """Return the environment without what belongs to this checkout or points to a database."""
    foreign = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "ENVIRONMENT", "CI"}
    prefixes = ("PG", "MAKE", "MIGRATION_", "OTEL_", "PYTEST", "COV_", "UV_PROJECT")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in foreign and not name.startswith(prefixes) and "DATABASE_UR" not in name
    }
    # uv comes with this checkout's environment.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    environment["GIT_CONFIG_GLOBAL"] = os.devnull
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{role}_NAME": "test", f"GIT_{role}_EMAIL": "test@example.com"}
    return environment


class Project:
    """A rendered project, and the environment its commands run in."""

    def __init__(self, path: Path, **environment: str) -> None:
        self.path = path
        # A pytest in the project, run by root, would close the folders above it to PostgreSQL.
        self.environment = {**clean_environment(), "PYTEST_DEBUG_TEMPROOT": str(path.parent)}
        self.environment |= environment

    def run(
        self,
        *command: str,
        expect: int | None = 0,
        cwd: Path | None = None,
        stdin: str = "",
        env: Env = NOTHING,
    ) -> Completed:
        """Run a command in the project; it has to end with the exit code `expect`."""
        done = subprocess.run(
            command,
            cwd=cwd or self.path,
            env={**self.environment, **env},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_TIMEOUT,
        )
        shown = f"{command} in {self.path} ended with {done.returncode}"
        assert expect is None or done.returncode == expect, f"{shown}\n{done.stdout}\n{done.stderr}"
        return done

    def make(self, *arguments: str, expect: int | None = 0, env: Env = NOTHING) -> Completed:
        """Run make in the project."""
        return self.run("make", *arguments, expect=expect, env=env)

    def alembic(self, *arguments: str, expect: int | None = 0, env: Env = NOTHING) -> Completed:
        """Run plain Alembic in the project."""
        return self.run("uv", "run", "alembic", *arguments, expect=expect, env=env)

    def python(self, code: str, expect: int | None = 0, env: Env = NOTHING) -> Completed:
        """Run Python code in the project."""
        return self.run("uv", "run", "python", "-c", code, expect=expect, env=env)

    def write(self, path: str, text: str) -> Path:
        """Write a file of the project."""
        file = self.path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def read(self, path: str) -> str:
        """Read a file of the project."""
        return (self.path / path).read_text(encoding="utf-8")

    def revisions(self) -> list[Path]:
        """Return the files of the revisions, oldest first."""
        return sorted((self.path / "migrations" / "versions").glob("*.py"))

    def files(self) -> set[str]:
        """Return the paths of all files but those that git ignores."""
        return {
            str(path.relative_to(self.path))
            for path in self.path.rglob("*")
            if path.is_file() and not {".git", ".venv", "__pycache__"} & set(path.parts)
        }

    def commit(self, message: str = "Commit") -> None:
        """Commit everything, in a repository made where there is none."""
        if not (self.path / ".git").exists():
            self.run("git", "init", "--quiet", "--initial-branch=main")
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", f"--message={message}")


class Service:
    """A service that runs; `log` is what it had said when it ended."""

    def __init__(self, project: Project, env: Env = NOTHING, *, workers: int = 1) -> None:
        self.port = free_port()
        arguments = ["--app-dir", "src", "--factory", "main:create_app", "--port", str(self.port)]
        arguments += ["--workers", str(workers)]
        self._workers = workers
        self._process = subprocess.Popen(
            ["uv", "run", "python", "-m", "uvicorn", *arguments],
            cwd=project.path,
            env={**project.environment, **env},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = ""

    def __enter__(self) -> Self:
        assert self._process.stderr is not None
        # One process says that it runs when it listens, several before their workers do.
        said = ("Uvicorn running", *["Application startup complete"] * self._workers)
        while any(self.log.count(text) < said.count(text) for text in said):
            line = self._process.stderr.readline()
            assert line, self.log
            self.log += line
        # A worker says that its application has started just before it listens.
        for _ in range(100):
            with suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", self.port)).close()
                break
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self.log += self._process.communicate(timeout=60)[1]

    def ask(self, path: str, body: str | None = None, **headers: str) -> tuple[int, str]:
        """Return status and text of the answer; with a body, it is a POST."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        headers["Content-Type"] = "application/json"
        connection.request("POST" if body else "GET", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def copy(template: Path, target: Path, answers: Mapping[str, object]) -> Path:
    """Render the template and return the project's folder."""
    run_copy(str(template), target, data=dict(answers), defaults=True, quiet=True)
    return target


def free_port() -> int:
    """Return a TCP port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until the condition is true, and fail where it is not after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(process: psutil.Process) -> bool:
    """Return whether the process runs; a zombie has ended."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def interpreters() -> dict[str, str]:
    """Return the path of a Python of each version from 3.11 on that this machine has."""
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    folders += sorted(home.glob("versions/*/bin"))
    found = {f"{sys.version_info.major}.{sys.version_info.minor}": sys.executable}
    for version in PYTHON_VERSIONS:
        for folder in folders:
            program = folder / f"python{version}"
            if version in found or "shims" in folder.parts or not program.exists():
                continue
            done = subprocess.run([program, "-V"], capture_output=True, text=True, check=False)
            if re.match(rf"Python {re.escape(version)}\.\d+$", done.stdout.strip()):
                found[version] = str(program)
    return found
