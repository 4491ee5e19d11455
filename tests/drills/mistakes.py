"""Common mistakes: each gets a clear message, and the database is unchanged."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import URL
from tests.drills.world import TIMEOUT, Revision, Scripts, Server, World, require

READER = "drill_reader"


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A mistake, and a part of its message."""

    name: str
    message: str
    revisions: tuple[Revision, ...] = ()
    prepare: Callable[[Server, URL], URL] = lambda _server, url: url


def _create(name: str, parent: str | None = "r01") -> Revision:
    return Revision(id=name, parent=parent, upgrade=f'op.execute("CREATE TABLE {name} (id int)")')


def _unknown_revision(server: Server, url: URL) -> URL:
    server.run(url, "UPDATE alembic_version SET version_num = 'feedbeef'")
    return url


def _read_only(server: Server, url: URL) -> URL:
    server.run(url, f"ALTER DATABASE {url.database} SET default_transaction_read_only = on")
    return url


def _without_rights(server: Server, url: URL) -> URL:
    server.run(url, f"CREATE ROLE {READER} LOGIN")
    server.run(url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {READER}")
    return url.set(username=READER)


MISTAKES = (
    Mistake(
        name="a wrong down_revision",
        message="which does not exist; fix the down_revision",
        revisions=(_create("r02", "nowhere"),),
    ),
    Mistake(
        name="two heads",
        message="the code has two heads",
        revisions=(_create("r02"), _create("r03")),
    ),
    Mistake(
        name="an unknown revision in the database",
        message="there is no revision 'feedbeef' in this code",
        revisions=(_create("r02"),),
        prepare=_unknown_revision,
    ),
    Mistake(
        name="a revision that raises in the middle",
        message="r02.py:9, in upgrade: RuntimeError: halfway",
        revisions=(
            Revision(
                id="r02",
                parent="r01",
                upgrade='op.execute("CREATE TABLE r02 (id int)")\n\nraise RuntimeError("halfway")',
            ),
        ),
    ),
    Mistake(
        name="a read-only server",
        message="the database is read-only",
        revisions=(_create("r02"),),
        prepare=_read_only,
    ),
    Mistake(
        name="a user without rights",
        message="the user of the migrations lacks a privilege; grant it",
        revisions=(_create("r02"),),
        prepare=_without_rights,
    ),
)


def mistakes(world: World) -> str:
    """Make each mistake in a database that is at its first revision."""
    server = world.server
    first = _create("r01", None)
    for number, mistake in enumerate(MISTAKES):
        url = server.new_database()
        Scripts(world, f"mistake-{number}-before", [first]).upgrade(url)
        server.run(url, "INSERT INTO r01 VALUES (1)")
        scripts = Scripts(world, f"mistake-{number}", [first, *mistake.revisions])
        used = mistake.prepare(server, url)
        before = server.dump(url, data=True)
        runner = scripts.begin(used, "upgrade", "head")
        _, said = runner.communicate(timeout=TIMEOUT)
        require(runner.returncode == 1, f"{mistake.name}: exit code {runner.returncode}\n{said}")
        require(mistake.message in said, f"{mistake.name}: the message is\n{said}")
        require("Traceback" not in said, f"{mistake.name}: a traceback\n{said}")
        require(server.dump(url, data=True) == before, f"{mistake.name}: the database changed")
    return f"{len(MISTAKES)} mistakes: a clear message each, and an unchanged database"
