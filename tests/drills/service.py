"""Disturbances of the database, the schema and the process while requests are sent."""

import asyncio
import time
from contextlib import suppress
from functools import cache

import psycopg
from sqlalchemy import URL
from tests.drills.flow import (
    ALLOWED,
    LIMIT,
    LONG,
    PAUSE,
    POOL_TIMEOUT,
    READY_REQUEST,
    TABLE,
    Flow,
    requests_flow,
)
from tests.drills.world import (
    LOCK_TIMEOUT,
    DrillError,
    Revision,
    Scripts,
    Server,
    World,
    connect,
    require,
    transaction,
)

SLEEPERS = 5
SLEEP = 1.5
"""Requests that are under way at a SIGTERM, and the seconds that each takes."""
CREATE = f"CREATE TABLE {TABLE} (key int PRIMARY KEY, label varchar(20) NOT NULL)"


def _times(count: int) -> str:
    """Return a number of times in words."""
    return "once" if count == 1 else f"{count} times"


@cache
def _template(world: World) -> str:
    """Create a database at the project's head with the drills' table, and return its name."""
    url = world.server.new_database()
    environment = world.environment(url, {"MIGRATION_BACKUP": "off"})
    world.project.make("migrate-up", env=environment)
    world.server.run(url, CREATE)
    assert url.database
    return url.database


def _new_database(world: World) -> URL:
    url = world.server.new_database(_template(world))
    # The embedded server has it off: a crash would lose the last commits.
    world.server.run(url, f"ALTER DATABASE {url.database} SET synchronous_commit = on")
    return url


def restarts(world: World) -> str:
    """Stop the database, crash it and let it hang."""
    server = world.server
    rounds = world.of(5, 1)
    hang = LIMIT + world.of(5, 1)  # longer than any request may wait
    url = _new_database(world)
    ready: list[float] = []

    async def drill() -> Flow:
        async with requests_flow(world, url) as (service, flow):
            for number in range(rounds):
                for end in (server.stop, server.crash):
                    await asyncio.to_thread(end)
                    await asyncio.sleep(0.5)
                    start = asyncio.create_task(asyncio.to_thread(server.start))
                    await asyncio.to_thread(_wait_for, server)
                    ready.append(await service.seconds_to_ready())
                    await start
                    await flow.goes_well()
                under_way = await _slow_requests(flow, number)
                with server.hanging():
                    await asyncio.sleep(hang)
                ready.append(await service.seconds_to_ready())
                await under_way
                await flow.goes_well()
        return flow

    flow = asyncio.run(drill())
    require(flow.failed, "no request failed: nothing was tested")
    return (
        f"the database stopped, crashed and hung, {_times(rounds)} each: "
        f"{flow.counts(world.server, LIMIT)}; ready again after {flow.readiness(ready)}"
    )


async def _slow_requests(flow: Flow, number: int) -> "asyncio.Future[list[None]]":
    """Send requests that take `SLEEP` seconds, and return when they are half-way."""
    keys = range(number * SLEEPERS + 1, (number + 1) * SLEEPERS + 1)
    slow = asyncio.gather(*(flow.sleep(SLEEP, -key) for key in keys))
    await asyncio.sleep(SLEEP / 2)
    return slow


def _wait_for(server: Server) -> None:
    """Wait until the database answers."""
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        with suppress(psycopg.OperationalError), connect(server.url):
            return
        time.sleep(PAUSE)
    raise DrillError(f"the server does not answer {LONG:.0f} s after its start")


def migration(world: World) -> str:
    """Migrate the table that requests use, while a session holds it."""
    tries = world.of(3, 1)
    url = _new_database(world)
    steps = [
        f"op.execute('ALTER TABLE {TABLE} ADD COLUMN note text')",
        (
            "with op.get_context().autocommit_block():\n"
            f"    op.create_index('ix_note', '{TABLE}', ['note'], postgresql_concurrently=True)"
        ),
        # Invalidates the statements that the service has prepared.
        f"op.execute('ALTER TABLE {TABLE} ALTER COLUMN label TYPE varchar(40)')",
    ]
    parent = world.server.revision(url)
    revisions: list[Revision] = []
    for number, step in enumerate(steps, 1):
        revisions.append(Revision(id=f"drill{number}", parent=parent, upgrade=step))
        parent = revisions[-1].id
    versions = world.project.path / "migrations" / "versions"
    scripts = Scripts(world, "service-migration", revisions, beside=[versions])

    settings = {"DATABASE_POOL_TIMEOUT": 1 + LOCK_TIMEOUT}
    limit = LIMIT - POOL_TIMEOUT + settings["DATABASE_POOL_TIMEOUT"]

    async def drill() -> Flow:
        async with requests_flow(world, url, **settings) as (service, flow):
            await asyncio.to_thread(_migrate_held_table, url, scripts, tries)
            await service.seconds_to_ready()
        return flow

    flow = asyncio.run(drill())
    return (
        f"{len(steps)} revisions of the table in use, held until the {tries + 1}. try: "
        f"{flow.counts(world.server, limit)}"
    )


def _migrate_held_table(url: URL, scripts: Scripts, tries: int) -> None:
    """Upgrade to head, and hold the table until a revision has failed `tries` times."""
    said: list[str] = []
    failed = 0
    with transaction(url, f"SELECT FROM {TABLE}") as holder:
        runner = scripts.begin(url, "upgrade", "head")
        for line in runner.stderr or ():
            said.append(line)
            failed += "retrying" in line
            if failed == tries:
                holder.rollback()
    runner.wait()
    require(runner.returncode == 0, f"the upgrade failed:\n{''.join(said)}")
    require(failed >= tries, f"the table was not held: nothing was tested\n{''.join(said)}")


def pool(world: World) -> str:
    """Let slow requests hold every connection."""
    hold = world.of(10, 2)
    size = 2
    url = _new_database(world)

    async def drill() -> Flow:
        settings = {"DATABASE_POOL_SIZE": size, "DATABASE_COMMAND_TIMEOUT": hold + LIMIT}
        async with requests_flow(world, url, **settings) as (service, flow):
            slow = asyncio.gather(*(flow.sleep(hold, -number) for number in range(1, 1 + size)))
            while not slow.done():
                answer = await service.probe.send(READY_REQUEST)
                require(answer.is_success, f"not ready while the pool is busy: {answer.body!r}")
                await asyncio.sleep(0.2)
        return flow

    flow = asyncio.run(drill())
    require(flow.failed, "no request failed: nothing was tested")
    counts = flow.counts(world.server, POOL_TIMEOUT + ALLOWED)
    return f"all {size} connections held for {hold} s, ready meanwhile: {counts}"


def sigterm(world: World) -> str:
    """Replace the process under load. Then stop it while the database hangs."""
    server = world.server
    rounds = world.of(5, 1)
    url = _new_database(world)
    ready: list[float] = []
    starts: list[float] = []

    running = 0

    async def drill() -> Flow:
        nonlocal running
        async with requests_flow(world, url) as (service, flow):
            for number in range(rounds):
                under_way = await _slow_requests(flow, number)
                running += await asyncio.to_thread(_sleepers, server)
                old = service.process
                flow.may_refuse = True
                old.terminate()
                await service.refuses()
                service.begin()
                starts.append(await service.seconds_to_start())
                ready.append(await service.seconds_to_ready())
                flow.may_refuse = False
                await service.ended(old)
                await under_way
                await flow.goes_well()
            flow.may_refuse = True
            with server.hanging():
                await asyncio.sleep(1)
                service.process.terminate()
                await service.ended(service.process)
            service.begin()
            await service.seconds_to_start()
            await service.seconds_to_ready()
            flow.may_refuse = False
        return flow

    flow = asyncio.run(drill())
    slow = sum(key < 0 for key in flow.written)
    require(running, "no request was under way: nothing was tested")
    require(slow >= running, f"{slow} of {running} requests under way answered")
    return (
        f"SIGTERM {_times(rounds)}, and once while the database hung, "
        f"{running} requests under way answered: "
        f"{flow.counts(world.server, LIMIT)}; the next process answered after {max(starts):.1f} s, and "
        f"was ready after {flow.readiness(ready)} more"
    )


def _sleepers(server: Server) -> int:
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'"
    )
    return int(server.rows(server.url, query)[0][0])
