"""FastAPI with SQLAlchemy Core on asyncpg, written by hand for these routes alone.

It validates what the project validates, and sends the SQL that the project sends.
"""

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request, Response
from sqlalchemy import (
    Column,
    DateTime,
    MetaData,
    String,
    Table,
    Uuid,
    bindparam,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.ext.asyncio import create_async_engine
from uuid_utils.compat import uuid7

from apps.users.schemas import UserCreate, UserPage, UserRead

users = Table(
    "users",
    MetaData(),
    Column("id", Uuid, primary_key=True),
    Column("email", String(254), nullable=False),
    Column("full_name", String(200), nullable=False),
    Column("created_at", DateTime(timezone=True), server_default=func.now()),
    Column("updated_at", DateTime(timezone=True), server_default=func.now()),
)
ONE = select(users).where(users.c.id == bindparam("id"))
PAGE = select(users).order_by(users.c.id).limit(bindparam("limit"))
PAGE_AFTER = PAGE.where(users.c.id > bindparam("after"))
NEW = insert(users).returning(users)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Own the engine."""
    url = os.environ["FLOOR_SQLALCHEMY_URL"]
    engine = create_async_engine(url, pool_size=15, max_overflow=0)
    app.state.engine = engine
    # A read needs no transaction.
    app.state.reading = engine.execution_options(isolation_level="AUTOCOMMIT")
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.get("/health/ready")
async def ready(request: Request) -> dict[str, str]:
    async with request.app.state.reading.connect() as connection:
        await connection.execute(text("SELECT 1"))
    return {"status": "ok"}


@app.post("/users", status_code=201)
async def create_user(data: UserCreate, request: Request, response: Response) -> UserRead:
    values = {"id": uuid7(), **data.model_dump()}
    async with request.app.state.engine.begin() as connection:
        row = (await connection.execute(NEW, values)).one()
    response.headers["Location"] = f"/users/{values['id']}"
    return UserRead.model_validate(row)


@app.get("/users")
async def list_users(request: Request, limit: int = 50, after: uuid.UUID | None = None) -> UserPage:
    values: dict[str, object] = {"limit": limit + 1}
    query = PAGE
    if after is not None:
        values["after"] = after
        query = PAGE_AFTER
    async with request.app.state.reading.connect() as connection:
        rows = (await connection.execute(query, values)).all()
    page = rows[:limit]
    items = [UserRead.model_validate(row) for row in page]
    return UserPage(items=items, next=page[-1].id if len(rows) > limit else None)


@app.get("/users/{user_id}")
async def get_user(user_id: uuid.UUID, request: Request) -> UserRead:
    async with request.app.state.reading.connect() as connection:
        row = (await connection.execute(ONE, {"id": user_id})).one_or_none()
    if row is None:
        raise HTTPException(404)
    return UserRead.model_validate(row)
