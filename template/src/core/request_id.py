"""Each request has an id: in its answer, in its log lines, in its errors."""

import logging
import re
import time
import uuid
from contextvars import ContextVar
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core import tracing

HEADER = "X-Request-ID"

logger = logging.getLogger("service.access")

_current: ContextVar[str | None] = ContextVar("request_id", default=None)
_ACCEPTABLE = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)  # nothing that could forge a log line


def request_id() -> str | None:
    """Return the id of the request that is being answered."""
    return _current.get()


class RequestIDMiddleware:
    """Take the caller's request id or make one, send it back, and log the request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        current = given if _ACCEPTABLE.fullmatch(given) else uuid.uuid4().hex
        token = _current.set(current)
        tracing.set_attribute("http.response.header.x-request-id", [current])
        status = 500
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = current
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            logger.info(
                "%s %s %d",
                scope["method"],
                quote(scope["path"]),
                status,
                extra={"duration_ms": round((time.perf_counter() - started) * 1000, 1)},
            )
            _current.reset(token)
