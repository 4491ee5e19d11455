"""`make demo`: a project, from nothing to an answer over HTTP, as a person would make it."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from copier import run_copy
from copier.errors import DirtyLocalWarning

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
READY_TIMEOUT = 60.0
"""Seconds that the service may take to answer."""


class StepError(Exception):
    """A step of the demo failed; the message says which and why."""


def main() -> int:
    """Run the demo; return the exit code."""
    started = time.monotonic()
    try:
        remove_last_demo()
        step("Render the working tree into demo/", render)
        step("Make it a git repository", commit)
        step("make migrate-up", lambda: make("migrate-up"))
        step("make migrate-status", lambda: print(indent(make("migrate-status"))))
        with serving() as address:
            step("Ask for /health/ready", lambda: ask(f"{address}/health/ready"))
            step("Create a user and read it back", lambda: create_user(address))
        step("Stop what was started", lambda: make("db-stop"))
    except StepError as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    finally:
        if (DEMO / ".postgres").exists():
            make("db-stop", check=False)
    print(f"\nAll of it held, in {time.monotonic() - started:.0f} s. What you can do next:\n")
    print("  cd demo && make dev     # then open http://127.0.0.1:8000/docs")
    print("  cd demo && make test    # its own tests")
    print(f"  uvx copier copy {shlex.quote(str(ROOT))} newproj     # a project of your own")
    return 0


def step(title: str, run: Any) -> None:
    """Run one step and print its title and duration."""
    print(f"- {title} ", end="", flush=True)
    started = time.monotonic()
    result = run()
    print(f"[{time.monotonic() - started:.1f} s]")
    if isinstance(result, dict):
        print(indent(json.dumps(result)))


def indent(text: str) -> str:
    """Return `text` set in, on lines of its own."""
    return "\n" + "\n".join(f"    {line}" for line in text.strip().splitlines())


def remove_last_demo() -> None:
    """Remove the last demo, unless somebody has worked in it."""
    if not DEMO.exists():
        return
    if not (DEMO / ".copier-answers.yml").exists():
        raise StepError("demo/ is none of an earlier demo; move it away, and try again")
    changes = git("status", "--porcelain") if (DEMO / ".git").exists() else ""
    commits = git("rev-list", "--count", "HEAD", check=False) if (DEMO / ".git").exists() else ""
    own = [line for line in changes.splitlines() if not line.endswith("uv.lock")]
    if own or commits.strip() not in {"", "1"}:
        raise StepError("demo/ holds changes of yours; move it away or delete it, and try again")
    if (DEMO / ".postgres").exists():
        make("db-stop", check=False)
    shutil.rmtree(DEMO)


def render() -> None:
    """Render the working tree as it is, with the default answers."""
    is_git = (ROOT / ".git").exists()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DirtyLocalWarning)
            run_copy(
                str(ROOT),
                DEMO,
                data={"project_name": "Demo"},
                defaults=True,
                quiet=True,
                vcs_ref="HEAD" if is_git else None,
            )
    except Exception as error:
        raise StepError(f"Copier: {error}") from error


def commit() -> None:
    """Commit what was rendered."""
    git("init", "--quiet", "--initial-branch=main")
    git("add", "--all")
    git("commit", "--quiet", "--message=Start from the template")


def git(*arguments: str, check: bool = True) -> str:
    """Run git in the demo; return what it printed."""
    identity = ["-c", "user.name=demo", "-c", "user.email=demo@example.com"]
    return run("git", *identity, *arguments, check=check)


def make(*arguments: str, check: bool = True) -> str:
    """Run make in the demo; return what it printed."""
    return run("make", "--no-print-directory", *arguments, check=check)


def run(*command: str, check: bool = True) -> str:
    """Run a command in the demo; return what it printed.

    Raises:
        StepError: it failed; the message has the end of its output.
    """
    done = subprocess.run(
        command, cwd=DEMO, env=environment(), capture_output=True, text=True, check=False
    )
    if check and done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise StepError(f"`{' '.join(command)}` ended with {done.returncode}:\n{tail}")
    return done.stdout


def environment() -> dict[str, str]:
    """Return the environment of the demo's commands: nothing that points to another project."""
    foreign = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "ENVIRONMENT")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in foreign and "DATABASE_UR" not in name and not name.startswith("MAKE")
    }
    # uv comes with this repository's environment where it is not on PATH.
    kept["PATH"] = os.pathsep.join([kept.get("PATH", ""), str(Path(sys.executable).parent)])
    return kept


@contextmanager
def serving() -> Iterator[str]:
    """Serve the demo; give the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    arguments = f"run uvicorn --app-dir src --factory main:create_app --port {port}".split()
    with (DEMO / ".postgres" / "api.log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            ["uv", *arguments],
            executable=shutil.which("uv", path=environment()["PATH"]),
            cwd=DEMO,
            env=environment(),
            stdout=log,
            stderr=log,
        )
        try:
            step(f"Start the API on {address}", lambda: wait_until_up(address, process, log))
            yield address
        finally:
            process.terminate()
            process.wait()


def wait_until_up(address: str, process: "subprocess.Popen[bytes]", log: Any) -> None:
    """Wait until the service answers.

    Raises:
        StepError: it ended, or did not answer in time.
    """
    deadline = time.monotonic() + READY_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            log.seek(0)
            raise StepError(f"the API ended with {process.returncode}:\n{log.read()[-2000:]}")
        try:
            ask(f"{address}/health/live")
        except StepError:
            time.sleep(0.1)
        else:
            return
    raise StepError(f"the API did not answer within {READY_TIMEOUT:.0f} s")


def ask(url: str, body: dict[str, str] | None = None) -> dict[str, Any]:
    """Ask the service and return its answer.

    Raises:
        StepError: no answer, or not a success.
    """
    request = urllib.request.Request(  # noqa: S310
        url,
        data=json.dumps(body).encode() if body else None,
        headers={"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        raise StepError(f"{url} answered {error.code}: {error.read().decode()}") from None
    except OSError as error:
        raise StepError(f"{url}: {error}") from None


def create_user(address: str) -> dict[str, Any]:
    """Create a user over HTTP, read it back and return it."""
    created = ask(f"{address}/users", {"email": "ada@example.com", "full_name": "Ada Lovelace"})
    read = ask(f"{address}/users/{created['id']}")
    if read != created:
        raise StepError(f"the user was created as {created}, but is read as {read}")
    return read


if __name__ == "__main__":
    sys.exit(main())
