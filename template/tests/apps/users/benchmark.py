"""What `make bench-app` asks of the app, beside its plain GETs."""

import httpx
from benchmarks.load import Request


def requests(client: httpx.Client) -> dict[str, list[Request]]:
    """Return the requests of each route, which are sent in turn; `{n}` is another number each time."""
    ids = [
        client.post("/users", json={"email": f"reader{n}@example.com", "full_name": f"Reader {n}"})
        .raise_for_status()
        .json()["id"]
        for n in range(200)
    ]
    new = {"email": "writer{n}@example.com", "full_name": "Writer {n}"}
    return {
        "GET /users/{user_id}": [Request("GET", f"/users/{user_id}") for user_id in ids],
        "POST /users": [Request("POST", "/users", new)],
        "PATCH /users/{user_id}": [
            Request("PATCH", f"/users/{user_id}", {"full_name": "Reader {n}"}) for user_id in ids
        ],
    }
