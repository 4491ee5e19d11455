"""Database errors as responses: 409 for conflicts, 422 for values, 503 for what may be retried."""

import logging
from http import HTTPStatus
from typing import Any

import asyncpg
from fastapi import FastAPI, Request
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.exc import StaleDataError

from alembic_safety.errors import DatabaseUnavailableError
from core.database import DatabaseTimeoutError
from core.errors import FieldProblem, ProblemResponse, problem

logger = logging.getLogger(__name__)

# https://www.postgresql.org/docs/current/errcodes-appendix.html
RESTRICT_VIOLATION = "23001"
FOREIGN_KEY_VIOLATION = "23503"
CONFLICTS = {
    RESTRICT_VIOLATION: "This record is still referenced by other records.",
    FOREIGN_KEY_VIOLATION: "A record that this refers to does not exist.",
    "23505": "A record with this value already exists.",
    "23P01": "This record overlaps with another one.",
}
VALUES = {
    "23502": "A value is missing.",
    "23514": "A value is not allowed.",
    "22001": "A text is too long.",
    "22003": "A number is out of range.",
    "22021": "A text contains a character that can't be stored.",
    "22P05": "A text contains a character that can't be stored.",
}
DATA_EXCEPTION = "22"
"""Class of the errors of values, also of those that asyncpg refuses to send."""
DIVISION_BY_ZERO = "22012"
"""A mistake of the service, unlike the others of that class."""
TRANSIENT = {
    "25006": "The database is read-only for the moment.",
    "40001": "The request collided with another one.",
    "40P01": "The request collided with another one.",
    "55P03": "The record is locked by another request.",
}
UNAVAILABLE_CLASSES = ("08", "53", "57")  # connection, resources, operator intervention


def add_database_error_handlers(app: FastAPI) -> None:
    """Return errors of the database as problem details."""
    handlers: dict[type[Exception], Any] = {
        DBAPIError: _on_database_error,
        StaleDataError: _on_stale_data,
        PoolTimeoutError: _on_unavailable,
        DatabaseUnavailableError: _on_unavailable,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _on_database_error(request: Request, error: DBAPIError) -> ProblemResponse:
    cause = error.orig.__cause__ if error.orig is not None else None  # what asyncpg raised
    state = getattr(error.orig, "sqlstate", None) or ""
    constraint = getattr(cause, "constraint_name", None)
    if state in CONFLICTS:
        if state == FOREIGN_KEY_VIOLATION and (error.statement or "").startswith("DELETE"):
            state = RESTRICT_VIOLATION
        return problem(request, HTTPStatus.CONFLICT, CONFLICTS[state], constraint=constraint)
    if state in VALUES or (state.startswith(DATA_EXCEPTION) and state != DIVISION_BY_ZERO):
        detail = VALUES.get(state, "A value is not valid.")
        # Without the message, which may hold somebody's data. It may be a mistake of the service, too.
        logger.info("%s SQLSTATE %s %s", detail, state, constraint or "")
        column = getattr(cause, "column_name", None)
        missing = [FieldProblem(field=column, message="must not be null")] if column else None
        return problem(
            request,
            HTTPStatus.UNPROCESSABLE_ENTITY,
            detail,
            constraint=constraint,
            errors=missing,
        )
    if state in TRANSIENT:
        return _retry_later(request, TRANSIENT[state], error)
    # A migration changed the type of a column, so what other connections prepared is void.
    if isinstance(cause, asyncpg.InvalidCachedStatementError):
        return _retry_later(request, "The schema has just changed.", error)
    if error.connection_invalidated or state.startswith(UNAVAILABLE_CLASSES):
        return await _on_unavailable(request, error)
    raise error


async def _on_stale_data(request: Request, _error: StaleDataError) -> ProblemResponse:
    return problem(request, HTTPStatus.CONFLICT, "Another request changed or deleted the record.")


async def _on_unavailable(request: Request, error: Exception) -> ProblemResponse:
    cause = getattr(error, "orig", None) or error
    # Not 504 for a slow statement, which can't be told from a server that hangs.
    if isinstance(cause, DatabaseTimeoutError):
        return _retry_later(request, "The database did not answer in time.", error)
    return _retry_later(request, "The database is not available.", error)


def _retry_later(request: Request, detail: str, error: Exception) -> ProblemResponse:
    cause = getattr(error, "orig", None) or error  # without SQLAlchemy's statement and values
    logger.warning("%s %s: %s", detail, type(cause).__name__, cause)
    return problem(request, HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "1"})
