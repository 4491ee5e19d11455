"""What /metrics says, by what a scraper would read there."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import httpx
import psycopg
import pytest
from alembic.script import ScriptDirectory
from fastapi import APIRouter, FastAPI
from prometheus_client.parser import text_string_to_metric_families
from psycopg.rows import TupleRow
from sqlalchemy import text
from tests.inside.support import Project
from tests.support import make_client, started_app

from alembic_safety import cli as migrations
from alembic_safety.config import make_config
from alembic_safety.database.url import DatabaseURL
from alembic_safety.state import SchemaReader, SchemaState
from core import metrics
from core.config import get_settings
from core.dependencies import SessionDep
from core.project import ROOT
from core.workers import forget_the_dead, share_counts

HAS_REVISIONS = bool(ScriptDirectory.from_config(make_config(ROOT)).get_heads())
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(exposition: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def states(samples: Samples) -> set[str]:
    """Return the states that are said to be the present one."""
    return {
        dict(labels)["state"]
        for (name, labels), number in samples.items()
        if name == "database_schema_state" and number == 1
    }


async def scrape(client: httpx.AsyncClient) -> Samples:
    response = await client.get("/metrics")
    assert response.status_code == 200
    return parse(response.text)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question is asked anew."""
    monkeypatch.setattr("main.MAX_AGE", 0.0)


@pytest.fixture
async def app(database_url: DatabaseURL, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FastAPI]:
    monkeypatch.setenv("DATABASE_POOL_SIZE", "2")
    monkeypatch.setenv("DATABASE_MAX_OVERFLOW", "0")
    async with started_app(database_url, monkeypatch) as app:
        router = APIRouter(prefix="/things")

        @router.get("/{number}")
        async def thing(number: int, session: SessionDep) -> int:
            await session.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": number / 1000})
            return number

        app.include_router(router, prefix="/api")
        yield app


async def test_requests_are_counted_and_timed_by_the_route_s_template(app: FastAPI) -> None:
    async with make_client(app) as client:
        before = await scrape(client)
        for path in ("/api/things/1", "/api/things/2", "/api/things/x", "/nowhere", "/api/nowhere"):
            await client.get(path)
        await client.request("BREW", "/api/things/1")
        after = await scrape(client)

    def more(name: str, method: str, route: str, status: str) -> float:
        labels = {"method": method, "route": route, "status": status}
        return (value(after, name, **labels) or 0) - (value(before, name, **labels) or 0)

    for name in ("http_requests_total", "http_request_duration_seconds_count"):
        assert more(name, "GET", "/api/things/{number}", "200") == 2
        assert more(name, "GET", "/api/things/{number}", "422") == 1
        assert more(name, "GET", "unmatched", "404") == 2
        assert more(name, "other", "/api/things/{number}", "405") == 1
    seconds = more("http_request_duration_seconds_sum", "GET", "/api/things/{number}", "200")
    assert seconds >= 0.003


async def test_the_pool_says_who_has_a_connection_and_who_waits(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "POOL_INTERVAL", 0.05)
    async with make_client(app) as client:
        slow = [asyncio.create_task(client.get("/api/things/3000")) for _ in range(5)]
        samples: Samples = {}
        async with asyncio.timeout(10):
            while value(samples, "database_pool_waiting_requests") != 3:
                samples = await scrape(client)
        assert value(samples, "database_pool_in_use_connections") == 2
        assert value(samples, "database_pool_idle_connections") == 0
        assert value(samples, "database_pool_max_connections") == 2
        for request in slow:
            request.cancel()
        await asyncio.wait(slow)
        async with asyncio.timeout(10):
            while value(samples, "database_pool_waiting_requests") != 0:
                samples = await scrape(client)


@pytest.mark.skipif(not HAS_REVISIONS, reason="the project has no revisions yet")
@pytest.mark.usefixtures("now")
async def test_the_schema_s_state_is_that_of_status_and_readiness(
    live_client: httpx.AsyncClient,
    postgresql: psycopg.Connection[TupleRow],
    capsys: pytest.CaptureFixture[str],
) -> None:
    heads = ScriptDirectory.from_config(make_config(ROOT)).get_heads()

    async def said() -> tuple[set[str], int, str]:
        samples = await scrape(live_client)
        ready = await live_client.get("/health/ready")
        assert await asyncio.to_thread(migrations.main, ["status"]) == 0
        return states(samples), ready.status_code, capsys.readouterr().out

    state, code, status = await said()
    assert (state, code) == ({"at head"}, 200)
    assert "The database is at head" in status
    samples = await scrape(live_client)
    assert value(samples, "database_schema_pending_revisions") == 0
    current = ",".join(sorted(heads))
    assert value(samples, "database_schema_info", current=current, head=current) == 1

    postgresql.execute("DELETE FROM alembic_version")
    postgresql.commit()
    state, code, status = await said()
    assert (state, code) == ({"behind"}, 503)
    assert "behind by" in status
    pending = value(await scrape(live_client), "database_schema_pending_revisions")
    assert pending == status.count("pending:")

    postgresql.execute("INSERT INTO alembic_version VALUES ('ff')")
    postgresql.commit()
    state, code, status = await said()
    assert (state, code) == ({"ahead"}, 200)
    assert "which this code does not have" in status

    postgresql.execute("DROP TABLE alembic_version")
    postgresql.commit()
    state, code, status = await said()
    assert (state, code) == ({"unversioned"}, 503)
    assert "never migrated" in status


@pytest.mark.usefixtures("now")
async def test_a_database_that_is_away_is_a_state_and_nothing_else_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = DatabaseURL.parse("postgresql://u:secret@127.0.0.1:1/app")
    async with started_app(url, monkeypatch) as app, make_client(app) as client:
        samples = await scrape(client)
        page = (await client.get("/metrics")).text
    assert states(samples) == {"unreachable"}
    assert value(samples, "database_schema_pending_revisions") is None
    assert "secret" not in page


@pytest.mark.usefixtures("now")
async def test_what_was_recorded_of_migrations_and_backups_is_there(
    project: Project,
    empty_database_url: DatabaseURL,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    started = time.time()
    monkeypatch.setenv("MIGRATION_BACKUP_FOLDER", str(tmp_path / "backups"))

    def migrate() -> None:
        project.write("a1")
        project.run("upgrade", "head")
        project.write("b2", "a1", "raise RuntimeError('halfway')")
        project.refused("upgrade", "head")
        get_settings.cache_clear()
        assert migrations.main(["backup"]) == 0

    await asyncio.to_thread(migrate)
    async with started_app(empty_database_url, monkeypatch) as app, make_client(app) as client:
        samples = await scrape(client)
    assert value(samples, "migration_last_info", revision="a1", direction="upgrade") == 1
    assert value(samples, "migration_failures_total") == 1
    assert value(samples, "database_invalid_indexes") == 0
    for name in (
        "migration_last_timestamp_seconds",
        "migration_last_failure_timestamp_seconds",
        "backup_last_timestamp_seconds",
    ):
        assert started - 1 <= (value(samples, name) or 0) <= time.time() + 1
    assert 0 < (value(samples, "migration_last_duration_seconds") or 0) < time.time() - started


@pytest.mark.usefixtures("now")
async def test_an_invalid_index_is_counted(
    live_client: httpx.AsyncClient, postgresql: psycopg.Connection[TupleRow]
) -> None:
    postgresql.execute("CREATE TABLE twice (number int)")
    postgresql.execute("INSERT INTO twice VALUES (1), (1)")
    postgresql.commit()
    # The record is what the question needs to be there.
    record = postgresql.execute("SELECT to_regclass('alembic_version_history')").fetchone()
    postgresql.commit()
    postgresql.autocommit = True
    with pytest.raises(psycopg.errors.UniqueViolation):
        postgresql.execute("CREATE UNIQUE INDEX CONCURRENTLY ON twice (number)")
    expected = 1 if record != (None,) else None
    assert value(await scrape(live_client), "database_invalid_indexes") == expected


@pytest.mark.usefixtures("now")
async def test_a_role_that_may_not_read_the_record_still_knows_the_state(
    database_url: DatabaseURL,
    postgresql: psycopg.Connection[TupleRow],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    role = f"reader_{os.getpid()}"
    postgresql.execute(f"CREATE ROLE {role} LOGIN".encode())
    postgresql.execute(
        "CREATE TABLE IF NOT EXISTS alembic_version (version_num text);"
        f"GRANT SELECT ON alembic_version TO {role}".encode()
    )
    postgresql.commit()
    url = replace(database_url, user=role, password=None)
    try:
        async with started_app(url, monkeypatch) as app, make_client(app) as client:
            samples = await scrape(client)
        assert states(samples) == {"at head"}
        assert value(samples, "migration_failures_total") is None
    finally:
        postgresql.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
        postgresql.commit()


async def test_many_that_ask_at_once_or_soon_again_are_one_question(
    live_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    ask = SchemaReader._run_query  # noqa: SLF001

    async def count(reader: SchemaReader) -> SchemaState:
        nonlocal asked
        asked += 1
        return await ask(reader)

    monkeypatch.setattr(SchemaReader, "_run_query", count)
    monkeypatch.setattr("main.MAX_AGE", 3600.0)
    await asyncio.gather(*(live_client.get("/health/ready") for _ in range(20)))
    await live_client.get("/metrics")
    assert asked == 1


async def test_who_asks_later_is_answered_too_when_the_first_one_s_patience_ends(
    live_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_reader: SchemaReader) -> SchemaState:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(SchemaReader, "_run_query", hang)
    first = asyncio.create_task(live_client.get("/health/ready"))
    await asyncio.sleep(0.5)
    answers = await asyncio.gather(
        first, live_client.get("/health/ready"), live_client.get("/metrics")
    )
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert states(parse(answers[2].text)) == {"unreachable"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def test_a_port_of_their_own_takes_them_off_the_service_s(
    database_url: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("METRICS_PORT", str(port))
    async with started_app(database_url, monkeypatch) as app, make_client(app) as client:
        assert (await client.get("/metrics")).status_code == 404
        async with httpx.AsyncClient(trust_env=False) as scraper:
            page = await scraper.get(f"http://127.0.0.1:{port}/metrics")
        assert len(states(parse(page.text))) == 1
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


async def test_a_port_that_is_taken_is_said_and_the_service_goes_on(
    database_url: DatabaseURL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("METRICS_PORT", str(other.getsockname()[1]))
        async with started_app(database_url, monkeypatch) as app, make_client(app) as client:
            assert (await client.get("/health/live")).status_code == 200
    assert "METRICS_PORT: no metrics on 127.0.0.1:" in caplog.text


async def test_switched_off_there_are_none(
    database_url: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICS", "false")
    async with started_app(database_url, monkeypatch) as app, make_client(app) as client:
        assert (await client.get("/metrics")).status_code == 404
        assert (await client.get("/health/ready")).status_code == 200


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
async def test_names_and_units_are_those_of_prometheus(app: FastAPI) -> None:
    async with make_client(app) as client:
        await client.get("/api/things/1")
        page = await client.get("/metrics")
    done = await asyncio.to_thread(
        subprocess.run,
        ["promtool", "check", "metrics"],
        input=page.content,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_folders_of_services_that_have_ended_go_and_those_that_begin_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "service-metrics-own"))
    beginning, ended = tmp_path / "service-metrics-a", tmp_path / "service-metrics-b"
    for folder in (beginning, ended):
        folder.mkdir()
    os.utime(ended, (0, 0))
    share_counts()
    assert {path.name for path in tmp_path.iterdir()} == {
        "service-metrics-own",
        "service-metrics-a",
    }


def test_the_gauges_of_a_worker_that_has_ended_are_forgotten(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid in (ended.pid, os.getpid()):
        (tmp_path / f"gauge_livesum_{pid}.db").touch()
        (tmp_path / f"counter_{pid}.db").touch()
    forget_the_dead(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {
        f"gauge_livesum_{os.getpid()}.db",
        f"counter_{os.getpid()}.db",
        f"counter_{ended.pid}.db",
    }


@pytest.fixture
def serve(database_url: DatabaseURL, tmp_path: Path) -> Callable[..., "subprocess.Popen[bytes]"]:
    def start(*arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "uvicorn", "--app-dir", "src", "--factory"]
        return subprocess.Popen(
            [*command, "main:create_app", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "DATABASE_URL": database_url.libpq,
                "TMPDIR": str(tmp_path),
                **environment,
            },
        )

    return start


def test_several_workers_count_together(
    serve: Callable[..., "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = serve("--workers", "2", "--port", str(port), DATABASE_POOL_SIZE="3")
    try:
        deadline = time.monotonic() + 60
        answered = 0
        while time.monotonic() < deadline:
            try:
                # A connection for each, so that they spread over the workers.
                httpx.get(f"{url}/health/live", trust_env=False).raise_for_status()
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            answered += 1
            if answered >= 40 and len(list(tmp_path.rglob("counter_*.db"))) == 2:
                break
        pages = [httpx.get(f"{url}/metrics", trust_env=False).text for _ in range(4)]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    for page in pages:
        samples = parse(page)
        labels = {"method": "GET", "route": "/health/live", "status": "200"}
        assert value(samples, "http_requests_total", **labels) == answered
        assert value(samples, "database_pool_max_connections") == 2 * 3
        assert len(states(samples)) == 1
