"""The project's application with routes of the drills. It runs in the project's environment."""

from fastapi import APIRouter, FastAPI
from sqlalchemy import text

import main
from core.dependencies import SessionDep
from core.errors import NotFoundError

router = APIRouter(prefix="/drill")


@router.post("/entries/{key}", status_code=201)
async def add(key: int, session: SessionDep) -> None:
    await session.execute(text("INSERT INTO drill_entries VALUES (:key, 'new')"), {"key": key})


@router.get("/entries/{key}")
async def read(key: int, session: SessionDep) -> str:
    query = text("SELECT label FROM drill_entries WHERE key = :key")
    label: str | None = await session.scalar(query, {"key": key})
    if label is None:
        raise NotFoundError("there is no such entry")
    return label


@router.post("/sleep/{seconds}/{key}", status_code=201)
async def sleep(seconds: float, key: int, session: SessionDep) -> None:
    """Hold a connection for some time, then write."""
    await session.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})
    await add(key, session)


def create_app() -> FastAPI:
    """Return the project's application, with these routes."""
    app = main.create_app()
    app.include_router(router)
    return app
