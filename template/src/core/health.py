"""`/health/live`: the process answers. `/health/ready`: it can serve, as the schema is there."""

from http import HTTPStatus
from typing import Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from alembic_safety.state import SchemaReader, State
from core.errors import Problem, problem

DEADLINE = 1.5
"""Seconds that the database has to answer; probes commonly give up after two."""
MAX_AGE = 2.0
"""Seconds for which the database's answer is given again, to probes and to /metrics."""


class Live(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(Live):
    """The service can serve."""

    schema_state: State
    current: str | None
    head: str | None


async def live() -> Live:
    """Say that the process answers; the database is not asked."""
    return Live()


async def ready(request: Request) -> Ready | JSONResponse:
    """Say whether the database answers and its schema has what this code needs.

    A schema that is ahead has: a newer release migrated it, and this one was rolled back to, or is
    about to be replaced.
    """
    reader: SchemaReader = request.app.state.schema
    state = await reader.read()
    if state.state not in {State.AT_HEAD, State.AHEAD}:
        return problem(request, HTTPStatus.SERVICE_UNAVAILABLE, state.describe())
    return Ready(
        schema_state=state.state,
        current=", ".join(state.current) or None,
        head=", ".join(state.heads) or None,
    )


def add_health_checks(app: FastAPI) -> None:
    """Let `app` answer both, as routes of its own: a router adds a tenth to what a probe costs."""
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
