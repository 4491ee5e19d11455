"""HTTP/1.1 load: a steady rate, or a number of clients that each wait for the answer."""

import asyncio
import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass

import uvloop

TIMEOUT = 60.0
"""Seconds that an answer may take."""
_STATUS = re.compile(rb"HTTP/1\.1 (\d+)")
_TYPE = re.compile(rb"\r\ncontent-type: *([^\r]*)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """A request with a JSON body, if it has one."""

    method: str
    path: str
    body: str = ""
    """JSON. `{n}` stands for the number of the request."""

    def encode(self, number: int) -> bytes:
        """Return the bytes to send."""
        body = self.body.replace("{n}", str(number)).encode()
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body


@dataclass(frozen=True)
class Answer:
    """An answer to a request."""

    status: int
    content_type: str
    body: bytes

    @property
    def is_success(self) -> bool:
        """Return whether the status is 2xx."""
        return self.status // 100 == 2  # noqa: PLR2004


class Client:
    """Connections to a port of 127.0.0.1. A request takes an idle one, or opens another.

    The service has to send a Content-Length, as FastAPI does for JSON.
    """

    def __init__(self, port: int, *, keep_alive: float = 2.0) -> None:
        self._port = port
        # Shorter than uvicorn's 5 s, which may close a connection just as a request is sent.
        self._keep_alive = keep_alive
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = []

    async def send(self, request: Request, number: int = 0) -> Answer:
        """Send a request and return the answer.

        Raises:
            OSError: the connection was refused or closed.
            TimeoutError: the answer took longer than `TIMEOUT`.
        """
        async with asyncio.timeout(TIMEOUT):
            return await self._send(request.encode(number))

    async def _send(self, message: bytes) -> Answer:
        reader, writer = self._take_idle() or await asyncio.open_connection("127.0.0.1", self._port)
        keep = False
        try:
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            body = await reader.readexactly(int(length[1])) if length else b""
            keep = not _CLOSE.search(head)
        except asyncio.IncompleteReadError:
            raise ConnectionResetError("closed before the answer was complete") from None
        finally:
            if keep:
                self._idle.append((reader, writer, time.monotonic()))
            else:
                writer.close()
        status, kind = _STATUS.match(head), _TYPE.search(head)
        return Answer(int(status[1]) if status else 0, kind[1].decode() if kind else "", body)

    def _take_idle(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        while self._idle:
            reader, writer, since = self._idle.pop()
            is_open = not (reader.at_eof() or writer.is_closing())
            if is_open and time.monotonic() - since < self._keep_alive:
                return reader, writer
            writer.close()
        return None

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop()[1].close()


async def send_at_rate(
    rate: float,
    send: Callable[[int, float], Coroutine[None, None, None]],
    until: Callable[[], bool],
) -> None:
    """Call `send(number, due)` `rate` times a second, without waiting for earlier calls.

    Returns when `until()` is true and every call has ended. `due` is a time of `perf_counter`.
    """
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in itertools.count(1):
            due = started + (number - 1) / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if until():
                break
            group.create_task(send(number, due))


@dataclass(frozen=True)
class Result:
    """Figures of the measured seconds of a load."""

    rate: float
    """Answers a second."""
    p99: float
    """Milliseconds within which 99 % of the requests were answered, counted from when they were due."""
    statuses: dict[int, int]
    """The number of answers by status."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests, sent in turn to a port, and how fast."""

    port: int
    requests: Sequence[Request]
    seconds: float
    warm_up: float = 0.5
    """Seconds before the measured ones."""
    rate: float | None = None
    """Requests a second. None: `connections` clients that each wait for the answer."""
    connections: int = 32
    first: int = 0
    """The number of the first request."""

    def send(self) -> Result:
        """Send the requests and return the figures.

        Raises:
            OSError: a connection was refused or closed.
            TimeoutError: an answer took longer than `TIMEOUT`.
        """
        try:
            return uvloop.run(self._send())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _send(self) -> Result:
        client = Client(self.port)
        measured = time.perf_counter() + self.warm_up
        ends = measured + self.seconds
        waits: list[float] = []
        statuses: Counter[int] = Counter()

        async def send(number: int, due: float) -> None:
            number += self.first
            request = self.requests[number % len(self.requests)]
            answer = await client.send(request, number)
            if measured <= (now := time.perf_counter()) < ends:
                waits.append(now - due)
                statuses[answer.status] += 1

        def is_over() -> bool:
            return time.perf_counter() >= ends

        async def send_again_and_again(numbers: Iterator[int]) -> None:
            while not is_over():
                await send(next(numbers), time.perf_counter())

        try:
            if self.rate:
                await send_at_rate(self.rate, send, is_over)
            else:
                numbers = itertools.count(1)
                async with asyncio.TaskGroup() as group:
                    for _ in range(self.connections):
                        group.create_task(send_again_and_again(numbers))
        finally:
            client.close()
        waits.sort()
        p99 = waits[int(len(waits) * 0.99)] * 1000 if waits else 0.0
        return Result(len(waits) / self.seconds, p99, dict(statuses))
