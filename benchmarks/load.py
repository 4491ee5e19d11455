"""Requests to a service, as many as it answers or at a steady rate.

`python -m benchmarks.load` reads what to send from standard input and prints what came of it; see
`Load.parse`. A client library costs more than many a service does, on the same cores: so this speaks
HTTP/1.1 through the parser and the event loop that uvicorn uses, too.
"""

import asyncio
import json
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Any, Self, cast

import httptools
import uvloop

PLACE = b"{n}"
"""In a path or a body: stands for the request's number."""
TIMEOUT = 30.0
"""Seconds that an answer may take."""


@dataclass(frozen=True)
class Request:
    """A request that is sent again and again."""

    method: str
    path: str
    body: Any = None
    """What is sent as JSON, if anything."""
    headers: tuple[tuple[str, str], ...] = ()
    """Further ones, `(("Authorization", "Bearer ..."),)` for example."""

    def encode(self) -> list[bytes]:
        """Return the bytes to send, cut where the number belongs."""
        body = b"" if self.body is None else json.dumps(self.body).encode()
        # A number always has as many digits, so that the length is known before.
        length = len(body.replace(PLACE, b"0" * _DIGITS))
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n".encode()
        head += "".join(f"{name}: {value}\r\n" for name, value in self.headers).encode()
        if self.body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {length}\r\n".encode()
        return (head + b"\r\n" + body).split(PLACE)


_DIGITS = 16


@dataclass(frozen=True)
class Result:
    """What came of a load."""

    rate: float
    """Answers a second."""
    p50: float
    """Milliseconds that half of the answers took at most. At a steady rate they count from when a
    request was due, so that one that had to wait for others is not taken for a fast one."""
    p99: float
    statuses: dict[int, int]
    """How many answers had which status."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is sent, and how."""

    port: int
    requests: tuple[Request, ...]
    """Sent in turn."""
    connections: int = 32
    seconds: float = 5.0
    warm_up: float = 1.0
    """Seconds before the measured ones."""
    rate: float | None = None
    """Requests a second; None: as many as are answered."""
    first: int = 0
    """The number of the first request."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the load of a JSON object with the names of the fields."""
        values = json.loads(text)
        values["requests"] = tuple(Request(**request) for request in values["requests"])
        return cls(**values)

    def send(self) -> Result:
        """Send it and return what came of it.

        Raises:
            OSError: the service can't be reached, or it closed a connection.
            TimeoutError: an answer took longer than `TIMEOUT`.
        """
        return uvloop.run(self._run())

    async def _run(self) -> Result:
        return await _Run(self).result()


class _Run:
    """A load that is being sent."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.messages = [request.encode() for request in load.requests]
        self.number = load.first
        self.measuring = False
        self.sending = True
        self.waits: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.free: deque[_Connection] = deque()
        self.due: deque[float] = deque()
        """When the requests were due that wait for a free connection; of a steady rate."""
        self.all_free = asyncio.Event()
        """Set when nothing is sent any more, and every request has its answer."""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets the error that ends the run."""

    async def result(self) -> Result:
        loop = asyncio.get_running_loop()
        connections = []
        for _ in range(self.load.connections):
            _, connection = await loop.create_connection(
                lambda: _Connection(self), "127.0.0.1", self.load.port
            )
            connections.append(connection)
        self.free.extend(connections)
        sending = asyncio.create_task(self._send())
        self.lost.add_done_callback(lambda _: sending.cancel())
        try:
            seconds = await sending
        except asyncio.CancelledError:
            if self.lost.done():
                self.lost.result()  # raises what was wrong
            raise
        finally:
            self.lost.cancel()
            for connection in connections:
                connection.close()
        self.waits.sort()
        return Result(
            rate=len(self.waits) / seconds,
            p50=self._percentile(0.50),
            p99=self._percentile(0.99),
            statuses=dict(self.statuses),
        )

    async def _send(self) -> float:
        """Send for the load's time; return the seconds that were measured."""
        rate = self.load.rate
        pacing = asyncio.create_task(self._pace(1 / rate) if rate else self._as_fast_as_possible())
        await asyncio.sleep(self.load.warm_up)
        self.measuring = True
        started = time.perf_counter()
        await asyncio.sleep(self.load.seconds)
        seconds = time.perf_counter() - started
        self.measuring = self.sending = False
        await pacing
        self._note_end()
        async with asyncio.timeout(TIMEOUT):
            await self.all_free.wait()
        return seconds

    async def _as_fast_as_possible(self) -> None:
        for connection in list(self.free):
            self.send(connection, time.perf_counter())
        self.free.clear()

    async def _pace(self, between: float) -> None:
        due = time.perf_counter()
        while self.sending:
            now = time.perf_counter()
            while due <= now:
                if self.free:
                    self.send(self.free.popleft(), due)
                else:
                    self.due.append(due)
                due += between
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        self.due.clear()

    def send(self, connection: "_Connection", due: float) -> None:
        number = b"%0*d" % (_DIGITS, self.number)
        message = self.messages[self.number % len(self.messages)]
        self.number += 1
        connection.send(number.join(message), due)

    def answered(self, connection: "_Connection", status: int, due: float) -> None:
        now = time.perf_counter()
        if self.measuring:
            self.waits.append(now - due)
            self.statuses[status] += 1
        if self.sending and self.load.rate is None:
            self.send(connection, now)
        elif self.sending and self.due:
            self.send(connection, self.due.popleft())
        else:
            self.free.append(connection)
            self._note_end()

    def _note_end(self) -> None:
        if not self.sending and len(self.free) == self.load.connections:
            self.all_free.set()

    def fail(self, error: Exception) -> None:
        if not self.lost.done():
            self.lost.set_exception(error)

    def _percentile(self, part: float) -> float:
        """Return milliseconds."""
        return self.waits[int(len(self.waits) * part)] * 1000 if self.waits else 0.0


class _Connection(asyncio.Protocol):
    """A connection that waits for at most one answer."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none of its children

    def send(self, message: bytes, due: float) -> None:
        self._due = due
        self._transport.write(message)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Take an answer; the parser calls this."""
        self._run.answered(self, self._parser.get_status_code(), self._due)

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.fail(exc or ConnectionResetError("the service closed a connection"))

    def close(self) -> None:
        self._transport.close()


def main() -> int:
    """Read a load, send it, print the result; return the exit code."""
    try:
        result = Load.parse(sys.stdin.read()).send()
    except (OSError, TimeoutError) as error:
        print(f"the load was not answered: {error or type(error).__name__}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
