"""Request ids, in the response, in log lines and in errors."""

import logging
import random
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from http import HTTPStatus
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core import tracing

HEADER = b"x-request-id"
PROBES = frozenset({"/health/live", "/health/ready", "/metrics"})
"""Paths that machines poll."""

Count = Callable[[Scope, int, float], None]
"""Callback with the scope, the status and the duration in seconds."""

logger = logging.getLogger("service.access")

_current: ContextVar[str | None] = ContextVar("request_id", default=None)
_ACCEPTABLE = re.compile(rb"[\w.:/+=-]{1,128}")  # nothing that could forge a log line


def request_id() -> str | None:
    """Return the id of the current request."""
    return _current.get()


class RequestIDMiddleware:
    """Assign an id to each request, return it to the client, log the request and count it.

    A probe that was answered well is logged for DEBUG only: there is one every few seconds.
    """

    def __init__(self, app: ASGIApp, *, count: Count | None) -> None:
        self.app = app
        self.count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == HEADER), b"")
        current = given.decode() if _ACCEPTABLE.fullmatch(given) else _new_id()
        token = _current.set(current)
        tracing.set_attribute("http.response.header.x-request-id", [current])
        status, ended = 500, False
        started = time.perf_counter()

        def end() -> None:
            nonlocal ended
            ended = True
            seconds = time.perf_counter() - started
            _log(scope["method"], scope["path"], status, seconds)
            if self.count is not None:
                self.count(scope, status, seconds)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                others = [header for header in message.get("headers", ()) if header[0] != HEADER]
                message["headers"] = [*others, (HEADER, current.encode())]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                end()  # background tasks follow

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            if not ended:
                end()
            _current.reset(token)


def _new_id() -> str:
    # An id is no secret; uuid4() would ask the system each time.
    return f"{random.getrandbits(128):032x}"


def _log(method: str, path: str, status: int, seconds: float) -> None:
    quiet = path in PROBES and status < HTTPStatus.BAD_REQUEST
    level = logging.DEBUG if quiet else logging.INFO
    if logger.isEnabledFor(level):
        duration = {"duration_ms": round(seconds * 1000, 1)}
        logger.log(level, "%s %s %d", method, quote(path), status, extra=duration)
