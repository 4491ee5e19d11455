"""The pool's connections, and sessions that read."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from psycopg.rows import TupleRow
from sqlalchemy import insert, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support import make_client, started_app

from alembic_safety.database.url import DatabaseURL
from core.dependencies import ReadSessionsDep, SessionDep
from core.errors import NotFoundError


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "test_things"

    id: Mapped[int] = mapped_column(primary_key=True)


def add_routes(app: FastAPI) -> None:
    @app.get("/test/times")
    async def times(read: ReadSessionsDep) -> list[str]:
        query = text("SELECT now()::text")
        async with read() as session:
            return [str(await session.scalar(query)) for _ in range(2)]

    @app.get("/test/count")
    async def count(read: ReadSessionsDep) -> int:
        async with read() as session:
            return int(await session.scalar(text("SELECT count(*) FROM test_things")) or 0)

    @app.post("/test/things/{number}")
    async def add(number: int, session: SessionDep) -> None:
        session.add(Thing(id=number))

    @app.post("/test/lost/{number}")
    async def add_to_read_session(number: int, read: ReadSessionsDep) -> None:
        async with read() as session:
            session.add(Thing(id=number))

    @app.get("/test/missing/{number}")
    async def miss(number: int, read: ReadSessionsDep) -> None:
        async with read() as session:
            session.add(Thing(id=number))
            raise NotFoundError("there is no such thing")

    @app.post("/test/inserted/{number}")
    async def insert_by_read_session(number: int, read: ReadSessionsDep) -> None:
        async with read() as session:
            await session.execute(insert(Thing), {"id": number})


@pytest.fixture
async def live(
    database_url: DatabaseURL,
    postgresql: psycopg.Connection[TupleRow],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[httpx.AsyncClient]:
    postgresql.execute("CREATE TABLE test_things (id int PRIMARY KEY)")
    postgresql.commit()
    async with started_app(database_url, monkeypatch) as app, make_client(app) as client:
        add_routes(app)
        yield client


async def test_statements_of_a_session_for_reading_stand_by_themselves(
    live: httpx.AsyncClient,
) -> None:
    first, second = (await live.get("/test/times")).json()
    assert first < second  # of one transaction, they were the same


@pytest.mark.parametrize("path", ["/test/lost/1", "/test/inserted/1"])
async def test_a_session_for_reading_refuses_to_write(
    live: httpx.AsyncClient, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await live.post(path)).status_code == 500
    assert "use SessionDep" in caplog.text
    assert (await live.get("/test/count")).json() == 0


async def test_what_went_wrong_before_is_what_is_said(live: httpx.AsyncClient) -> None:
    assert (await live.get("/test/missing/1")).status_code == 404


async def test_connections_that_the_server_closed_are_replaced_without_an_error(
    live: httpx.AsyncClient, postgresql: psycopg.Connection[TupleRow]
) -> None:
    assert (await live.post("/test/things/1")).status_code == 200
    ended = postgresql.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ).fetchall()
    assert ended
    assert all(done for (done,) in ended)
    await asyncio.sleep(0.1)  # this loop, which the line above held up, hears of it
    assert (await live.post("/test/things/2")).status_code == 200
    assert (await live.get("/test/count")).json() == 2
