"""The speed of requests, their p99, the memory of the service, and the time it takes to start."""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.load import Load, Request, Result
from benchmarks.measure import Benchmark, Row, Sample, interleaved
from benchmarks.projects import Folder, database_url
from benchmarks.server import Server, ServerError, serving

FLOORS = Path(__file__).parent / "floors"
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


class Sender:
    """A process that sends requests."""

    def __init__(self, processes: ProcessPoolExecutor, seconds: float) -> None:
        self._processes = processes
        self._seconds = seconds
        self._sent = 0

    def send(
        self, server: Server, requests: Sequence[Request], rate: float | None = None
    ) -> Result:
        """Send requests and return the figures. A request that fails ends the benchmark."""
        self._sent += 10_000_000
        load = Load(
            port=server.port,
            requests=requests,
            seconds=self._seconds,
            rate=rate,
            first=self._sent,
        )
        try:
            result = self._processes.submit(load.send).result()
        except OSError as error:  # TimeoutError is one
            sys.exit(f"{requests[0]}: {error or type(error).__name__}")
        if wrong := set(result.statuses) - {200, 201}:
            sys.exit(f"{requests[0]} was answered with {', '.join(map(str, wrong))}")
        return result

    def rate(self, server: Server, requests: Sequence[Request]) -> Sample:
        """Return the answers a second."""
        return Sample(self.send(server, requests).rate, server.peak_memory())

    def p99(self, server: Server, requests: Sequence[Request], rate: float) -> Sample:
        """Return the milliseconds within which 99 % of the answers come at a steady rate."""
        return Sample(self.send(server, requests, rate).p99, server.peak_memory())


class Contest:
    """The same requests to the project and to the floors."""

    def __init__(self, bench: Benchmark, sender: Sender, users: Sequence[str]) -> None:
        self.bench = bench
        self.sender = sender
        self.rounds = bench.of(5, 1)
        new = json.dumps({"email": "u{n}@example.com", "full_name": "User {n}"})
        self.requests = {
            "read one user": [Request("GET", f"/users/{user}") for user in users],
            "create one": [Request("POST", "/users", new)],
            "list 50": [Request("GET", "/users")],
        }

    def rates(self, ours: Server, core: Server, starlette: Server) -> dict[str, dict[str, Sample]]:
        """Measure the answers a second, and return them by request and server."""
        rates = {}
        for name, sent in self.requests.items():
            servers = {"project": ours, "floor": core, "starlette": starlette}
            contest = {
                who: partial(self.sender.rate, server, sent) for who, server in servers.items()
            }
            best = rates[name] = interleaved(contest, self.rounds)
            self.bench.add(Row.of(name, "/s", best, at_least=0.7))
            self.bench.add(
                Row("  of Starlette + asyncpg", "/s", best["starlette"], best["project"])
            )
        return rates

    def waits(self, ours: Server, core: Server, rates: dict[str, dict[str, Sample]]) -> None:
        """Measure p99 at half of the rates."""
        for name, sent in self.requests.items():
            half = {who: rate.value / 2 for who, rate in rates[name].items()}
            contest = {
                "project": partial(self.sender.p99, ours, sent, half["project"]),
                "floor": partial(self.sender.p99, core, sent, half["floor"]),
            }
            waits = interleaved(contest, self.rounds)
            what = f"p99 of {name}, half the rate"
            self.bench.add(Row.of(what, "ms", waits, at_most=1.5))

    def live(self, ours: Server, constant: Server) -> None:
        """Measure the route that does nothing."""
        sent = [Request("GET", "/health/live")]
        contest = {
            "project": partial(self.sender.rate, ours, sent),
            "floor": partial(self.sender.rate, constant, sent),
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
    with ExitStack() as stack:
        spawn = multiprocessing.get_context("spawn")
        processes = stack.enter_context(ProcessPoolExecutor(max_workers=1, mp_context=spawn))
        contest = Contest(bench, Sender(processes, bench.of(25, 2) / 10), users)

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
