"""The service as its image starts it, and requests to it at a steady rate."""

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx

from core.database import CLOSE_TIMEOUT
from core.database_url import DatabaseURL
from core.project import ROOT
from drills.service_app import TABLE
from drills.world import DrillError, Scale, Server, require, runner_environment

POOL_SIZE = 10
POOL_TIMEOUT = 1
COMMAND_TIMEOUT = 3
"""Seconds, as that for a new connection."""
ALLOWED = 1.0
"""Seconds on top of what the service itself may wait."""
LIMIT = POOL_TIMEOUT + COMMAND_TIMEOUT + CLOSE_TIMEOUT + ALLOWED
READY = 5.0
"""Seconds in which the service has to be ready once the database answers, and its process does."""
GRACE = 20
"""Seconds that requests have to end in after SIGTERM: what the image gives them."""
COMMAND = (
    "uvicorn --factory drills.service_app:create_app --host 127.0.0.1"
    f" --workers 1 --timeout-graceful-shutdown {GRACE}"
)
LONG = 60.0
PAUSE = 0.02


class Service:
    """The project's service with the routes of `drills.service_app`, started as in its image."""

    def __init__(self, url: DatabaseURL, folder: Path, **settings: float) -> None:
        self.url = replace(url, query=(*url.query, ("connect_timeout", str(COMMAND_TIMEOUT))))
        folder.mkdir(exist_ok=True)
        self.log = folder / "service.log"
        self.settings = {
            "DATABASE_POOL_SIZE": POOL_SIZE,
            "DATABASE_MAX_OVERFLOW": 0,
            "DATABASE_POOL_TIMEOUT": POOL_TIMEOUT,
            "DATABASE_COMMAND_TIMEOUT": COMMAND_TIMEOUT,
            **settings,
        }
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        # Shorter than uvicorn's 5 s, for which a connection stays open between requests.
        self.client = self._make_client(httpx.Limits(keepalive_expiry=2))
        # Another connection each time, as probes have.
        self.probe = self._make_client(httpx.Limits(max_keepalive_connections=0))
        self.process = self.begin()

    def _make_client(self, limits: httpx.Limits) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", limits=limits, timeout=LONG, trust_env=False
        )

    async def close(self) -> None:
        """End the process, however it is, and the connections to it."""
        self.process.kill()
        self.process.wait()
        await self.client.aclose()
        await self.probe.aclose()

    def begin(self) -> "subprocess.Popen[bytes]":
        """Start a process; the present one is its caller's."""
        environment = {name: str(value) for name, value in self.settings.items()}
        environment |= {
            "ENVIRONMENT": "prod",
            "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *f"{COMMAND} --port {self.port}".split()],
                cwd=ROOT,
                env=runner_environment(self.url, environment),
                stdout=log,
                stderr=log,
            )
        return self.process

    async def seconds_to_start(self) -> float:
        """Return how long it took until the process answered."""
        started = time.monotonic()
        while time.monotonic() - started < LONG:
            require(self.process.poll() is None, f"the service ended:\n{self.tail()}")
            with suppress(httpx.TransportError):
                await self.probe.get("/health/live")
                return time.monotonic() - started
            await asyncio.sleep(PAUSE)
        raise DrillError(f"the service does not answer {LONG:.0f} s after its start")

    async def seconds_to_ready(self) -> float:
        """Return how long it took until `/health/ready` was 200."""
        started = time.monotonic()
        while not (response := await self.probe.get("/health/ready")).is_success:
            passed = time.monotonic() - started
            require(passed < LONG, f"not ready within {LONG:.0f} s: {response.text}")
            await asyncio.sleep(PAUSE)
        return time.monotonic() - started

    async def refuses(self) -> None:
        """Wait until a process that got SIGTERM takes no more connections."""
        deadline = time.monotonic() + LONG
        with suppress(httpx.TransportError):
            while time.monotonic() < deadline:
                await self.probe.get("/health/live")
                await asyncio.sleep(PAUSE)
            raise DrillError(f"requests are taken {LONG:.0f} s after SIGTERM")

    async def ended(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait for a process that got SIGTERM.

        Raises:
            DrillError: it went on after its grace, or did not end in order.
        """
        try:
            await asyncio.to_thread(process.wait, GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise DrillError(f"still running {GRACE} s after SIGTERM") from None
        # uvicorn ends in order, and then by the signal that it got.
        code = process.returncode
        require(code in {0, -signal.SIGTERM}, f"exit code {code}\n{self.tail()}")

    def tail(self) -> str:
        """Return the end of the log."""
        return "\n".join(self.log.read_text(encoding="utf-8").splitlines()[-5:])


class Flow:
    """Requests that are sent at their times, whatever became of those before."""

    def __init__(self, service: Service, rate: int) -> None:
        self.service = service
        self.rate = rate
        self.sent = 0
        self.answered = 0
        self.failed = 0
        self.longest = 0.0
        self.lag = 0.0
        """The longest wait for an answer that needs no database."""
        self.written: list[int] = []
        self.wrong: list[str] = []
        self.may_refuse = False
        """Whether the process is being replaced: then connections may be refused or closed."""
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Send until `end`, half of them writes; return when the last one has its answer."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._measure_lag())
            for number in itertools.count(1):
                group.create_task(self.write(number) if number % 2 else self.read())
                await asyncio.sleep(max(0, started + number / self.rate - time.monotonic()))
                if self._ended.is_set():
                    break

    async def _measure_lag(self) -> None:
        while not self._ended.is_set():
            started = time.monotonic()
            with suppress(httpx.TransportError):
                await self.service.probe.get("/health/live")
                self.lag = max(self.lag, time.monotonic() - started)
            await asyncio.sleep(0.1)

    def end(self) -> None:
        self._ended.set()

    async def read(self) -> None:
        """Read what was acknowledged last."""
        if self.written:
            await self.ask("GET", f"/drill/entries/{self.written[-1]}")

    async def write(self, key: int) -> None:
        if await self.ask("POST", f"/drill/entries/{key}"):
            self.written.append(key)

    async def sleep(self, seconds: float, key: int) -> None:
        """Write, after holding a connection for some time."""
        if await self.ask("POST", f"/drill/sleep/{seconds}/{key}", meant_to_wait=seconds):
            self.written.append(key)

    async def ask(self, method: str, path: str, *, meant_to_wait: float = 0) -> bool:
        """Send a request, and return whether it was answered with success."""
        self.sent += 1
        started = time.monotonic()
        try:
            async with asyncio.timeout(LONG):
                response = await self.service.client.request(method, path)
        except TimeoutError:
            self.wrong.append(f"{method} {path}: no answer")
            return False
        except httpx.TransportError as error:
            self.failed += 1
            if not self.may_refuse:
                self.wrong.append(f"{method} {path}: {type(error).__name__}: {error}")
            return False
        finally:
            self.longest = max(self.longest, time.monotonic() - started - meant_to_wait)
        if response.is_success:
            self.answered += 1
            return True
        self.failed += 1
        kind = response.headers.get("content-type")
        if (response.status_code, kind) != (503, "application/problem+json"):
            self.wrong.append(f"{method} {path}: {response.status_code} {response.text}")
        return False

    async def goes_well(self) -> None:
        """Wait for a second in which no request fails.

        Raises:
            DrillError: there was none in `LONG` seconds.
        """
        deadline = time.monotonic() + LONG
        failed = -1
        while failed != self.failed:
            require(time.monotonic() < deadline, "requests go on failing after it was over")
            failed = self.failed
            await asyncio.sleep(1)

    @property
    def noise(self) -> float:
        """What the machine may add to a wait, in seconds: with a database it is woken up oftener."""
        return 3 * self.lag

    def counts(self, server: Server, limit: float) -> str:
        """Return the counts.

        Raises:
            DrillError: something acknowledged was lost, or a request waited longer than `limit`.
        """
        there = {key for (key,) in server.rows(self.service.url, f"SELECT key FROM {TABLE}")}
        lost = set(self.written) - there
        counts = (
            f"{self.sent} requests sent, {self.answered} answered, {self.failed} failed cleanly, "
            f"{len(lost)} lost; the longest wait was {self.longest:.1f} s "
            f"(allowed {limit + self.noise:.1f})"
        )
        require(not lost, counts)
        require(self.longest <= limit + self.noise, counts)
        return counts

    def readiness(self, seconds: Iterable[float]) -> str:
        """Return the longest time that it took to be ready.

        Raises:
            DrillError: it was too long.
        """
        longest = max(seconds)
        said = f"{longest:.2f} s (allowed {READY + self.noise:.1f})"
        require(longest <= READY + self.noise, f"ready again only after {said}")
        return said


@asynccontextmanager
async def requests_flow(
    server: Server, folder: Path, url: DatabaseURL, scale: Scale, **settings: float
) -> AsyncIterator[tuple[Service, Flow]]:
    """Let requests flow to a service on `url`; then require that they ended as promised.

    Raises:
        DrillError: an answer was neither a success nor a 503, a connection was refused or closed
            while the process was not being replaced, the log has a traceback, or a session is left.
    """
    service = Service(url, folder, **settings)
    flow = Flow(service, scale.of(50, 25))
    try:
        await service.seconds_to_start()
        await service.seconds_to_ready()
        running = asyncio.create_task(flow.run())
        await flow.goes_well()
        yield service, flow
        await flow.goes_well()
        flow.end()
        await running
        _require_no_leak(server, service)
        service.process.terminate()
        await service.ended(service.process)
    finally:
        flow.end()
        await service.close()
    wrong = f"{len(flow.wrong)} requests: {'; '.join(flow.wrong[:3])}"
    require(not flow.wrong, f"{wrong}\n{service.tail()}")
    log = service.log.read_text(encoding="utf-8").splitlines()
    traces = [line for line in log if "Traceback" in line]
    require(not traces, f"{len(traces)} tracebacks in the log, the first:\n{''.join(traces[:1])}")


def _require_no_leak(server: Server, service: Service) -> None:
    """Require that no connection is in a transaction, and that there are no more than allowed."""
    query = (
        "SELECT coalesce(state, ''), left(query, 200) FROM pg_stat_activity"
        f" WHERE datname = '{service.url.database}' AND pid <> pg_backend_pid()"
    )
    sessions = server.rows(server.url, query)
    busy = [session for session in sessions if session[0] != "idle"]
    require(not busy, f"sessions that are not idle after the last request: {busy}")
    most = service.settings["DATABASE_POOL_SIZE"] + 1  # that of /health/ready
    require(len(sessions) <= most, f"{len(sessions)} sessions, allowed are {most:.0f}")
