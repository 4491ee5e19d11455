"""Starlette on asyncpg: the least that Python does this with."""

import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uuid_utils.compat import uuid7

COLUMNS = "id, email, full_name, created_at, updated_at"
ONE = f"SELECT {COLUMNS} FROM users WHERE id = $1"
PAGE = f"SELECT {COLUMNS} FROM users ORDER BY id LIMIT $1"
NEW = (
    "INSERT INTO users (id, email, full_name) VALUES ($1, $2, $3) RETURNING created_at, updated_at"
)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Own the pool."""
    async with asyncpg.create_pool(os.environ["FLOOR_URL"], min_size=1, max_size=15) as pool:
        app.state.pool = pool
        yield


def answer(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(value, default=str, separators=(",", ":"))
    return Response(body, status, headers, media_type="application/json")


async def ready(request: Request) -> Response:
    await request.app.state.pool.fetchval("SELECT 1")
    return answer({"status": "ok"})


async def create_user(request: Request) -> Response:
    data = json.loads(await request.body())
    email, full_name = str(data["email"]), str(data["full_name"])
    user_id = uuid7()
    row = await request.app.state.pool.fetchrow(NEW, user_id, email, full_name)
    user = {"id": user_id, "email": email, "full_name": full_name, **row}
    return answer(user, 201, {"Location": f"/users/{user_id}"})


async def list_users(request: Request) -> Response:
    limit = int(request.query_params.get("limit", 50))
    rows = await request.app.state.pool.fetch(PAGE, limit + 1)
    following = rows[limit - 1]["id"] if len(rows) > limit else None
    return answer({"items": [dict(row) for row in rows[:limit]], "next": following})


async def get_user(request: Request) -> Response:
    user_id = uuid.UUID(request.path_params["user_id"])
    row = await request.app.state.pool.fetchrow(ONE, user_id)
    return answer(dict(row)) if row else answer({}, 404)


app = Starlette(
    routes=[
        Route("/health/ready", ready),
        Route("/users", create_user, methods=["POST"]),
        Route("/users", list_users),
        Route("/users/{user_id}", get_user),
    ],
    lifespan=lifespan,
)
