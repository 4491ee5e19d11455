"""What clients get for values and requests that the database refuses."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ConfigDict
from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Numeric, SmallInteger, String, text
from sqlalchemy.dialects.postgresql import JSONB, ExcludeConstraint
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support import make_client, started_app

from alembic_safety.database.url import DatabaseURL
from core.dependencies import SessionDep, SessionsDep
from core.errors import NotFoundError
from core.schemas import Schema
from core.transactions import run_transaction


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "things"
    __table_args__ = (
        CheckConstraint("price >= 0", name="ck_things_price"),
        ExcludeConstraint(("big", "="), name="ex_things_big", using="btree"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(String(5), unique=True)
    parent: Mapped[int | None] = mapped_column(ForeignKey("things.id"))
    big: Mapped[int | None] = mapped_column(BigInteger)
    small: Mapped[int | None] = mapped_column(SmallInteger)
    price: Mapped[Decimal | None] = mapped_column(Numeric(6, 2))
    score: Mapped[float] = mapped_column(server_default="0")
    at: Mapped[datetime | None]
    payload: Mapped[Any] = mapped_column(JSONB, nullable=True)


class ThingIn(Schema):
    model_config = ConfigDict(from_attributes=True)

    id: int | None = None
    name: str | None = None
    parent: int | None = None
    big: int | None = None
    small: int | None = None
    price: Decimal | None = None
    score: float | None = None
    at: datetime | None = None
    payload: Any = None


async def find(session: AsyncSession, thing_id: int) -> Thing:
    thing = await session.get(Thing, thing_id)
    if thing is None:
        raise NotFoundError(f"There is no thing {thing_id}.")
    await asyncio.sleep(0.02)  # others find it as well
    return thing


def add_routes(app: FastAPI) -> None:
    @app.post("/things")
    async def create(data: ThingIn, session: SessionDep) -> ThingIn:
        thing = Thing(**data.model_dump(exclude_unset=True))
        session.add(thing)
        await session.flush()
        await session.refresh(thing)
        return ThingIn.model_validate(thing)

    @app.get("/things/{thing_id}")
    async def read(thing_id: int, session: SessionDep, limit: int = 1, name: str = "") -> None:
        await session.execute(
            text("SELECT FROM things WHERE name = :name LIMIT :limit"),
            {"name": name, "limit": limit},
        )
        await session.get(Thing, thing_id)

    @app.patch("/things/{thing_id}")
    async def change(thing_id: int, session: SessionDep) -> None:
        thing = await find(session, thing_id)
        thing.small = (thing.small or 0) + 1

    @app.delete("/things/{thing_id}", status_code=204)
    async def delete(thing_id: int, session: SessionDep) -> None:
        await session.delete(await find(session, thing_id))

    @app.post("/nothing")
    async def create_nothing(session: SessionDep) -> None:
        await session.execute(text("INSERT INTO things (score) VALUES (NULL)"))

    @app.post("/raise/{state}")
    async def fail(state: str, session: SessionDep) -> None:
        block = f"DO $$ BEGIN RAISE 'a secret' USING ERRCODE = '{state}'; END $$"
        await session.execute(text(block))

    @app.post("/increase")
    async def increase(first: int, second: str, sessions: SessionsDep) -> int:
        attempts = 0

        async def work(session: AsyncSession) -> None:
            nonlocal attempts
            attempts += 1
            for number in (str(first), second):
                update = f"UPDATE things SET small = small + 1 WHERE id = {number}"  # noqa: S608
                await session.execute(text(update))
                await asyncio.sleep(0.1)

        with suppress(DBAPIError):
            await run_transaction(sessions, work)
        return attempts


@pytest.fixture
async def live(
    database_url: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    async with started_app(database_url, monkeypatch) as app, make_client(app) as client:
        add_routes(app)
        async with app.state.sessionmaker() as session:
            await session.run_sync(lambda sync: Base.metadata.create_all(sync.connection()))
            await session.commit()
        yield client


async def create(client: httpx.AsyncClient, body: str) -> httpx.Response:
    json = {"Content-Type": "application/json"}
    return await client.post("/things", content=body.encode(), headers=json)


def require_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    problem: dict[str, Any] = response.json()
    assert (response.status_code, problem["status"]) == (status, status), response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert "secret" not in response.text
    return problem


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ('{"id": 2147483648}', "A value is not valid."),
        ('{"big": 9223372036854775808}', "A value is not valid."),
        ('{"small": -32769}', "A value is not valid."),
        ('{"price": 10000}', "A number is out of range."),
        ('{"price": -1}', "A value is not allowed."),
        ('{"price": NaN}', "The request is not valid."),
        ('{"price": "Infinity"}', "The request is not valid."),
        ('{"score": NaN}', "The request is not valid."),
        ('{"score": 1e999}', "The request is not valid."),
        ('{"name": "123456"}', "A text is too long."),
        (r'{"name": "\u0000"}', "A text contains a character that can't be stored."),
        (r'{"name": "\ud800"}', "A value is not valid."),
        (r'{"payload": "\u0000"}', "A text contains a character that can't be stored."),
        (r'{"payload": "\ud800"}', "A value is not valid."),
        ('{"payload": NaN}', "A value is not valid."),
        ('{"payload": 1e999}', "A value is not valid."),
        ('{"at": "9999-12-31T23:59:59Z"}', "A value is not valid."),
        ("{", "The request is not valid."),
    ],
)
async def test_a_value_that_can_not_be_stored_is_422(
    live: httpx.AsyncClient, body: str, detail: str
) -> None:
    assert require_problem(await create(live, body), 422)["detail"] == detail


async def test_what_postgresql_names_is_named(live: httpx.AsyncClient) -> None:
    refused = require_problem(await create(live, '{"price": -1}'), 422)
    assert refused["constraint"] == "ck_things_price"
    missing = require_problem(await live.post("/nothing"), 422)
    assert missing["detail"] == "A value is missing."
    assert missing["errors"] == [{"field": "score", "message": "must not be null"}]


@pytest.mark.parametrize("number", [2**31, 2**63, 10**30, -(2**31) - 1])
async def test_a_number_out_of_range_in_path_or_query_is_422(
    live: httpx.AsyncClient, number: int
) -> None:
    require_problem(await live.get(f"/things/{number}"), 422)
    if abs(number) >= 2**63:
        require_problem(await live.get("/things/1", params={"limit": number}), 422)


@pytest.mark.parametrize("query", ["limit=-1", "name=%00"])
async def test_a_query_that_the_database_refuses_is_422(
    live: httpx.AsyncClient, query: str
) -> None:
    require_problem(await live.get(f"/things/1?{query}"), 422)


async def test_conflicts_are_409_and_name_the_constraint(live: httpx.AsyncClient) -> None:
    assert (await create(live, '{"id": 100, "name": "a", "big": 7}')).status_code == 200
    assert (await create(live, '{"id": 101, "parent": 100}')).status_code == 200
    taken = require_problem(await create(live, '{"name": "a"}'), 409)
    assert taken["detail"] == "A record with this value already exists."
    assert taken["constraint"] == "things_name_key"
    overlaps = require_problem(await create(live, '{"big": 7}'), 409)
    assert overlaps["detail"] == "This record overlaps with another one."
    orphan = require_problem(await create(live, '{"parent": 77}'), 409)
    assert orphan["detail"] == "A record that this refers to does not exist."
    needed = require_problem(await live.delete("/things/100"), 409)
    assert needed["detail"] == "This record is still referenced by other records."
    assert needed["constraint"] == orphan["constraint"] == "things_parent_fkey"


@pytest.mark.parametrize("state", ["25006", "40001", "40P01", "55P03", "57P01", "53300"])
async def test_what_may_succeed_later_is_503(live: httpx.AsyncClient, state: str) -> None:
    response = await live.post(f"/raise/{state}")
    require_problem(response, 503)
    assert response.headers["Retry-After"] == "1"


async def test_without_a_host_of_the_wanted_kind_it_is_503(
    database_url: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = DatabaseURL.parse(f"{database_url.libpq}&target_session_attrs=standby")
    async with started_app(url, monkeypatch) as app, make_client(app) as client:
        add_routes(app)
        response = await client.post("/raise/40001")
    require_problem(response, 503)
    assert response.json()["detail"] == "The database is not available."


async def test_a_mistake_of_the_service_is_500(live: httpx.AsyncClient) -> None:
    for state in ("22012", "42703", "P0001"):
        require_problem(await live.post(f"/raise/{state}"), 500)


async def test_changes_and_deletions_at_once_are_never_500(live: httpx.AsyncClient) -> None:
    found: Counter[int] = Counter()
    for number in range(10):
        await create(live, f'{{"id": {number}}}')
        address = f"/things/{number}"
        responses = await asyncio.gather(
            live.patch(address), live.delete(address), live.patch(address), live.delete(address)
        )
        found.update(response.status_code for response in responses)
    assert set(found) <= {200, 204, 404, 409}
    assert found[204] >= 10


async def test_a_transaction_that_was_ended_by_a_deadlock_is_run_again(
    live: httpx.AsyncClient,
) -> None:
    await create(live, '{"id": 1, "small": 0}')
    await create(live, '{"id": 2, "small": 0}')
    responses = await asyncio.gather(
        live.post("/increase?first=1&second=2"), live.post("/increase?first=2&second=1")
    )
    assert sorted(response.json() for response in responses) == [1, 2]


async def test_a_transaction_that_fails_otherwise_is_not_run_again(
    live: httpx.AsyncClient,
) -> None:
    assert (await live.post("/increase?first=1&second=nobody")).json() == 1


async def test_errors_are_described_with_their_media_type(live: httpx.AsyncClient) -> None:
    document = (await live.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert set(operation["responses"]["default"]["content"]) == {
                "application/problem+json"
            }, path
