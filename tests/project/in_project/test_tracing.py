"""Traces, as far as they are without the extra that sends them."""

import logging
import subprocess
import sys
from typing import Any

import pytest

from alembic_safety import telemetry
from core import tracing
from core.project import ROOT


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EXPORTER_OTLP_ENDPOINT", "EXPORTER_OTLP_TRACES_ENDPOINT", "TRACES_EXPORTER"):
        monkeypatch.delenv(f"OTEL_{name}", raising=False)
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)


@pytest.fixture
def without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "core.trace_export", raising=False)
    for name in [name for name in sys.modules if name.startswith("opentelemetry.sdk")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)


def test_where_nobody_asks_the_sdk_is_not_imported() -> None:
    program = (
        "import asyncio, sys\n"
        "from main import create_app\n"
        "app = create_app()\n"
        "async def run():\n"
        "    async with app.router.lifespan_context(app):\n"
        "        pass\n"
        "asyncio.run(run())\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT / "src", capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, True),
        ({"EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, True),
        ({"TRACES_EXPORTER": "console"}, True),
        ({"TRACES_EXPORTER": "none", "EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, False),
        ({"SDK_DISABLED": "true", "EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, False),
    ],
)
@pytest.mark.usefixtures("without_the_extra")
def test_without_the_extra_a_line_says_what_to_install(
    variables: dict[str, str],
    wanted: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_{name}", value)
    with caplog.at_level(logging.WARNING):
        tracing.start()
    assert ["uv sync --extra otel" in message for message in caplog.messages] == [True] * wanted
    assert not tracing.is_on()


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT * FROM users WHERE id = $1", "SELECT * FROM users WHERE id = $1"),
        ("INSERT INTO t VALUES ('it''s', 'b')", "INSERT INTO t VALUES (?, ?)"),
        (r"SELECT E'a\'b', 'c\', 'd'", "SELECT ?, ?, ?"),
        ("ALTER ROLE app PASSWORD 'secret'", "ALTER ROLE app PASSWORD ?"),
        ("DO $$ BEGIN RAISE 'secret'; END $$", "DO ?"),
        ("SELECT $a$ it's $a$, 'b'", "SELECT ?, ?"),
        ("""SELECT "o'brien", 'b' FROM t""", """SELECT "o'brien", ? FROM t"""),
        ("SELECT 1 -- don't\n, 'b'", "SELECT 1 -- don't\n, ?"),
        ("/* don't */ SELECT 'b'", "/* don't */ SELECT ?"),
        ("SELECT '-- a', 'b'", "SELECT ?, ?"),
    ],
)
def test_a_statement_is_shown_without_what_is_quoted(statement: str, shown: str) -> None:
    assert telemetry.without_literals(statement) == shown


@pytest.mark.parametrize(
    ("given", "path", "excluded"),
    [
        (None, "/health/ready", True),
        (None, "/metrics", True),
        (None, "/users", False),
        ("/users$,/internal/", "/users", True),
        ("/users$,/internal/", "/users/1", False),
        ("/users$,/internal/", "/health/ready", False),
        ("", "/health/ready", False),
    ],
)
def test_which_requests_are_not_traced(
    given: str | None,
    path: str,
    excluded: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if given is not None:
        monkeypatch.setenv("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS", given)
    tracing.excluded_urls.cache_clear()
    scope: dict[str, Any] = {
        "type": "http",
        "path": path,
        "headers": [],
        "query_string": b"q=/metrics",
    }
    assert tracing.is_excluded({**scope, "scheme": "http", "server": ("test", 80)}) is excluded
    tracing.excluded_urls.cache_clear()
