"""The service as its image starts it, and a steady rate of requests whose answers are checked."""

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from benchmarks.load import Client, Request, send_at_rate
from sqlalchemy import URL
from tests.drills.world import DrillError, Server, World, require

TABLE = "drill_entries"
APP = Path(__file__).parent / "app"
CLOSE_TIMEOUT = 0.5
"""Seconds that the service waits for a connection to close."""
POOL_SIZE = 10
POOL_TIMEOUT = 1
COMMAND_TIMEOUT = 3
"""Seconds, as that for a new connection."""
ALLOWED = 1.0
"""Seconds on top of what the service itself may wait."""
LIMIT = POOL_TIMEOUT + COMMAND_TIMEOUT + CLOSE_TIMEOUT + ALLOWED
READY = 5.0
"""Seconds until the service is ready after the database and its process answer."""
GRACE = 20
"""Seconds that requests have after SIGTERM, as in the image."""
COMMAND = (
    "uvicorn --factory drill_app:create_app --host 127.0.0.1"
    f" --workers 1 --timeout-graceful-shutdown {GRACE}"
)
LONG = 60.0
PAUSE = 0.02
LIVE_REQUEST = Request("GET", "/health/live")
READY_REQUEST = Request("GET", "/health/ready")


class Service:
    """The project's service with the routes of `drill_app`, started as in its image."""

    def __init__(self, world: World, url: URL, **settings: float) -> None:
        self.world = world
        self.url = url.update_query_dict({"connect_timeout": str(COMMAND_TIMEOUT)})
        self.log = world.folder / f"{url.database}.log"
        self.settings = {
            "DATABASE_POOL_SIZE": POOL_SIZE,
            "DATABASE_MAX_OVERFLOW": 0,
            "DATABASE_POOL_TIMEOUT": POOL_TIMEOUT,
            "DATABASE_COMMAND_TIMEOUT": COMMAND_TIMEOUT,
            **settings,
        }
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.client = Client(self.port)
        # Opens a connection for each request, as probes do.
        self.probe = Client(self.port, keep_alive=0)
        self.process = self.begin()

    def close(self) -> None:
        """Kill the process and close the connections to it."""
        self.process.kill()
        self.process.wait()
        self.client.close()
        self.probe.close()

    def begin(self) -> "subprocess.Popen[bytes]":
        """Start another process. The caller ends the present one."""
        environment = {name: str(value) for name, value in self.settings.items()}
        path = os.pathsep.join([str(self.world.project.path / "src"), str(APP)])
        environment |= {"ENVIRONMENT": "prod", "PYTHONPATH": path}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.world.python, "-m", *f"{COMMAND} --port {self.port}".split()],
                cwd=self.world.project.path,
                env=self.world.environment(self.url, environment),
                stdout=log,
                stderr=log,
            )
        return self.process

    async def seconds_to_start(self) -> float:
        """Wait until the process answers, and return the seconds."""
        started = time.monotonic()
        while time.monotonic() - started < LONG:
            require(self.process.poll() is None, f"the service ended:\n{self.tail()}")
            with suppress(OSError):
                await self.probe.send(LIVE_REQUEST)
                return time.monotonic() - started
            await asyncio.sleep(PAUSE)
        raise DrillError(f"the service does not answer {LONG:.0f} s after its start")

    async def seconds_to_ready(self) -> float:
        """Wait until `/health/ready` is 200, and return the seconds."""
        started = time.monotonic()
        while not (answer := await self.probe.send(READY_REQUEST)).is_success:
            passed = time.monotonic() - started
            require(passed < LONG, f"not ready within {LONG:.0f} s: {answer.body!r}")
            await asyncio.sleep(PAUSE)
        return time.monotonic() - started

    async def refuses(self) -> None:
        """Wait until a process that got SIGTERM accepts no more connections."""
        deadline = time.monotonic() + LONG
        with suppress(OSError):
            while time.monotonic() < deadline:
                await self.probe.send(LIVE_REQUEST)
                await asyncio.sleep(PAUSE)
            raise DrillError(f"connections are accepted {LONG:.0f} s after SIGTERM")

    async def ended(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait for a process that got SIGTERM.

        Raises:
            DrillError: the process was still running after `GRACE` seconds, or failed.
        """
        try:
            await asyncio.to_thread(process.wait, GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise DrillError(f"still running {GRACE} s after SIGTERM") from None
        # uvicorn shuts down, then raises the signal that it got.
        code = process.returncode
        require(code in {0, -signal.SIGTERM}, f"exit code {code}\n{self.tail()}")

    def tail(self) -> str:
        """Return the end of the log."""
        return "\n".join(self.log.read_text(encoding="utf-8").splitlines()[-5:])


class Flow:
    """A steady rate of requests, and a record of every answer."""

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
        """Send until `end`, every second one a write. Return after the last answer."""

        async def send(number: int, _due: float) -> None:
            await (self.write(number) if number % 2 else self.read())

        async with asyncio.TaskGroup() as group:
            group.create_task(self._measure_lag())
            await send_at_rate(self.rate, send, self._ended.is_set)

    async def _measure_lag(self) -> None:
        while not self._ended.is_set():
            started = time.monotonic()
            with suppress(OSError):
                await self.service.probe.send(LIVE_REQUEST)
                self.lag = max(self.lag, time.monotonic() - started)
            await asyncio.sleep(0.1)

    def end(self) -> None:
        self._ended.set()

    async def read(self) -> None:
        """Read the last acknowledged row."""
        if self.written:
            await self.ask("GET", f"/drill/entries/{self.written[-1]}")

    async def write(self, key: int) -> None:
        if await self.ask("POST", f"/drill/entries/{key}"):
            self.written.append(key)

    async def sleep(self, seconds: float, key: int) -> None:
        """Hold a connection for some seconds, then write."""
        if await self.ask("POST", f"/drill/sleep/{seconds}/{key}", meant_to_wait=seconds):
            self.written.append(key)

    async def ask(self, method: str, path: str, *, meant_to_wait: float = 0) -> bool:
        """Send a request and return whether its answer was a success."""
        self.sent += 1
        started = time.monotonic()
        try:
            answer = await self.service.client.send(Request(method, path))
        except TimeoutError:
            self.wrong.append(f"{method} {path}: no answer")
            return False
        except OSError as error:
            self.failed += 1
            if not self.may_refuse:
                self.wrong.append(f"{method} {path}: {type(error).__name__}: {error}")
            return False
        finally:
            self.longest = max(self.longest, time.monotonic() - started - meant_to_wait)
        if answer.is_success:
            self.answered += 1
            return True
        self.failed += 1
        if (answer.status, answer.content_type) != (503, "application/problem+json"):
            self.wrong.append(f"{method} {path}: {answer.status} {answer.body!r}")
        return False

    async def goes_well(self) -> None:
        """Wait for a second in which no request fails.

        Raises:
            DrillError: there is none in `LONG` seconds.
        """
        deadline = time.monotonic() + LONG
        failed = -1
        while failed != self.failed:
            require(time.monotonic() < deadline, "requests still fail after the disturbance")
            failed = self.failed
            await asyncio.sleep(1)

    @property
    def noise(self) -> float:
        """Seconds that a busy machine may add to a wait. With a database it wakes up more often."""
        return 3 * self.lag

    def counts(self, server: Server, limit: float) -> str:
        """Return the counts.

        Raises:
            DrillError: an acknowledged row was lost, or a request waited longer than `limit`.
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
        """Return the longest time until the service was ready.

        Raises:
            DrillError: the time was too long.
        """
        longest = max(seconds)
        said = f"{longest:.2f} s (allowed {READY + self.noise:.1f})"
        require(longest <= READY + self.noise, f"ready again only after {said}")
        return said


@asynccontextmanager
async def requests_flow(
    world: World, url: URL, **settings: float
) -> AsyncIterator[tuple[Service, Flow]]:
    """Send requests to a service on the database `url` until the block ends, and check the answers.

    Raises:
        DrillError: an answer was neither a success nor a 503, a connection was refused or closed
            while the process was not being replaced, the log has a traceback, or a session is left.
    """
    service = Service(world, url, **settings)
    flow = Flow(service, world.of(50, 25))
    try:
        await service.seconds_to_start()
        await service.seconds_to_ready()
        running = asyncio.create_task(flow.run())
        await flow.goes_well()
        yield service, flow
        await flow.goes_well()
        flow.end()
        await running
        _require_no_leak(world.server, service)
        service.process.terminate()
        await service.ended(service.process)
    finally:
        flow.end()
        service.close()
    wrong = f"{len(flow.wrong)} requests: {'; '.join(flow.wrong[:3])}"
    require(not flow.wrong, f"{wrong}\n{service.tail()}")
    log = service.log.read_text(encoding="utf-8").splitlines()
    traces = [line for line in log if "Traceback" in line]
    require(not traces, f"{len(traces)} tracebacks in the log, the first:\n{''.join(traces[:1])}")


def _require_no_leak(server: Server, service: Service) -> None:
    """Require that all sessions are idle and that there are not too many."""
    query = (
        "SELECT coalesce(state, ''), left(query, 200) FROM pg_stat_activity"
        f" WHERE datname = '{service.url.database}' AND pid <> pg_backend_pid()"
    )
    sessions = server.rows(server.url, query)
    busy = [session for session in sessions if session[0] != "idle"]
    require(not busy, f"sessions that are not idle after the last request: {busy}")
    most = service.settings["DATABASE_POOL_SIZE"] + 1  # the one of /health/ready
    require(len(sessions) <= most, f"{len(sessions)} sessions, allowed are {most:.0f}")
