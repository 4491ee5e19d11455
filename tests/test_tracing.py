"""What a rendered project with the extra `otel` sends to a collector."""

import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent
from typing import Any

import psycopg
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from psycopg.rows import TupleRow
from tests.conftest import Render
from tests.support import Project, Service, copy, free_port

from alembic_safety.database.url import DatabaseURL

PASSWORD = "not-for-a-trace"  # noqa: S105
VALUE = "somebody"
"""Part of each value that the tests store."""
ERROR = Status.STATUS_CODE_ERROR


class Collector(ThreadingHTTPServer):
    """A collector that keeps what it gets."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def variables(self) -> dict[str, str]:
        """What makes a process send its spans here."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server_port}"}

    @property
    def resource(self) -> dict[str, str]:
        """What the first request said of its sender."""
        resource = ExportTraceServiceRequest.FromString(self.received[0]).resource_spans[0].resource
        return {item.key: item.value.string_value for item in resource.attributes}

    @property
    def spans(self) -> list[Span]:
        """All spans, in the order in which they began."""
        found = [
            span
            for body in self.received
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def the(self, name: str) -> Span:
        """Return the only span of a name."""
        (span,) = self.named(name)
        return span

    def below(self, parent: Span) -> list[Span]:
        return [span for span in self.spans if span.parent_span_id == parent.span_id]

    def tells(self, secret: str) -> bool:
        return any(secret.encode() in body for body in self.received)


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        self.server.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def attributes(span: Span) -> dict[str, Any]:
    """Return the attributes that are texts, numbers, or the first of several."""

    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return plain(value.array_value.values[0]) if kind == "array_value" else getattr(value, kind)

    return {item.key: plain(item.value) for item in span.attributes}


def statements(spans: list[Span]) -> list[str]:
    return [attributes(span).get("db.query.text", "") for span in spans]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def traced(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with the extra, as `synced` is one without."""
    project = Project(copy(template, tmp_path_factory.mktemp("traced") / "project", {}))
    project.run("uv", "sync", "--quiet", "--extra", "otel")
    return {"UV_PROJECT_ENVIRONMENT": str(project.path / ".venv"), "UV_NO_SYNC": "1"}


@pytest.fixture
def project(render: Render, traced: dict[str, str], database_url: DatabaseURL) -> Project:
    project = render()
    with_password = replace(database_url, password=PASSWORD)
    project.environment |= {**traced, "DATABASE_URL": with_password.libpq}
    return project


def test_a_request_and_its_statements_are_a_trace(project: Project, collector: Collector) -> None:
    project.make("migrate-up")
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    user = f'{{"email": "{VALUE}@example.com", "full_name": "{VALUE}"}}'
    with Service(project, {**collector.variables, "CODE_VERSION": "abc123"}) as service:
        headers = {"traceparent": f"00-{trace}-{parent}-01", "X-Request-ID": "its-id"}
        status, answer = service.ask("/users", user, **headers)
        assert status == 201
        user_id = re.findall(r'"id":"([^"]+)"', answer)[0]
        assert service.ask("/users", user)[0] == 409
        assert service.ask(f"/users/{user_id}")[0] == 200
        assert service.ask("/health/ready")[0] == 200
    assert collector.resource["service.name"] == "my-service"
    assert collector.resource["service.version"] == "abc123"
    created, conflict = collector.named("POST /users")
    assert (created.trace_id.hex(), created.parent_span_id.hex()) == (trace, parent)
    assert created.kind == Span.SPAN_KIND_SERVER
    known = attributes(created)
    assert known["http.request.method"] == "POST"
    assert known["http.route"] == "/users"
    assert known["http.response.status_code"] == 201
    assert known["http.response.header.x-request-id"] == "its-id"
    assert any(
        text.startswith("INSERT INTO users") for text in statements(collector.below(created))
    )
    assert all(span.trace_id == created.trace_id for span in collector.below(created))
    refused = next(span for span in collector.below(conflict) if span.name == "INSERT")
    assert refused.status.code == ERROR
    assert attributes(refused)["db.response.status_code"] == "23505"
    assert attributes(refused)["error.type"] == "asyncpg.exceptions.UniqueViolationError"
    read = collector.the("GET /users/{user_id}")
    assert [span.name for span in collector.below(read)] == ["SELECT"]
    # The health check and what it asks are not traced.
    assert {span.name for span in collector.spans if not span.parent_span_id} == {
        "POST /users",
        "GET /users/{user_id}",
    }
    assert not collector.tells(VALUE)
    assert not collector.tells(PASSWORD)
    assert re.search(rf"POST /users 201 .*trace_id={trace}", service.log)


def test_each_worker_sends_its_own(project: Project, collector: Collector) -> None:
    project.make("migrate-up")
    with Service(project, collector.variables, workers=2) as service:
        for _ in range(10):
            assert service.ask("/users")[0] == 200
    assert len(collector.named("GET /users")) == 10


def test_a_connection_that_fails_is_marked(project: Project, collector: Collector) -> None:
    address = f"postgresql://user:{PASSWORD}@127.0.0.1:{free_port()}/app"
    with Service(project, {**collector.variables, "DATABASE_URL": address}) as service:
        assert service.ask("/users")[0] == 503
    request = collector.the("GET /users")
    assert request.status.code == ERROR
    (connection,) = collector.below(request)
    assert (connection.name, connection.status.code) == ("CONNECT", ERROR)
    assert attributes(connection)["error.type"] == "ConnectionRefusedError"
    assert not collector.tells(PASSWORD)


def test_each_revision_is_a_span_of_the_command_s(project: Project, collector: Collector) -> None:
    second = add_revision(
        project,
        f"""
        op.execute("INSERT INTO users (id, email, full_name) VALUES (gen_random_uuid(), '{VALUE}', '')")
        """,
    )
    project.alembic("upgrade", "head", env=collector.variables)
    command = collector.the("migrations")
    assert (command.parent_span_id, command.status.code) == (b"", Status.STATUS_CODE_UNSET)
    first = collector.the("upgrade 3f1c9b7d5a20")
    assert {first.parent_span_id, collector.the(f"upgrade {second}").parent_span_id} == {
        command.span_id
    }
    assert "CREATE TABLE" in [span.name for span in collector.below(first)]
    inserted = statements(collector.below(collector.the(f"upgrade {second}")))[0]
    assert inserted.endswith("VALUES (gen_random_uuid(), ?, ?)")
    project.make("migrate-down", env=collector.variables)
    assert collector.the(f"downgrade {second}").status.code == Status.STATUS_CODE_UNSET
    assert not collector.tells(VALUE)
    assert not collector.tells(PASSWORD)


def test_a_revision_that_fails_says_where_and_not_with_what(
    project: Project, collector: Collector
) -> None:
    failing = add_revision(
        project,
        f"""
        for _ in range(2):
            op.execute("INSERT INTO users (id, email, full_name) VALUES "
                       "(gen_random_uuid(), '{VALUE}', '')")
        """,
    )
    done = project.alembic("upgrade", "head", expect=1, env=collector.variables)
    assert VALUE in done.stderr
    span = collector.the(f"upgrade {failing}")
    assert (span.status.code, span.status.message) == (ERROR, "UniqueViolationError")
    (event,) = span.events
    told = {item.key: item.value.string_value for item in event.attributes}
    assert told["exception.type"] == "asyncpg.exceptions.UniqueViolationError"
    place = rf'{project.revisions()[-1].name}", line \d+, in upgrade'
    assert re.search(place, told["exception.stacktrace"])
    assert collector.the("migrations").status.code == ERROR
    assert collector.the("upgrade 3f1c9b7d5a20").status.code == Status.STATUS_CODE_UNSET
    assert not collector.tells(VALUE)
    assert not collector.tells(PASSWORD)


def test_each_try_of_a_revision_is_seen(
    project: Project, collector: Collector, database: psycopg.Connection[TupleRow]
) -> None:
    project.make("migrate-up")
    held = add_revision(project, 'op.execute("ALTER TABLE users ADD COLUMN nick text")')
    variables = {**collector.variables, "MIGRATION_LOCK_TIMEOUT": "100ms"}
    with database.transaction():
        database.execute("LOCK TABLE users")
        project.alembic(
            "upgrade", "head", expect=1, env={**variables, "MIGRATION_LOCK_RETRIES": "1"}
        )
    tries = collector.named(f"upgrade {held}")
    assert [span.status.message for span in tries] == ["LockNotAvailableError"] * 2
    command = collector.the("migrations")
    assert [event.name for event in command.events] == ["trying again", "exception"]
    # What asks meanwhile who holds the table is no part of it.
    assert not any("pg_blocking_pids" in text for text in statements(collector.spans))


def add_revision(project: Project, upgrade: str) -> str:
    """Write a revision that follows the last one, and return its id."""
    project.make("migrate-create", "MSG=Change", "EMPTY=1", env={"ENVIRONMENT": "dev"})
    path = project.revisions()[-1]
    text = path.read_text(encoding="utf-8")
    body = "\n".join(f"    {line}" for line in dedent(upgrade).strip().splitlines())
    path.write_text(
        re.sub(r"(def upgrade.*?\n).*?(?=\n\n\ndef)", rf"\1{body}", text, flags=re.DOTALL)
    )
    match = re.search(r'^revision.* = "(\w+)"', text, re.MULTILINE)
    assert match
    return match[1]


@pytest.mark.parametrize("collector_is", ["away", "silent"])
def test_without_a_collector_all_goes_on_and_a_line_says_so(
    project: Project, collector_is: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1] if collector_is == "silent" else free_port()
        away = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        done = project.alembic("upgrade", "head", env=away)
        with Service(project, away) as service:
            assert service.ask("/users")[0] == 200
    assert done.stderr.count("do not reach the collector") == 1
    assert "Traceback" not in done.stderr
    assert service.log.count("do not reach the collector") == 1
    assert "Traceback" not in service.log


def test_what_is_wrong_in_the_variables_is_said_in_a_line(project: Project) -> None:
    wrong = {
        "OTEL_TRACES_EXPORTER": "jaeger",
        "OTEL_BSP_MAX_QUEUE_SIZE": "-1",
        "OTEL_PYTHON_FASTAPI_EXCLUDED_URLS": "(",
    }
    for name, value in wrong.items():
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", name: value}
        done = project.alembic("upgrade", "head", env=variables)
        assert done.stderr.count("Nothing is traced.") == 1
        assert "Traceback" not in done.stderr


def test_the_checks_pass_with_the_extra(project: Project) -> None:
    project.make("check")
