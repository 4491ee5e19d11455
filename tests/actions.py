"""The rendered workflows, run as GitHub's runner would run them, and a GitHub that keeps comments."""

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import yaml
from tests.support import Project

TOKEN = "the-token-of-the-job"  # noqa: S105
BOT = "github-actions[bot]"
REPOSITORY = "Acme/Shop"
SERVICE = "postgresql://postgres@localhost:5432/postgres"
"""Where the workflows find their PostgreSQL service; a database of the test takes its place."""
STEP_TIMEOUT = 300

_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<name>[A-Za-z_][\w.-]*)|(?P<sign>\|\||&&|==|!=|!|\(|\)|,))"
)


class Expressions:
    """The expressions of workflows, as far as these use them; what is not known, fails."""

    def __init__(self, context: Mapping[str, Any], folder: Path, *, failed: bool) -> None:
        self._context = context
        self._folder = folder
        self._failed = failed
        self.asked_status = False
        self._functions: dict[str, Callable[..., Any]] = {
            "format": lambda text, *values: text.format(*map(_as_text, values)),
            "hashFiles": lambda name: "hash" if list(folder.glob(name)) else "",
            "success": lambda: self._status(wanted=not failed),
            "failure": lambda: self._status(wanted=failed),
            "cancelled": lambda: self._status(wanted=False),
        }

    def fill(self, text: object) -> str:
        """Return a text with the values of the expressions in it."""
        return re.sub(
            r"\$\{\{(.*?)\}\}", lambda match: _as_text(self.value(match[1])), _as_text(text)
        )

    def holds(self, condition: object) -> bool:
        """Return whether an `if` lets a step or job run."""
        text = _as_text(condition).strip().removeprefix("${{").removesuffix("}}")
        value = self.value(text) if text else True
        return bool(value) and (self.asked_status or not self._failed)

    def value(self, text: str) -> Any:
        """Return the value of an expression."""
        self._tokens = []
        end = 0
        while match := _TOKEN.match(text, end):
            self._tokens.append(match)
            end = match.end()
        assert not text[end:].strip(), f"not understood: {text}"
        value = self._or()
        assert not self._tokens, f"not understood: {text}"
        return value

    def _status(self, *, wanted: bool) -> bool:
        self.asked_status = True
        return wanted

    def _take(self, *signs: str) -> str:
        if self._tokens and self._tokens[0]["sign"] in signs:
            return str(self._tokens.pop(0)["sign"])
        return ""

    def _or(self) -> Any:
        value = self._and()
        while self._take("||"):
            other = self._and()
            value = value or other
        return value

    def _and(self) -> Any:
        value = self._comparison()
        while self._take("&&"):
            other = self._comparison()
            value = value and other
        return value

    def _comparison(self) -> Any:
        value = self._single()
        if sign := self._take("==", "!="):
            same = _as_text(value).lower() == _as_text(self._single()).lower()
            return same if sign == "==" else not same
        return value

    def _single(self) -> Any:
        if self._take("!"):
            return not self._single()
        if self._take("("):
            value = self._or()
            assert self._take(")")
            return value
        token = self._tokens.pop(0)
        if token["text"]:
            return token["text"][1:-1].replace("''", "'")
        assert token["name"], f"not understood: {token[0]}"
        if self._take("("):
            arguments = []
            while not self._take(")"):
                arguments.append(self._or())
                self._take(",")
            return self._functions[token["name"]](*arguments)
        return self._look_up(token["name"].split("."))

    def _look_up(self, path: list[str]) -> Any:
        """Return what stands in a context: a name that is no part of one, or of the event, fails."""
        value: Any = self._context
        for depth, key in enumerate(path):
            if depth > 1 or path[0] in {"vars", "inputs"}:
                value = None if value is None else value.get(key)
            else:
                assert key in value, f"{'.'.join(path)}: not known"
                value = value[key]
        return value


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


@dataclass(kw_only=True)
class Ran:
    """A job that was run, or skipped."""

    result: str
    outputs: dict[str, str] = field(default_factory=dict)
    log: str = ""
    summary: str = ""
    steps: list[str] = field(default_factory=list)
    """The `run` lines that were run, in order."""


@dataclass(kw_only=True)
class Runner:
    """Runs workflows: each job in a clone of its own, its lines by `bash -e`, as GitHub does."""

    origin: Path
    folder: Path
    """Clones are made here."""
    environment: dict[str, str]
    database: str
    """The address of the PostgreSQL service."""
    secrets: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    def run(
        self,
        workflow: str,
        *jobs: str,
        commit: str,
        event: Mapping[str, Any] | None = None,
        **github: Any,
    ) -> dict[str, Ran]:
        """Run a workflow at a commit: all of its jobs, or those named; return each by its name."""
        source = Project(self.origin).run("git", "show", f"{commit}:.github/workflows/{workflow}")
        document = yaml.safe_load(source.stdout)
        event = event or {}
        context: dict[str, Any] = {
            "github": {
                "base_ref": "",
                "event": event,
                "event_name": "push",
                "ref": "refs/heads/main",
                "repository": REPOSITORY,
                "sha": commit,
                "token": TOKEN,
                **github,
            },
            "inputs": event.get("inputs", {}),
            "secrets": {"TEMPLATE_TOKEN": "", "MIGRATION_DATABASE_URL": "", **self.secrets},
            "vars": self.variables,
        }
        done: dict[str, Ran] = {}
        for name, job in document["jobs"].items():
            if jobs and name not in jobs:
                continue
            needed = job.get("needs", [])
            needs = {
                other: done[other] for other in ([needed] if isinstance(needed, str) else needed)
            }
            failed = any(other.result != "success" for other in needs.values())
            context["needs"] = {
                other: {"result": ran.result, "outputs": _Outputs(ran.outputs)}
                for other, ran in needs.items()
            }
            expressions = Expressions(context, self.folder, failed=failed)
            if expressions.holds(job.get("if")):
                done[name] = self._job(job, context, commit)
            else:
                done[name] = Ran(result="skipped")
        return done

    def _job(self, job: dict[str, Any], context: dict[str, Any], commit: str) -> Ran:
        work = self.folder / f"job-{len(list(self.folder.iterdir()))}"
        clone, temporary = work / "clone", work / "temporary"
        clone.mkdir(parents=True)
        temporary.mkdir()
        project = Project(clone)
        project.environment = {
            **self.environment,
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_ACTOR": "ada",
            "GITHUB_REF_NAME": context["github"]["ref"].removeprefix("refs/heads/"),
            "GITHUB_REPOSITORY": REPOSITORY,
            "GITHUB_REPOSITORY_OWNER": REPOSITORY.partition("/")[0],
            "GITHUB_STEP_SUMMARY": str(work / "summary.md"),
            "RUNNER_TEMP": str(temporary),
        }
        (work / "summary.md").touch()
        steps: dict[str, Any] = {}
        here = {**context, "steps": steps}
        ran = Ran(result="success")
        for number, step in enumerate(job["steps"]):
            failed = ran.result == "failure"
            identity = step.get("id", f"step {number}")
            steps[identity] = {"outcome": "skipped", "outputs": _Outputs()}
            if not Expressions(here, clone, failed=failed).holds(step.get("if")):
                continue
            expressions = Expressions(here, clone, failed=failed)
            if "uses" in step:
                assert step["uses"].startswith("actions/checkout@")
                self._check_out(project, commit, step["with"], context["github"])
                continue
            written = {**job.get("env", {}), **step.get("env", {})}
            values = {name: expressions.fill(value) for name, value in written.items()}
            values = {name: self.database if v == SERVICE else v for name, v in values.items()}
            output = work / f"output-{number}"
            output.touch()
            assert "${{" not in step["run"], step["run"]
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-e", "-c", step["run"]],
                cwd=clone,
                env={**project.environment, **values, "GITHUB_OUTPUT": str(output)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=STEP_TIMEOUT,
            )
            ran.steps.append(step["run"])
            ran.log += f"$ {step['run']}\n{done.stdout}"
            outcome = "failure" if done.returncode else "success"
            outputs = _Outputs(_read_outputs(output.read_text("utf-8")))
            steps[identity] = {"outcome": outcome, "outputs": outputs}
            ran.result = "failure" if outcome == "failure" else ran.result
        expressions = Expressions(here, clone, failed=False)
        ran.outputs = {
            name: expressions.fill(value) for name, value in job.get("outputs", {}).items()
        }
        ran.summary = (work / "summary.md").read_text("utf-8")
        if (clone / ".postgres").exists():  # the machine would be gone now
            project.make("db-stop")
        for secret in filter(None, [TOKEN, *self.secrets.values()]):
            assert secret not in ran.log + ran.summary
            assert not any(secret in path.read_text() for path in clone.glob(".git/config"))
        return ran

    def _check_out(
        self, project: Project, commit: str, options: Mapping[str, Any], github: Mapping[str, Any]
    ) -> None:
        assert options["persist-credentials"] is False
        depth = [] if options.get("fetch-depth") == 0 else ["--depth=1"]
        origin = f"file://{self.origin}"
        project.run("git", "init", "--quiet", "--initial-branch=main")
        project.run("git", "remote", "add", "origin", origin)
        heads = [] if depth else ["+refs/heads/*:refs/remotes/origin/*"]
        project.run("git", "fetch", "--quiet", *depth, "origin", commit, *heads)
        branch = github["ref"].removeprefix("refs/heads/")
        on_branch = github["event_name"] != "pull_request"
        where = ["--force-create", branch] if on_branch else ["--detach"]
        if "ref" in options:
            project.run("git", "fetch", "--quiet", *depth, "origin", options["ref"])
            where, commit = ["--force-create", options["ref"]], "FETCH_HEAD"
        project.run("git", "switch", "--quiet", *where, commit)


class _Outputs(dict[str, str]):
    """Outputs: one that no step wrote is empty."""


def _read_outputs(text: str) -> dict[str, str]:
    """Return what was written to $GITHUB_OUTPUT: `name=value`, and `name<<mark`, lines, `mark`."""
    outputs: dict[str, str] = {}
    lines = iter(text.splitlines())
    for line in lines:
        if match := re.fullmatch(r"([\w-]+)<<(\S+)", line):
            block: list[str] = []
            while (following := next(lines)) != match[2]:
                block.append(following)
            outputs[match[1]] = "\n".join(block)
        elif line:
            name, _, value = line.partition("=")
            outputs[name] = value
    return outputs


class GitHub(ThreadingHTTPServer):
    """The comments and pull requests of one repository, behind the API."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _API)
        self.comments: list[dict[str, Any]] = []
        self.pulls: list[dict[str, Any]] = []
        self.writes: list[str] = []
        """Method and path of each request that changed something."""
        self.refused = False
        """Whether nothing may be written."""

    @property
    def url(self) -> str:
        """What a job knows as GITHUB_API_URL."""
        return f"http://127.0.0.1:{self.server_port}"

    def comment(self, body: str, author: str = BOT) -> None:
        """Let somebody write a comment."""
        identity = len(self.comments) + 1
        self.comments.append({"id": identity, "user": {"login": author}, "body": body})


class _API(BaseHTTPRequestHandler):
    server: GitHub
    _prefix: ClassVar[str] = f"/repos/{REPOSITORY}"

    def do_GET(self) -> None:
        if not self._authorised():
            return
        address = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        if address.path == f"{self._prefix}/issues/7/comments":
            count = int(query["per_page"])
            start = (int(query["page"]) - 1) * count
            self._answer(200, self.server.comments[start : start + count])
        elif address.path == f"{self._prefix}/pulls":
            owner, _, branch = query["head"].partition(":")
            assert (owner, query["state"]) == (REPOSITORY.partition("/")[0], "open")
            self._answer(200, [pull for pull in self.server.pulls if pull["head"] == branch])
        else:
            self._answer(404, {"message": "Not Found"})

    def do_POST(self) -> None:
        self._write()

    def do_PATCH(self) -> None:
        self._write()

    def _write(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._authorised():
            return
        if self.server.refused:
            self._answer(403, {"message": "Resource not accessible by integration"})
            return
        path = self.path.removeprefix(self._prefix)
        self.server.writes.append(f"{self.command} {path}")
        match [self.command, *path.strip("/").split("/")]:
            case ["POST", "issues", "7", "comments"]:
                self.server.comment(body["body"])
                self._answer(201, self.server.comments[-1])
            case ["PATCH", "issues", "comments", identity]:
                comment = self.server.comments[int(identity) - 1]
                comment["body"] = body["body"]
                self._answer(200, comment)
            case ["POST", "pulls"]:
                self.server.pulls.append({"number": len(self.server.pulls) + 1, **body})
                self._answer(201, self.server.pulls[-1])
            case ["PATCH", "pulls", number]:
                self.server.pulls[int(number) - 1] |= body
                self._answer(200, self.server.pulls[int(number) - 1])
            case _:
                self._answer(404, {"message": "Not Found"})

    def _authorised(self) -> bool:
        if self.headers["Authorization"] == f"Bearer {TOKEN}":
            return True
        self._answer(401, {"message": "Bad credentials"})
        return False

    def _answer(self, status: int, document: object) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def github() -> Iterator[GitHub]:
    """Run the API for as long as it is needed."""
    server = GitHub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def program(folder: Path, name: str, script: str) -> None:
    """Write a program into a folder of PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def with_path(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the environment with a folder before the others of PATH."""
    return {**environment, "PATH": os.pathsep.join([str(folder), environment["PATH"]])}
