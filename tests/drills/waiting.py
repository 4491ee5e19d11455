"""A session that holds a table while requests are sent."""

import threading
import time

from sqlalchemy import URL
from tests.drills.world import (
    LOCK_TIMEOUT,
    Revision,
    Scripts,
    World,
    connect,
    require,
    transaction,
)

CLIENTS = 4
PAUSE = 0.01
ALLOWED = 1.0
"""Seconds on top of lock_timeout."""

BARE_ENV = """
import os
from alembic import context
from sqlalchemy import create_engine

url = os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:", 1)
with create_engine(url).connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""


class _Requests:
    """Clients that query a table in a loop, and the wait for each query."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.waits: list[float] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]

    def _ask(self, number: int) -> None:
        statements = (
            "SELECT count(*) FROM orders",
            f"UPDATE orders SET amount = amount + 1 WHERE id = {number}",
        )
        with connect(self.url) as connection:
            while not self._stop.is_set():
                for statement in statements:
                    started = time.monotonic()
                    connection.execute(statement.encode())
                    self.waits.append(time.monotonic() - started)
                    time.sleep(PAUSE)

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> float:
        """Return the longest wait, in seconds."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return max(self.waits)


def held_table(world: World) -> str:
    """Hold a table that a revision alters. Compare the waits with those under bare Alembic."""
    server = world.server
    seconds = world.of(30, 6)
    limit = LOCK_TIMEOUT + ALLOWED
    revision = Revision(
        id="r01", parent=None, upgrade='op.execute("ALTER TABLE orders ADD COLUMN note text")'
    )
    url = server.new_database()
    server.run(url, "CREATE TABLE orders (id int PRIMARY KEY, amount int NOT NULL)")
    server.run(url, "INSERT INTO orders SELECT i, 0 FROM generate_series(0, 99) i")
    tried = [
        (Scripts(world, "held-table", [revision]), url),
        (
            Scripts(world, "held-table-bare", [revision], env=BARE_ENV),
            server.new_database(url.database),
        ),
    ]
    requests = [_Requests(database) for _, database in tried]
    with (
        transaction(tried[0][1], "SELECT FROM orders"),
        transaction(tried[1][1], "SELECT FROM orders"),
    ):
        for flow in requests:
            flow.begin()
        runners = [scripts.begin(database, "upgrade", "head") for scripts, database in tried]
        server.wait_until(tried[1][1], "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
        time.sleep(seconds)
    for runner in runners:
        _, said = runner.communicate(timeout=120)
        require(runner.returncode == 0, f"the upgrade failed:\n{said}")
    ours, bare = [flow.end() for flow in requests]
    require(bare > limit, f"bare Alembic let requests wait {bare:.1f} s only: nothing was tested")
    require(ours <= limit, f"a request waited {ours:.1f} s, allowed are {limit:.1f}")
    return (
        f"a table held for {seconds} s, {len(requests[0].waits)} requests: none waited longer than "
        f"{ours:.1f} s (allowed {limit:.1f}); under bare Alembic {bare:.1f} s"
    )
