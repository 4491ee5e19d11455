"""Errors as RFC 9457 problem details (`application/problem+json`)."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import asyncpg
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.utils import is_body_allowed_for_status_code
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alembic_safety.errors import DatabaseUnavailableError
from core.database import DatabaseTimeoutError
from core.request_id import request_id

logger = logging.getLogger(__name__)

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_CONFLICTS = {
    "23001": "other data still need this",
    "23503": "what this refers to does not exist, or other data still need this",
    "23505": "this exists already",
    "23P01": "this overlaps with what exists already",
}
_UNFIT_VALUES = {
    "22001": "a text is too long",
    "22003": "a number is too large",
    "22021": "a text holds a character that can't be stored",
    "22P05": "a text holds a character that can't be stored",
}
_UNAVAILABLE_CLASSES = ("08", "53", "57")  # connection, resources, operator intervention


class FieldProblem(BaseModel):
    """Validation error of one field of a request."""

    field: str
    """Location of the field, such as `body.email` or `query.limit`."""
    message: str


class Problem(BaseModel):
    """Body of an error response."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    instance: str | None = None
    request_id: str | None = None
    errors: list[FieldProblem] | None = None


class AppError(Exception):
    """Base of errors that services raise and clients see."""

    status = HTTPStatus.BAD_REQUEST

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class NotFoundError(AppError):
    """The requested record does not exist (404)."""

    status = HTTPStatus.NOT_FOUND


class ConflictError(AppError):
    """The request conflicts with existing data (409)."""

    status = HTTPStatus.CONFLICT


class ProblemResponse(JSONResponse):
    """Response with a problem as its body."""

    media_type = "application/problem+json"


def problem(
    request: Request,
    status: int,
    detail: str | None,
    *,
    errors: list[FieldProblem] | None = None,
    headers: Mapping[str, str] | None = None,
) -> ProblemResponse:
    """Return the response for the HTTP status `status`."""
    body = Problem(
        title=_title(status),
        status=status,
        detail=detail,
        instance=request.url.path,
        request_id=request_id(),
        errors=errors,
    )
    return ProblemResponse(
        body.model_dump(exclude_none=True), status_code=status, headers=dict(headers or {})
    )


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # one of somebody's own, such as 499
        return f"Status {status}"


async def _on_app_error(request: Request, error: AppError) -> ProblemResponse:
    return problem(request, error.status, error.detail)


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    if not is_body_allowed_for_status_code(error.status_code):
        return Response(status_code=error.status_code, headers=error.headers)
    detail = None if error.detail == _title(error.status_code) else str(error.detail)
    return problem(request, error.status_code, detail, headers=error.headers)


async def _on_invalid_request(request: Request, error: RequestValidationError) -> ProblemResponse:
    fields = [
        FieldProblem(
            # The place of a JSON error is a byte's number, not a field's name.
            field=".".join(map(str, item["loc"][: 1 if item["type"] == "json_invalid" else None])),
            message=item["msg"].removeprefix("Value error, "),
        )
        for item in error.errors()
    ]
    return problem(
        request, HTTPStatus.UNPROCESSABLE_ENTITY, "the request is not valid", errors=fields
    )


async def _on_database_error(request: Request, error: DBAPIError) -> ProblemResponse:
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    cause = error.orig.__cause__ if error.orig is not None else None  # what asyncpg raised
    if isinstance(error, IntegrityError) and sqlstate in _CONFLICTS:
        constraint = getattr(cause, "constraint_name", None)
        named = f" ({constraint})" if constraint else ""
        return problem(request, HTTPStatus.CONFLICT, _CONFLICTS[sqlstate] + named)
    unfit = _UNFIT_VALUES.get(sqlstate)
    if not sqlstate and isinstance(cause, asyncpg.DataError):
        unfit = "a value does not fit where it is stored"  # asyncpg refused to send it
    if unfit is not None:
        return problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, unfit)
    # A migration changed the type of a column: what other connections prepared is void from now on.
    if isinstance(cause, asyncpg.InvalidCachedStatementError):
        return await _on_unavailable(request, error)
    if error.connection_invalidated or sqlstate.startswith(_UNAVAILABLE_CLASSES):
        return await _on_unavailable(request, error)
    raise error


async def _on_unavailable(request: Request, error: Exception) -> ProblemResponse:
    cause = getattr(error, "orig", None) or error  # without SQLAlchemy's statement and values
    # 503 for a statement that took too long, too, not 504: it can't be told from a server that
    # hangs, and a caller's next step is the same.
    if isinstance(cause, DatabaseTimeoutError):
        detail = "the database did not answer in time"
    elif isinstance(cause.__cause__, asyncpg.InvalidCachedStatementError):
        detail = "the schema has just changed"
    else:
        detail = "the database is not available"
    logger.warning("%s: %s: %s", detail, type(cause).__name__, cause)
    return problem(request, HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "1"})


class UnexpectedErrorMiddleware:
    """Log unhandled errors and respond with 500.

    A handler for `Exception` would run outside every middleware: without the request's id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception:
            if scope["type"] != "http" or started:
                raise
            request = Request(scope)
            logger.exception("%s %s failed", request.method, request.url.path)
            response = problem(
                request,
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "unexpected error; the log has more under the request id",
            )
            await response(scope, receive, send)


def add_error_handlers(app: FastAPI) -> None:
    """Return every error of `app` as problem details."""
    app.add_middleware(UnexpectedErrorMiddleware)
    handlers: dict[type[Exception], Any] = {
        AppError: _on_app_error,
        HTTPException: _on_http_error,
        RequestValidationError: _on_invalid_request,
        DBAPIError: _on_database_error,
        PoolTimeoutError: _on_unavailable,
        DatabaseUnavailableError: _on_unavailable,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
