"""`make bench-app`: how fast the service answers, route by route.

It serves the project with one worker, as in prod, on a database of its own that is made for it and
dropped after it. What is asked: each GET that needs no parameter, and what the `benchmark.py` of an
app's tests says.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psycopg

from benchmarks.load import Load, Request, Result
from benchmarks.server import Server, ServerError, serving
from core.config import Environment, SettingsError, get_settings
from core.database_url import DatabaseURL
from core.embedded_postgres import EmbeddedPostgresError
from core.migrations.errors import MigrationError
from core.migrations.source.git import find_commit, open_archive
from core.project import ROOT, load_project

LIVE = "GET /health/live"
WARM_UP = 1.0
"""Seconds before each measurement; a new server opens its connections then."""
_WRITTEN = ROOT / "benchmarks" / "last.json"
_NOT_ITS_OWN = (
    "DATABASE_POOLER",
    "METRICS_PORT",
    "MIGRATION_DATABASE_URL",
    "PROMETHEUS_MULTIPROC_DIR",
    "SQLALCHEMY_DATABASE_URI",
    "WEB_CONCURRENCY",
)
"""Variables that are left out of its environment."""
_NUMBERS = 10**9
"""Of requests: each load has this many of its own, so that no row is made twice."""


class BenchmarkError(Exception):
    """The service can't be measured. The message says why, and what to do."""


@dataclass
class Figures:
    """What was measured of a route on one tree: a value for each round."""

    rates: list[float] = field(default_factory=list)
    p50s: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)

    def medians(self) -> tuple[float, float, float]:
        """Return answers a second, and the milliseconds of p50 and p99 at half that rate."""
        rate, p50, p99 = map(statistics.median, (self.rates, self.p50s, self.p99s))
        return rate, p50, p99


class Tree:
    """A checkout of the project that is being served, and its routes."""

    def __init__(self, server: Server) -> None:
        self.server = server
        with httpx.Client(
            base_url=f"http://127.0.0.1:{server.port}", trust_env=False, timeout=30
        ) as client:
            plain = {f"GET {path}": path for path in _plain_paths(client)}
            self.routes = _own_routes(client)
            faults = {
                route: _fault(client, path)
                for route, path in plain.items()
                if route not in self.routes
            }
        self.left_out = {route: fault for route, fault in faults.items() if fault}
        self.routes |= {
            route: [Request("GET", plain[route])] for route, fault in faults.items() if not fault
        }
        self.figures = {name: Figures() for name in self.routes}
        self._loads = 0

    def measure(self, route: str, seconds: float) -> None:
        """Measure a route once: as many requests as are answered, then half as many."""
        figures = self.figures[route]
        rate = self._send(route, seconds).rate
        paced = self._send(route, seconds, rate / 2)
        figures.rates.append(rate)
        figures.p50s.append(paced.p50)
        figures.p99s.append(paced.p99)

    def _send(self, route: str, seconds: float, rate: float | None = None) -> Result:
        self._loads += 1
        load = Load(
            port=self.server.port,
            requests=tuple(self.routes[route]),
            seconds=seconds,
            warm_up=WARM_UP,
            rate=rate,
            first=self._loads * _NUMBERS,
        )
        try:
            result = load.send()
        except (OSError, TimeoutError) as error:
            raise BenchmarkError(f"{route}: {error or type(error).__name__}") from None
        if wrong := [status for status in result.statuses if status >= 400]:  # noqa: PLR2004
            raise BenchmarkError(
                f"{route} was answered with {wrong[0]}: it can't be measured. What is sent stands in "
                "the benchmark.py of its app's tests; `make dev` shows what is wrong with it."
            )
        if not result.rate:
            raise BenchmarkError(f"{route}: no answer in {seconds:g} s")
        return result


def _plain_paths(client: httpx.Client) -> list[str]:
    """Return the path of each GET of the API that needs no parameter."""
    api = client.get("/openapi.json")
    return [
        path
        for path, methods in (api.json()["paths"].items() if api.is_success else ())
        if "get" in methods and not _needs_parameter(methods["get"])
    ]


def _fault(client: httpx.Client, path: str) -> str:
    """Return why a GET can't be measured, because somebody has to log in for example."""
    try:
        response = client.get(path, timeout=5)
    except httpx.HTTPError as error:
        return type(error).__name__
    return "" if response.is_success else str(response.status_code)


def _needs_parameter(operation: Mapping[str, list[dict[str, object]]]) -> bool:
    return any(parameter.get("required") for parameter in operation.get("parameters", []))


def _own_routes(client: httpx.Client) -> dict[str, list[Request]]:
    """Return what the `benchmark.py` of each app's tests has to send."""
    routes: dict[str, list[Request]] = {}
    for file in sorted((ROOT / "tests" / "apps").glob("*/benchmark.py")):
        module = importlib.import_module(f"tests.apps.{file.parent.name}.benchmark")
        routes |= module.requests(client)
    return routes


@contextmanager
def _database(server: DatabaseURL, name: str) -> Iterator[DatabaseURL]:
    """Make a database, and drop it when the block ends."""
    with psycopg.connect(server.libpq, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            yield server.with_database(name)
        finally:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())


@contextmanager
def _tree(folder: Path, url: DatabaseURL) -> Iterator[Tree]:
    """Migrate the database of a checkout, and serve the checkout from it."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder / "src"),
        "DATABASE_URL": url.libpq,
        "MIGRATION_BACKUP": "off",
        "ENVIRONMENT": "prod",
        "OTEL_SDK_DISABLED": "true",
    }
    for name in _NOT_ITS_OWN:
        environment.pop(name, None)
    migrated = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if migrated.returncode != 0:
        where = "here" if folder == ROOT else "at BASE"
        raise BenchmarkError(f"the migrations {where} fail: {migrated.stderr.strip()}")
    with serving("--factory", "main:create_app", folder=folder, environment=environment) as server:
        yield Tree(server)


@contextmanager
def _checkout(base: str) -> Iterator[Path]:
    """Put the project as it is in a commit into a folder, until the block ends."""
    commit = find_commit(base, variable="BASE")
    with tempfile.TemporaryDirectory() as folder, open_archive(commit) as archive:
        archive.extractall(folder, filter="data")
        yield Path(folder)


def measure(*, only: str, base: str, seconds: float, rounds: int) -> dict[str, dict[str, Figures]]:
    """Measure the routes that contain `only`, here and at the commit `base` where one is given.

    Returns the figures of each route by tree: `now`, and `base`.

    Raises:
        BenchmarkError: something can't be measured.
    """
    settings = get_settings()
    if settings.environment is Environment.PROD:
        raise BenchmarkError("ENVIRONMENT=prod: the benchmark is for other machines than those")
    server = settings.url.with_database("postgres")
    name = f"{load_project().name}_bench_{os.getpid()}"
    with ExitStack() as stack:
        folders = {"now": ROOT}
        if base:
            folders["base"] = stack.enter_context(_checkout(base))
        trees = {
            key: stack.enter_context(
                _tree(folder, stack.enter_context(_database(server, f"{name}_{key}")))
            )
            for key, folder in folders.items()
        }
        for route, fault in trees["now"].left_out.items():
            if only in route:
                print(f"{route} is not measured: its answer is {fault}", file=sys.stderr)
        routes = [route for route in trees["now"].routes if only in route]
        if not routes:
            raise BenchmarkError(
                f"ONLY={only}: there is no such route; there are {', '.join(trees['now'].routes)}"
            )
        print(
            _HEAD.format("", "requests/s", "p50 ms", "p99 ms", "of live", "of BASE" if base else "")
        )
        for route in sorted(routes, key=lambda route: route != LIVE):
            for _ in range(rounds):
                for tree in trees.values():
                    if route in tree.routes:
                        tree.measure(route, seconds)
            _show(route, trees)
    return {
        key: {route: tree.figures[route] for route in routes if route in tree.figures}
        for key, tree in trees.items()
    }


_HEAD = "{:<40}{:>11}{:>10}{:>10}{:>10}{:>10}"
_LINE = "{:<40}{:>11,.0f}{:>10.2f}{:>10.2f}{:>10}{:>10}"


def _show(route: str, trees: Mapping[str, Tree]) -> None:
    rate, p50, p99 = trees["now"].figures[route].medians()
    live = trees["now"].figures.get(LIVE)
    of_live = f"{rate / live.medians()[0]:.2f} x" if live and live.rates else ""
    base = trees["base"].figures.get(route) if "base" in trees else None
    of_base = f"{rate / base.medians()[0]:.2f} x" if base else ""
    print(_LINE.format(route, rate, p50, p99, of_live, of_base), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table and write it; return the exit code."""
    parser = argparse.ArgumentParser(prog="make bench-app", description=__doc__)
    parser.add_argument("--only", default="", help="a part of the routes' names")
    parser.add_argument("--base", default="", help="a commit to measure beside this tree")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of which the medians are shown")
    given = parser.parse_args(arguments)
    try:
        figures = measure(**vars(given))
    except (
        BenchmarkError,
        EmbeddedPostgresError,
        MigrationError,
        ServerError,
        SettingsError,
        httpx.HTTPError,
        psycopg.Error,
    ) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    table = {
        key: {
            route: dict(zip(("rate", "p50", "p99"), of.medians(), strict=True))
            for route, of in routes.items()
        }
        for key, routes in figures.items()
    }
    _WRITTEN.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print(f"\nOne worker, {Load.connections} connections; p50 and p99 at half the rate. ", end="")
    print(f"Also in {_WRITTEN.relative_to(ROOT)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
