"""The users app, over HTTP."""

import asyncio
import uuid

import httpx
import pytest
from fastapi import FastAPI

ADA = {"email": "Ada@Example.com", "full_name": "Ada Lovelace"}


async def create(client: httpx.AsyncClient, email: str = ADA["email"]) -> dict[str, str]:
    response = await client.post("/users", json={**ADA, "email": email})
    assert response.status_code == 201, response.text
    user: dict[str, str] = response.json()
    return user


async def test_a_user_is_created_and_read_back(client: httpx.AsyncClient) -> None:
    response = await client.post("/users", json=ADA)
    assert response.status_code == 201
    user = response.json()
    assert uuid.UUID(user["id"]).version == 7
    assert user["full_name"] == "Ada Lovelace"
    read = await client.get(response.headers["Location"])
    assert (read.status_code, read.json()) == (200, user)


@pytest.mark.usefixtures("client")  # it gives the application its sessions
async def test_a_proxy_s_prefix_is_in_the_location(app: FastAPI) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, root_path="/api"), base_url="http://test"
    ) as behind_proxy:
        response = await behind_proxy.post("/users", json=ADA)
    assert response.headers["Location"] == f"/api/users/{response.json()['id']}"


async def test_an_address_is_taken_in_any_case(client: httpx.AsyncClient) -> None:
    await create(client, "ada@example.com")
    response = await client.post("/users", json={**ADA, "email": "ADA@example.com"})
    assert response.status_code == 409
    assert response.headers["Content-Type"] == "application/problem+json"
    assert len((await client.get("/users")).json()["items"]) == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"email": "nobody"}, "body.email"),
        ({"full_name": "  "}, "body.full_name"),
        ({"full_name": "x" * 201}, "body.full_name"),
    ],
)
async def test_a_wrong_field_is_named(
    client: httpx.AsyncClient, change: dict[str, str], field: str
) -> None:
    response = await client.post("/users", json=ADA | change)
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == [field]


async def test_pages_go_on_where_the_last_one_ended(client: httpx.AsyncClient) -> None:
    created = [(await create(client, f"user{number}@example.com"))["id"] for number in range(5)]
    listed: list[str] = []
    after: dict[str, str] = {}
    for length in (2, 2, 1):
        page = (await client.get("/users", params={"limit": 2, **after})).json()
        assert len(page["items"]) == length
        listed += [user["id"] for user in page["items"]]
        after = {"after": page["next"]}
    assert page["next"] is None
    assert listed == sorted(created)


async def test_only_what_is_given_changes(client: httpx.AsyncClient) -> None:
    user = await create(client)
    response = await client.patch(f"/users/{user['id']}", json={"full_name": "Countess"})
    assert response.status_code == 200
    assert response.json() == {
        **user,
        "full_name": "Countess",
        "updated_at": response.json()["updated_at"],
    }
    null = await client.patch(f"/users/{user['id']}", json={"full_name": None})
    assert null.status_code == 422


async def test_the_database_sets_the_time_of_a_change(live_client: httpx.AsyncClient) -> None:
    user = await create(live_client)
    changed = await live_client.patch(f"/users/{user['id']}", json={"full_name": "Countess"})
    assert changed.json()["created_at"] == user["created_at"]
    assert changed.json()["updated_at"] > user["updated_at"]


async def test_of_two_at_once_one_gets_the_address(live_client: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(*(live_client.post("/users", json=ADA) for _ in range(4)))
    assert sorted(response.status_code for response in responses) == [201, 409, 409, 409]


async def test_of_changes_and_deletions_at_once_one_deletes(live_client: httpx.AsyncClient) -> None:
    user = await create(live_client)
    address = f"/users/{user['id']}"
    change = {"full_name": "Countess"}
    changed, *deleted = await asyncio.gather(
        live_client.patch(address, json=change),
        live_client.delete(address),
        live_client.delete(address),
    )
    assert changed.status_code in {200, 404}
    assert sorted(response.status_code for response in deleted) == [204, 404]
    assert (await live_client.get(address)).status_code == 404
