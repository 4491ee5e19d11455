"""What holds for every route: health, errors, request ids, and the session of a request."""

import asyncio
import json
import logging
import re
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace

import asyncpg
import httpx
import psycopg
import pytest
from alembic.script import ScriptDirectory
from fastapi import BackgroundTasks, FastAPI, HTTPException
from psycopg.rows import TupleRow
from pydantic import BaseModel
from sqlalchemy import text
from tests.support import make_client, started_app

from alembic_safety.config import make_config
from alembic_safety.database.url import DatabaseURL
from core.config import Environment, Settings, get_settings
from core.dependencies import SessionDep
from core.errors import ConflictError, NotFoundError
from core.logging import configure_logging
from core.project import ROOT
from core.request_id import request_id
from main import create_app

PROD = {"ENVIRONMENT": "prod"}


class Number(BaseModel):
    number: int


def add_test_routes(app: FastAPI) -> None:
    @app.post("/test/rows")
    async def add_row(data: Number, session: SessionDep) -> Number:
        await session.execute(text("INSERT INTO test_rows VALUES (:number)"), data.model_dump())
        if data.number < 0:
            raise NotFoundError("no negative numbers")
        return data

    @app.get("/test/status")
    async def answer(code: int) -> None:
        raise HTTPException(code)

    @app.get("/test/conflict")
    async def conflict() -> None:
        raise ConflictError("it is taken")

    @app.get("/test/unexpected")
    async def unexpected() -> None:
        raise RuntimeError("a secret detail")

    @app.get("/test/sql")
    async def sql(statement: str, session: SessionDep) -> None:
        await session.execute(text(statement))


@pytest.fixture
async def app_of_live(
    database_url: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[FastAPI]:
    async with started_app(database_url, monkeypatch) as app:
        add_test_routes(app)
        yield app


@pytest.fixture
async def live(app_of_live: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with make_client(app_of_live) as client:
        create = "CREATE TABLE test_rows (number int UNIQUE DEFERRABLE INITIALLY DEFERRED)"
        await client.get("/test/sql", params={"statement": create})
        yield client


async def test_the_process_is_alive_without_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    url = DatabaseURL.parse("postgresql://u:p@127.0.0.1:1/app")
    async with started_app(url, monkeypatch) as app, make_client(app) as client:
        response = await client.get("/health/live")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_a_migrated_database_is_ready(live_client: httpx.AsyncClient) -> None:
    response = await live_client.get("/health/ready")
    assert response.status_code == 200
    heads = ScriptDirectory.from_config(make_config(ROOT)).get_heads()
    assert response.json()["current"] == response.json()["head"] == next(iter(heads), None)


@pytest.mark.skipif(
    not ScriptDirectory.from_config(make_config(ROOT)).get_heads(),
    reason="the project has no revisions yet",
)
async def test_a_database_that_was_not_migrated_is_not_ready(
    empty_database_url: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started_app(empty_database_url, monkeypatch) as app, make_client(app) as client:
        response = await client.get("/health/ready")
    assert response.status_code == 503
    assert "never migrated" in response.json()["detail"]


async def test_on_a_database_of_a_newer_release_it_goes_on_serving(
    live: httpx.AsyncClient,
) -> None:
    for statement in (
        "CREATE TABLE IF NOT EXISTS alembic_version (version_num text)",
        "DELETE FROM alembic_version",
        "INSERT INTO alembic_version VALUES ('ff')",
    ):
        await live.get("/test/sql", params={"statement": statement})
    response = await live.get("/health/ready")
    assert response.status_code == 200
    assert (response.json()["schema_state"], response.json()["current"]) == ("ahead", "ff")


@pytest.mark.parametrize("server", ["away", "silent"])
async def test_without_an_answer_of_the_database_there_is_one_within_two_seconds(
    server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(10)
        writer.close()

    listener = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    if server == "away":
        listener.close()
    url = DatabaseURL.parse(f"postgresql://u:secret@127.0.0.1:{port}/app")
    async with started_app(url, monkeypatch) as app, make_client(app) as client:
        async with asyncio.timeout(2):
            response = await client.get("/health/ready")
        listener.close()
    assert response.status_code == 503
    assert response.json()["detail"] == "The database is unreachable."
    [said] = {r.getMessage() for r in caplog.records if r.name == "core.health"}
    assert said.startswith("the database is unreachable: ")
    assert "secret" not in said


async def test_what_a_request_did_is_committed_before_the_answer(live: httpx.AsyncClient) -> None:
    assert (await live.post("/test/rows", json={"number": 1})).status_code == 200
    # The second row breaks the constraint at the commit, not before.
    response = await live.post("/test/rows", json={"number": 1})
    assert response.status_code == 409


async def test_an_error_rolls_back(live: httpx.AsyncClient) -> None:
    assert (await live.post("/test/rows", json={"number": -1})).status_code == 404
    assert (await live.post("/test/rows", json={"number": 2})).status_code == 200
    only_one = "SELECT 1 / (CASE WHEN count(*) = 1 THEN 1 ELSE 0 END) FROM test_rows"
    assert (await live.get("/test/sql", params={"statement": only_one})).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        ("GET", "/nowhere", 404, None),
        ("DELETE", "/health/live", 405, None),
        ("GET", "/test/conflict", 409, "it is taken"),
        ("GET", "/test/status?code=499", 499, None),
        (
            "GET",
            "/test/unexpected",
            500,
            "An unexpected error occurred. The log has more under the request id.",
        ),
        ("GET", "/test/sql?statement=SELECT+1/0", 500, None),
        ("POST", "/test/rows", 422, "The request is not valid."),
    ],
)
async def test_every_error_is_a_problem(
    live: httpx.AsyncClient, method: str, path: str, status: int, detail: str | None
) -> None:
    response = await live.request(method, path, headers={"X-Request-ID": "abc-1"})
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert (problem["status"], problem["request_id"]) == (status, "abc-1")
    assert problem["instance"] == path.partition("?")[0]
    assert problem["title"]
    assert "secret" not in response.text
    if detail is not None:
        assert problem["detail"] == detail


async def test_a_status_without_a_body_has_none(live: httpx.AsyncClient) -> None:
    response = await live.get("/test/status", params={"code": 304})
    assert (response.status_code, response.content) == (304, b"")


async def test_a_busy_pool_is_no_reason_to_be_taken_out(
    database_url: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_POOL_SIZE", "1")
    monkeypatch.setenv("DATABASE_MAX_OVERFLOW", "0")
    async with started_app(database_url, monkeypatch) as app, make_client(app) as client:
        add_test_routes(app)
        sleep = {"statement": "SELECT pg_sleep(0.5)"}
        busy = asyncio.create_task(client.get("/test/sql", params=sleep))
        await asyncio.sleep(0.1)
        assert (await client.get("/health/ready")).status_code == 200
        assert not busy.done()
        await busy


@pytest.mark.parametrize(
    "address",
    ["postgresql://u:p@127.0.0.1:1/app", "postgresql://u:p@/app?host=/nowhere"],
)
async def test_a_database_that_goes_away_is_503(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    url = DatabaseURL.parse(address)
    async with started_app(url, monkeypatch) as app, make_client(app) as client:
        add_test_routes(app)
        response = await client.get("/test/sql", params={"statement": "SELECT 1"})
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")


def limit_statements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_COMMAND_TIMEOUT", "0.5")
    monkeypatch.setenv("DATABASE_POOL_SIZE", "1")
    monkeypatch.setenv("DATABASE_MAX_OVERFLOW", "0")
    monkeypatch.setenv("DATABASE_POOL_TIMEOUT", "60")


async def test_a_statement_that_takes_too_long_is_503_and_cancelled(
    database_url: DatabaseURL,
    postgresql: psycopg.Connection[TupleRow],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limit_statements(monkeypatch)
    monkeypatch.setattr("alembic_safety.database.connection.CLOSE_TIMEOUT", 30)
    async with started_app(database_url, monkeypatch) as app, make_client(app) as client:
        add_test_routes(app)
        sleep = {"statement": "SELECT pg_sleep(60)"}
        with caplog.at_level(logging.WARNING):
            response = await client.get("/test/sql", params=sleep)
        running = (
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
            " AND state = 'active' AND datname = current_database()"
        )
        assert postgresql.execute(running).fetchall() == [(0,)]
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert response.json()["detail"] == "The database did not answer in time."
        assert [record.name for record in caplog.records] == ["core.database_errors"]
        assert "no answer within 0.5 s" in caplog.text
        assert "Traceback" not in caplog.text
        # The only connection of the pool
        assert (await client.get("/test/sql", params={"statement": "SELECT 1"})).status_code == 200


class Relay:
    """Stands between the service and the server, and can fall silent."""

    def __init__(self, server: psycopg.ConnectionInfo) -> None:
        self.server = server
        self.url: DatabaseURL
        self.talks = asyncio.Event()
        self.talks.set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.server.host, self.server.port
        if host.startswith("/"):
            there = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            there = await asyncio.open_connection(host, port)
        await asyncio.gather(self.pass_on(reader, there[1]), self.pass_on(there[0], writer))

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await self.talks.wait()
                writer.write(data)
        writer.close()


@pytest.fixture
async def relay(
    database_url: DatabaseURL, postgresql: psycopg.Connection[TupleRow]
) -> AsyncIterator[Relay]:
    relay = Relay(postgresql.info)
    listener = await asyncio.start_server(relay.accept, "127.0.0.1", 0)
    address = ("127.0.0.1", listener.sockets[0].getsockname()[1])
    relay.url = replace(database_url, hosts=(address,), query=(("sslmode", "disable"),))
    yield relay
    listener.close()


@pytest.mark.parametrize("moment", ["between statements", "in a statement", "before a rollback"])
async def test_a_server_that_falls_silent_is_503_until_it_talks_again(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    limit_statements(monkeypatch)
    async with started_app(relay.url, monkeypatch) as app, make_client(app) as client:
        add_test_routes(app)

        @app.get("/test/silence")
        async def fall_silent(session: SessionDep) -> None:
            await session.execute(text("SELECT 1"))
            relay.talks.clear()
            if moment == "in a statement":
                await session.execute(text("SELECT 1"))
            elif moment == "before a rollback":
                raise ConflictError("to be rolled back")

        select = {"statement": "SELECT 1"}
        assert (await client.get("/test/sql", params=select)).status_code == 200
        async with asyncio.timeout(60):
            if moment == "between statements":
                relay.talks.clear()
                response = await client.get("/test/sql", params=select)
            else:
                response = await client.get("/test/silence")
        assert response.status_code == 503
        relay.talks.set()
        assert (await client.get("/test/sql", params=select)).status_code == 200


async def test_the_application_stops_though_the_server_is_silent(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(60), started_app(relay.url, monkeypatch) as app:
        add_test_routes(app)
        async with make_client(app) as client:
            assert (await client.get("/health/ready")).status_code == 200
            response = await client.get("/test/sql", params={"statement": "SELECT 1"})
            assert response.status_code == 200
        relay.talks.clear()


async def test_a_column_of_another_type_is_503_once(
    live: httpx.AsyncClient, postgresql: psycopg.Connection[TupleRow]
) -> None:
    select = {"statement": "SELECT number FROM test_rows"}
    assert (await live.get("/test/sql", params=select)).status_code == 200
    postgresql.execute("ALTER TABLE test_rows ALTER number TYPE bigint")
    postgresql.commit()
    response = await live.get("/test/sql", params=select)
    assert response.status_code == 503
    assert response.json()["detail"] == "The schema has just changed."
    assert (await live.get("/test/sql", params=select)).status_code == 200


async def test_a_body_that_is_too_large_is_413(live: httpx.AsyncClient) -> None:
    async def in_pieces() -> AsyncIterator[bytes]:  # without a Content-Length
        for _ in range(1025):
            yield b" " * 1024

    json = {"Content-Type": "application/json"}
    fits = b'{"number": 1}'.ljust(1_048_576)
    assert (await live.post("/test/rows", content=fits, headers=json)).status_code == 200
    for content in (fits + b" ", in_pieces()):
        response = await live.post("/test/rows", content=content, headers=json)
        assert response.status_code == 413


async def test_a_slash_too_many_leads_nowhere(live: httpx.AsyncClient) -> None:
    response = await live.get("/health/live/", headers={"Host": "elsewhere.example"})
    assert response.status_code == 404


@pytest.mark.parametrize(
    ("variables", "status"),
    [({}, 200), ({"API_DOCS": "no"}, 404), (PROD, 404), ({**PROD, "API_DOCS": "yes"}, 200)],
)
async def test_prod_has_no_docs_unless_it_is_told(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], status: int
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    async with make_client(create_app()) as client:
        for path in ("/docs", "/redoc", "/openapi.json"):
            assert (await client.get(path)).status_code == status
    get_settings.cache_clear()


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-123", True), ("a b", False), ("x" * 200, False), ("", False)]
)
async def test_a_request_id_is_kept_or_made(
    client: httpx.AsyncClient, given: str, kept: bool
) -> None:
    response = await client.get("/health/live", headers={"X-Request-ID": given})
    assert (response.headers["X-Request-ID"] == given) is kept
    assert response.headers["X-Request-ID"]


async def test_requests_are_logged_and_good_answers_to_probes_for_debug_alone(
    live: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="service.access")
    for path in ("/health/live", "/metrics", "/openapi.json", "/health/lost"):
        await live.get(path)
    lines = {record.getMessage(): record for record in caplog.records}
    levels = {line: record.levelno for line, record in lines.items() if line.startswith("GET /")}
    assert levels == {
        "GET /health/live 200": logging.DEBUG,
        "GET /metrics 200": logging.DEBUG,
        "GET /openapi.json 200": logging.INFO,
        "GET /health/lost 404": logging.INFO,
    }
    assert lines["GET /openapi.json 200"].__dict__["duration_ms"] >= 0


async def test_a_background_task_is_no_part_of_the_answer_and_its_error_has_the_request_s_id(
    live: httpx.AsyncClient, app_of_live: FastAPI
) -> None:
    lines: list[tuple[str, float, str | None]] = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            duration = record.__dict__.get("duration_ms", 0)
            lines.append((record.getMessage(), duration, request_id()))

    async def fail() -> None:
        await asyncio.sleep(0.3)
        raise RuntimeError("of a task")

    @app_of_live.post("/test/tasks")
    async def begin(tasks: BackgroundTasks) -> None:
        tasks.add_task(fail)

    noting = Noting(logging.INFO)
    for name in ("service.access", "core.errors"):
        logging.getLogger(name).addHandler(noting)
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        response = await live.post("/test/tasks", headers={"X-Request-ID": "its-id"})
    finally:
        for name in ("service.access", "core.errors"):
            logging.getLogger(name).removeHandler(noting)
    assert response.status_code == 200
    (access, duration, access_id), (failed, _, failed_id) = lines
    assert access == "POST /test/tasks 200"
    assert duration < 300
    assert failed == "a background task of POST /test/tasks failed"
    assert access_id == failed_id == "its-id"


@pytest.fixture
def log_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Environment], list[str]]:
    def lines(environment: Environment) -> list[str]:
        monkeypatch.setattr(logging.getLogger(), "handlers", [])  # those of pytest
        log_errors(environment)
        return capsys.readouterr().err.splitlines()

    return lines


def log_errors(environment: Environment) -> None:
    settings = Settings(
        environment=environment, database_url=DatabaseURL.parse("postgresql://u:p@db/app")
    )
    configure_logging(settings)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("mine").exception("it %s", "failed", extra={"order": 7})
    refused = asyncpg.UniqueViolationError("a key of uq_users_email is taken")
    refused.detail = "Key (email, text)=(ada@example.com, two\n\nlines of hers) already exists."
    refused.hint = "Take another one."
    logging.getLogger("mine").error("refused: %s", refused, exc_info=refused)
    warnings.warn("it is old", DeprecationWarning, stacklevel=1)


def test_prod_logs_one_json_object_a_line(
    log_lines: Callable[[Environment], list[str]],
) -> None:
    record, refused, warning = map(json.loads, log_lines(Environment.PROD))
    assert record["event"] == "it failed"
    assert (record["level"], record["logger"], record["order"]) == ("error", "mine", 7)
    assert "ValueError: broken" in record["exception"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record["timestamp"])
    # What PostgreSQL quotes of rows is not there, what broke is.
    taken = "a key of uq_users_email is taken\nHINT:  Take another one."
    assert refused["event"] == f"refused: {taken}"
    assert "uq_users_email is taken" in refused["exception"]
    assert "ada@example.com" not in str(refused)
    assert "of hers" not in str(refused)
    assert (warning["level"], warning["logger"]) == ("warning", "py.warnings")
    assert "DeprecationWarning: it is old" in warning["event"]


def test_dev_logs_for_people(log_lines: Callable[[Environment], list[str]]) -> None:
    assert "it failed" in log_lines(Environment.DEV)[0]


def test_logging_that_the_caller_set_up_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = logging.NullHandler()
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    configure_logging(Settings(environment=Environment.TEST))
    assert logging.getLogger().handlers == [handler]
