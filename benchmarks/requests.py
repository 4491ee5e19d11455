"""What requests cost: how many are answered, the slowest hundredth, the memory, the start."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from template.benchmarks.server import Server, ServerError, serving

from benchmarks.measure import Benchmark, Row, Sample, interleaved
from benchmarks.projects import Folder, database_url

FLOORS = Path(__file__).parent / "floors"
CONNECTIONS = 32
USERS = 1000
CREATE = """
import psycopg, sys
psycopg.connect(sys.argv[1], autocommit=True).execute("CREATE DATABASE bench")
"""
SEED = f"""
import asyncio
from uuid_utils.compat import uuid7
from core.config import get_settings
from core.database import create_engine
from apps.users.models import User
from sqlalchemy import insert

async def seed():
    users = [{{"id": uuid7(), "email": f"seed{{n}}@example.com", "full_name": f"Seed {{n}}"}} for n in range({USERS})]
    engine = create_engine(get_settings().url)
    async with engine.begin() as connection:
        await connection.execute(insert(User), users)
    await engine.dispose()
    print(*[user["id"] for user in users])

asyncio.run(seed())
"""


@contextmanager
def serve(
    folder: Folder, app: str, *options: str, ready: str, **variables: str
) -> Iterator[Server]:
    """Let uvicorn serve `app`, the project's or a floor, until the block ends."""
    environment = {**folder.environment, **variables}
    environment["PYTHONPATH"] += os.pathsep + str(FLOORS)
    try:
        with serving(
            app,
            *options,
            folder=folder.path,
            environment=environment,
            ready=ready,
            python=folder.python,
        ) as server:
            yield server
    except ServerError as error:
        sys.exit(str(error))


class Load:
    """Sends requests, from a process of its own: the project's `benchmarks.load`."""

    def __init__(self, folder: Folder, seconds: float) -> None:
        self._folder = folder
        self._seconds = seconds
        self._sent = 0

    def run(
        self, server: Server, requests: Sequence[dict[str, Any]], rate: float | None = None
    ) -> dict[str, Any]:
        """Send requests and return what came of them. One that fails ends the benchmark."""
        self._sent += 10_000_000
        load = {
            "port": server.port,
            "requests": requests,
            "connections": CONNECTIONS,
            "seconds": self._seconds,
            "warm_up": 0.5,
            "rate": rate,
            "first": self._sent,
        }
        done = subprocess.run(
            [self._folder.python, "-m", "benchmarks.load"],
            cwd=self._folder.path,
            env=self._folder.environment,
            input=json.dumps(load),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            sys.exit(f"{requests[0]}: {done.stderr}")
        result: dict[str, Any] = json.loads(done.stdout)
        if wrong := set(result["statuses"]) - {"200", "201"}:
            sys.exit(f"{requests[0]} was answered with {', '.join(wrong)}")
        return result

    def rate(self, server: Server, requests: Sequence[dict[str, Any]]) -> Sample:
        """Return how many requests a second are answered."""
        return Sample(self.run(server, requests)["rate"], server.peak_memory())

    def p99(self, server: Server, requests: Sequence[dict[str, Any]], rate: float) -> Sample:
        """Return the milliseconds that 99 of 100 answers take at most, at a steady rate."""
        return Sample(self.run(server, requests, rate)["p99"], server.peak_memory())


class Contest:
    """The project and the floors, each served, and what they are asked."""

    def __init__(self, bench: Benchmark, project: Folder, users: Sequence[str]) -> None:
        self.bench = bench
        self.load = Load(project, bench.of(25, 5) / 10)
        self.rounds = bench.of(5, 1)
        new = {"email": "u{n}@example.com", "full_name": "User {n}"}
        self.requests: dict[str, list[dict[str, Any]]] = {
            "read one user": [{"method": "GET", "path": f"/users/{user}"} for user in users],
            "create one": [{"method": "POST", "path": "/users", "body": new}],
            "list 50": [{"method": "GET", "path": "/users"}],
        }

    def rates(self, ours: Server, core: Server, starlette: Server) -> dict[str, dict[str, Sample]]:
        """Measure how many requests a second each answers; return it by request and server."""
        rates = {}
        for name, sent in self.requests.items():
            servers = {"project": ours, "floor": core, "starlette": starlette}
            contest = {
                who: partial(self.load.rate, server, sent) for who, server in servers.items()
            }
            best = rates[name] = interleaved(contest, self.rounds)
            self.bench.add(Row.of(name, "/s", best, at_least=0.7))
            self.bench.add(
                Row("  of Starlette + asyncpg", "/s", best["starlette"], best["project"])
            )
        return rates

    def waits(self, ours: Server, core: Server, rates: dict[str, dict[str, Sample]]) -> None:
        """Measure how long answers take at half of the rates."""
        for name, sent in self.requests.items():
            half = {who: rate.value / 2 for who, rate in rates[name].items()}
            contest = {
                "project": partial(self.load.p99, ours, sent, half["project"]),
                "floor": partial(self.load.p99, core, sent, half["floor"]),
            }
            waits = interleaved(contest, self.rounds)
            what = f"p99 of {name}, half the rate"
            self.bench.add(Row.of(what, "ms", waits, at_most=1.5))

    def live(self, ours: Server, constant: Server) -> None:
        """Measure the route that does nothing."""
        sent = [{"method": "GET", "path": "/health/live"}]
        contest = {
            "project": partial(self.load.rate, ours, sent),
            "floor": partial(self.load.rate, constant, sent),
        }
        rates = interleaved(contest, self.rounds)
        self.bench.add(Row.of("/health/live", "/s", rates, at_least=0.8))


def measure(bench: Benchmark, project: Folder) -> None:
    """Measure the service beside the floors."""
    url = database_url(project, "bench")
    project.run(project.python, "-c", CREATE, database_url(project, "postgres"))
    project.run(project.python, "-m", "alembic", "upgrade", "head", DATABASE_URL=url)
    users = project.run(project.python, "-c", SEED, DATABASE_URL=url).split()
    variables = {
        "ENVIRONMENT": "prod",
        "DATABASE_URL": url,
        "FLOOR_URL": url,
        "FLOOR_SQLALCHEMY_URL": url.replace("postgresql://", "postgresql+asyncpg://"),
    }
    _measure_start(bench, project, variables)
    contest = Contest(bench, project, users)
    with ExitStack() as stack:

        def begin(app: str, *options: str, ready: str = "/health/ready") -> Server:
            return stack.enter_context(serve(project, app, *options, ready=ready, **variables))

        ours = begin("main:create_app", "--factory")
        core = begin("core_app:app", "--no-access-log")
        starlette = begin("starlette_app:app", "--no-access-log")
        contest.live(ours, begin("constant_app:app", "--no-access-log", ready="/health/live"))
        rates = contest.rates(ours, core, starlette)
        contest.waits(ours, core, rates)
        memory = Sample(core.memory()), Sample(ours.memory())
        bench.add(Row("memory of the worker after it", "MB", *memory, at_most=1.3))


def _measure_start(bench: Benchmark, project: Folder, variables: dict[str, str]) -> None:
    def seconds(app: str, *options: str) -> Sample:
        started = time.perf_counter()
        with serve(project, app, *options, ready="/health/ready", **variables) as server:
            return Sample(time.perf_counter() - started, server.peak_memory())

    contest = {
        "floor": partial(seconds, "start_app:app"),
        "project": partial(seconds, "main:create_app", "--factory"),
    }
    starts = interleaved(contest, bench.of(5, 1))
    bench.add(Row.of("start until /health/ready", "s", starts, at_most=1.5))
