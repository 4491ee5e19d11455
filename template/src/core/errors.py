"""Errors as RFC 9457 problem details (`application/problem+json`)."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from http.client import responses
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.utils import is_body_allowed_for_status_code
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.request_id import request_id

logger = logging.getLogger(__name__)

_PROBLEM = {"$ref": "#/components/schemas/Problem"}
MEDIA_TYPE = "application/problem+json"


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
    constraint: str | None = None
    """Database constraint that the request violates."""
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

    media_type = MEDIA_TYPE


def problem(
    request: Request,
    status: int,
    detail: str | None,
    *,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> ProblemResponse:
    """Return the response for the HTTP status `status`, with further members of `Problem`."""
    body = Problem(
        title=responses.get(status, f"Status {status}"),
        status=status,
        detail=detail,
        instance=request.url.path,
        request_id=request_id(),
        **members,
    )
    return ProblemResponse(
        body.model_dump(exclude_none=True), status_code=status, headers=dict(headers or {})
    )


async def _on_app_error(request: Request, error: AppError) -> ProblemResponse:
    return problem(request, error.status, error.detail)


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    if not is_body_allowed_for_status_code(error.status_code):
        return Response(status_code=error.status_code, headers=error.headers)
    detail = None if error.detail == responses.get(error.status_code) else str(error.detail)
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
        request, HTTPStatus.UNPROCESSABLE_ENTITY, "The request is not valid.", errors=fields
    )


class UnexpectedErrorMiddleware:
    """Log unhandled errors and respond with 500.

    A handler for `Exception` would run outside every middleware: without the request's id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        started = ended = False

        async def send_and_note(message: Message) -> None:
            nonlocal started, ended
            started = True
            await send(message)
            ended = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            await self.app(scope, receive, send_and_note)
        except Exception:
            if scope["type"] != "http" or (started and not ended):
                raise
            request = Request(scope)
            what = "a background task of " if ended else ""
            logger.exception("%s%s %s failed", what, request.method, request.url.path)
            if ended:
                return
            response = problem(
                request,
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "An unexpected error occurred. The log has more under the request id.",
            )
            await response(scope, receive, send)


def add_error_handlers(app: FastAPI) -> None:
    """Return every error of `app` as problem details."""
    app.add_middleware(UnexpectedErrorMiddleware)
    handlers: dict[type[Exception], Any] = {
        AppError: _on_app_error,
        HTTPException: _on_http_error,
        RequestValidationError: _on_invalid_request,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
    make_schema = app.openapi

    def openapi() -> dict[str, Any]:
        return app.openapi_schema or _with_media_type(make_schema())

    app.openapi = openapi  # type: ignore[method-assign] # https://fastapi.tiangolo.com/how-to/extending-openapi/


def _with_media_type(schema: dict[str, Any]) -> dict[str, Any]:
    """Give problems in an OpenAPI schema the media type that they are sent with."""
    items = [item for path in schema["paths"].values() for item in path.values()]
    operations = [item for item in items if isinstance(item, dict)]
    for response in [one for item in operations for one in item.get("responses", {}).values()]:
        content = response.get("content", {})
        if content.get("application/json", {}).get("schema") == _PROBLEM:
            content[MEDIA_TYPE] = content.pop("application/json")
    return schema
