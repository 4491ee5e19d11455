"""The service with routes of the drills' own: `uvicorn --factory drills.service_app:create_app`."""

from fastapi import APIRouter, FastAPI
from sqlalchemy import text

import main
from core.dependencies import SessionDep
from core.errors import NotFoundError

TABLE = "drill_entries"
CREATE = f"CREATE TABLE {TABLE} (key int PRIMARY KEY, label varchar(20) NOT NULL)"

router = APIRouter(prefix="/drill")


@router.post("/entries/{key}", status_code=201)
async def add(key: int, session: SessionDep) -> None:
    await session.execute(text(f"INSERT INTO {TABLE} VALUES (:key, 'new')"), {"key": key})


@router.get("/entries/{key}")
async def read(key: int, session: SessionDep) -> str:
    query = text(f"SELECT label FROM {TABLE} WHERE key = :key")
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
