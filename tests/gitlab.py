"""The rendered pipeline, run as a runner of GitLab would run it, and a GitLab that keeps notes."""

import json
import re
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import trustme
import yaml
from tests.support import NOTHING, Completed, Env, Project

Job = dict[str, Any]
_SERVICE = "postgresql://postgres@postgres:5432/postgres"


def pipeline(project: Project) -> dict[str, Any]:
    """Return the pipeline as it is written."""
    document: dict[str, Any] = yaml.safe_load(project.read(".gitlab-ci.yml"))
    return document


def jobs(project: Project) -> dict[str, Job]:
    """Return the jobs, with what they extend and what is the default."""
    document = pipeline(project)
    keywords = {"workflow", "stages", "variables", "default", "include"}
    return {
        name: {**document["default"], **_extended(document, name)}
        for name in document
        if name not in keywords and not name.startswith(".")
    }


def _extended(document: dict[str, Any], name: str) -> Job:
    job: Job = {}
    parents = document[name].get("extends", [])
    for parent in [parents] if isinstance(parents, str) else parents:
        job = _merged(job, _extended(document, parent))
    return _merged(job, document[name])


def _merged(below: Job, above: Job) -> Job:
    """Mappings are merged, all else is replaced: https://docs.gitlab.com/ci/yaml/#extends."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _merged(below[key], above[key])
    return merged


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs jobs in a clone, with a shell as GitLab's runner uses it."""

    origin: Path
    folder: Path
    """Clones are made here."""
    service: str
    """The address of the server that stands in for the service `postgres`."""
    settings: Mapping[str, str]
    """Variables of the project's settings: they go before those of the file."""
    environment: Env

    def run(self, name: str, *, ref: str, expect: int = 0, predefined: Env = NOTHING) -> "Ran":
        """Check the ref out, detached and without branches, and run a job."""
        self.folder.mkdir(exist_ok=True)
        clone = Project(Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder)))
        clone.environment |= self.environment
        clone.run("git", "init", "--quiet", "--initial-branch=unused")
        clone.run("git", "remote", "add", "origin", str(self.origin))
        clone.run("git", "fetch", "--quiet", "origin", ref)
        clone.run("git", "checkout", "--quiet", "--detach", "FETCH_HEAD")
        commit = clone.run("git", "rev-parse", "HEAD").stdout.strip()
        document, job = pipeline(clone), jobs(clone)[name]
        given = {
            "CI": "true",
            "CI_DEFAULT_BRANCH": "main",
            "CI_COMMIT_SHA": commit,
            "CI_COMMIT_SHORT_SHA": commit[:8],
            "CI_REGISTRY": "registry.example.com",
            "CI_REGISTRY_IMAGE": "registry.example.com/group/shop",
            "CI_REGISTRY_USER": "ci",
            "CI_REGISTRY_PASSWORD": "registry secret",
            **predefined,
        }
        written = {**document["variables"], **job.get("variables", {})}
        variables = {
            **given,
            **{key: str(value) for key, value in written.items()},
            **self.settings,
        }
        for variable, value in variables.items():
            text = re.sub(r"\$(\w+)", lambda match: variables.get(match[1], ""), value)
            variables[variable] = text.replace(_SERVICE, self.service)
        # The tests' environment has one Python.
        del variables["UV_PYTHON"]
        done = _shell(clone, [*job.get("before_script", []), *job["script"]], variables)
        status = {"CI_JOB_STATUS": "failed" if done.returncode else "success"}
        after = _shell(clone, job.get("after_script", []), variables | status)
        output = done.stdout + after.stdout
        assert done.returncode == expect, f"{name} ended with {done.returncode}\n{output}"
        return Ran(clone=clone, output=output)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A job that was run."""

    clone: Project
    output: str


def _shell(clone: Project, lines: list[str], variables: Mapping[str, str]) -> Completed:
    return subprocess.run(
        ["bash", "-c", "\n".join(["set -eo pipefail", *lines])],
        cwd=clone.path,
        env={**clone.environment, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )


class GitLab(ThreadingHTTPServer):
    """The notes of one merge request, behind the API, with a certificate of its own authority."""

    def __init__(self, token: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _API)
        authority = trustme.CA()
        self.authority = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.token = token
        self.user = 7
        self.notes: list[dict[str, Any]] = []
        self.writes: list[str] = []

    @property
    def predefined(self) -> dict[str, str]:
        """What a job knows of it."""
        return {
            "CI_API_V4_URL": f"https://127.0.0.1:{self.server_port}/api/v4",
            "CI_SERVER_TLS_CA_FILE": str(self.authority),
        }


class _API(BaseHTTPRequestHandler):
    server: GitLab
    notes: ClassVar[str] = "/api/v4/projects/42/merge_requests/3/notes"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if self.headers["PRIVATE-TOKEN"] != self.server.token:
            self._answer(401, {"message": "401 Unauthorized"})
        elif address.path == "/api/v4/user":
            self._answer(200, {"id": self.server.user})
        elif address.path == self.notes:
            asked = {name: values[0] for name, values in parse_qs(address.query).items()}
            page, size = int(asked.get("page", 1)), int(asked.get("per_page", 20))
            self._answer(200, self.server.notes[(page - 1) * size : page * size])
        else:
            self._answer(404, {"message": "404 Not found"})

    def do_POST(self) -> None:
        self._write(None)

    def do_PUT(self) -> None:
        self._write(int(self.path.rpartition("/")[2]))

    def _write(self, wanted: int | None) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"]
        server = self.server
        server.writes.append(self.command)
        if self.headers["PRIVATE-TOKEN"] != server.token:
            self._answer(401, {"message": "401 Unauthorized"})
            return
        if wanted is None:
            server.notes.append(note(len(server.notes) + 1, body, author=server.user))
            self._answer(201, server.notes[-1])
            return
        (found,) = [item for item in server.notes if item["id"] == wanted]
        found["body"] = body
        self._answer(200, found)

    def _answer(self, status: int, document: object) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def note(number: int, body: str, *, author: int) -> dict[str, Any]:
    """Return a note as the API shows it."""
    return {"id": number, "body": body, "author": {"id": author}}


@contextmanager
def serving(token: str, folder: Path) -> Iterator[GitLab]:
    """Serve the API on a port of the loopback address, to whom has the token."""
    with GitLab(token, folder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
