"""Health checks: `/health/live` (process) and `/health/ready` (database and schema)."""

import logging
from http import HTTPStatus
from typing import Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from alembic_safety.state import SchemaReader, State
from core.errors import Problem, problem

DEADLINE = 1.5
"""Seconds that the database has to respond; probes commonly time out after two."""
MAX_AGE = 2.0
"""Seconds for which the state is cached, for probes and for /metrics."""


class Live(BaseModel):
    """Response of a live process."""

    status: Literal["ok"] = "ok"


class Ready(Live):
    """Response of a service that is ready."""

    schema_state: State
    current: str | None
    head: str | None


async def live() -> Live:
    """Return that the process is alive, without a query."""
    return Live()


async def ready(request: Request) -> Ready | JSONResponse:
    """Return whether the database responds and its schema has what this code needs.

    A schema that is ahead has: a newer release migrated it, and this one was rolled back to, or is
    about to be replaced.
    """
    reader: SchemaReader = request.app.state.schema
    state = await reader.read()
    if state.state not in {State.AT_HEAD, State.AHEAD}:
        detail = f"{state.describe().capitalize()}."
        if state.state is State.UNREACHABLE:
            logging.getLogger(__name__).warning("%s", state.describe())
            detail = "The database is unreachable."  # the address and the user are in the log
        return problem(request, HTTPStatus.SERVICE_UNAVAILABLE, detail)
    return Ready(
        schema_state=state.state,
        current=", ".join(state.current) or None,
        head=", ".join(state.heads) or None,
    )


def add_health_checks(app: FastAPI) -> None:
    """Add both routes to `app`."""
    app.add_api_route("/health/live", live, tags=["health"])
    app.add_api_route(
        "/health/ready",
        ready,
        tags=["health"],
        response_model=Ready,
        responses={
            503: {"model": Problem, "description": "The service can't serve; detail says why."}
        },
    )
