"""Concurrent runners, killed runners, and a server that restarts."""

import functools
import itertools
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import URL
from tests.drills.world import (
    BASE,
    TIMEOUT,
    DrillError,
    Revision,
    Scripts,
    World,
    require,
    transaction,
)

REVISIONS = 20
PAUSE = 'op.execute("SELECT pg_sleep(0.02)")'
BEFORE_BUILD = "r03"
"""The revision before the first that builds an index concurrently."""
BUILDING = (
    "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database()"
    " AND query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event_type = 'Lock'"
)
INVALID = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"
STEP_BY_STEP = """
import sys
from alembic import command
from alembic.config import Config

config = Config(toml_file=sys.argv[1])
for line in sys.stdin:
    command.upgrade(config, line.strip())
    print("upgraded", flush=True)
"""
"""Upgrades to each revision that is read, and prints a line after each."""


def make_revisions(count: int) -> list[Revision]:
    """Return revisions of several statements each; every fifth builds an index concurrently."""
    revisions = []
    for number in range(1, count + 1):
        table = f"t{number - (number - 1) % 5}"
        kinds = {
            1: f'op.execute("CREATE TABLE {table} (id int PRIMARY KEY, name text)")\n{PAUSE}\n'
            f"op.execute(\"CREATE TYPE mood{number} AS ENUM ('a', 'b')\")",
            2: f'op.execute("ALTER TABLE {table} ADD COLUMN c{number} int")\n{PAUSE}\n'
            f'op.execute("CREATE VIEW v{number} AS SELECT id FROM {table}")',
            3: f"op.execute(\"INSERT INTO {table} SELECT i, 'x' FROM generate_series(1, 2000) i\")\n"
            f'{PAUSE}\nop.execute("ALTER TABLE {table} ADD CHECK (id > 0)")',
            4: "with op.get_context().autocommit_block():\n"
            f'    op.create_index("ix{number}", "{table}", ["name"], postgresql_concurrently=True)',
            0: f'op.execute("ALTER TABLE {table} RENAME COLUMN name TO label")\n{PAUSE}\n'
            f'op.execute("CREATE INDEX ON {table} (label, id)")',
        }
        parent = f"r{number - 1:02}" if number > 1 else None
        revisions.append(Revision(id=f"r{number:02}", parent=parent, upgrade=kinds[number % 5]))
    return revisions


def runners(world: World) -> str:
    """Start runners at the same time. Each revision must be applied once."""
    server = world.server
    rounds, count = world.of(20, 2), 8
    revisions = make_revisions(5)
    scripts = Scripts(world, "runners", revisions)
    for _ in range(rounds):
        url = server.new_database()
        started = [scripts.begin(url, "upgrade", "head") for _ in range(count)]
        for runner in started:
            _, said = runner.communicate(timeout=TIMEOUT)
            require(runner.returncode == 0, f"a runner ended with {runner.returncode}:\n{said}")
        applied = server.rows(url, "SELECT revision FROM alembic_version_history ORDER BY id")
        require(applied == [(item.id,) for item in revisions], f"applied: {applied}")
        require(server.rows(url, INVALID) == [(0,)], "an invalid index was left")
    return (
        f"{count} at once, {rounds} rounds of {len(revisions)} revisions: each applied once, "
        f"{rounds * count} runners exited 0, no invalid index"
    )


class _Upgrades:
    """Disturbed upgrades, and the schema of each revision to compare them with."""

    def __init__(self, world: World, name: str) -> None:
        self.server = world.server
        revisions = make_revisions(REVISIONS)
        self.scripts = Scripts(world, name, revisions)
        self.head = revisions[-1].id
        self.building_indexes = {item.id for item in revisions if "concurrently" in item.upgrade}
        url = self.server.new_database()
        self.expected = {BASE: self.server.dump(url)}
        with subprocess.Popen(
            [world.python, "-c", STEP_BY_STEP, str(self.scripts.config)],
            cwd=world.project.path,
            env=world.environment(url),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdin
            assert process.stdout
            for revision in revisions:
                print(revision.id, file=process.stdin, flush=True)
                require(process.stdout.readline() == "upgraded\n", f"{revision.id} failed")
                self.expected[revision.id] = self.server.dump(url)
            process.stdin.close()
        require(len(set(self.expected.values())) == REVISIONS + 1, "revisions that do nothing")
        runner, reader, _ = self._begin(self.server.new_database())
        started = time.monotonic()
        runner.wait(TIMEOUT)
        reader.join()
        self.seconds = time.monotonic() - started
        """How long an undisturbed upgrade takes after it has connected."""

    def disturb(self, disturbance: Callable[["subprocess.Popen[str]"], None]) -> str:
        """Disturb an upgrade at a random moment, and return the revision at which it stopped.

        Raises:
            DrillError: the schema is not that revision's, or the next run did not finish.
        """
        url = self.server.new_database()
        runner, reader, said = self._begin(url)
        time.sleep(random.uniform(0, self.seconds))  # noqa: S311
        disturbance(runner)
        runner.wait(TIMEOUT)
        reader.join()
        text = "".join(said)
        require("Traceback" not in text, f"a traceback:\n{text}")
        self.server.wait_for_runners(url)
        revision = self.server.revision(url)
        require(
            self.server.dump(url) in self._schemas_at(revision),
            f"{url.database} says {revision}, and has another schema",
        )
        self.scripts.upgrade(url)
        self._check_head(url)
        return revision

    def _begin(self, url: URL) -> tuple["subprocess.Popen[str]", threading.Thread, list[str]]:
        """Start an upgrade and wait until it has connected.

        Returns the process, the thread that reads its log, and the lines that were read.
        """
        runner = self.scripts.begin(url, "upgrade", "head")
        began = threading.Event()
        said: list[str] = []

        def read() -> None:
            for line in runner.stderr or ():
                said.append(line)
                if "Will assume" in line:
                    began.set()
            began.set()

        reader = threading.Thread(target=read)
        reader.start()
        began.wait(TIMEOUT)
        return runner, reader, said

    def kill_during_build(self, number: signal.Signals) -> bool:
        """End a runner while it builds an index. Return whether the server finished the index."""
        url = self.server.new_database()
        upgraded = self.scripts.begin(url, "upgrade", BEFORE_BUILD)
        upgraded.communicate(timeout=TIMEOUT)
        # The build waits for this transaction.
        with transaction(url, "INSERT INTO t1 (id) VALUES (5000)"):
            runner = self.scripts.begin(url, "upgrade", "head")
            self.server.wait_until(url, BUILDING)
            runner.send_signal(number)
            try:
                _, said = runner.communicate(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                runner.kill()
                _, said = runner.communicate()
                raise DrillError(f"still running after {number.name}:\n{said}") from None
        require("Traceback" not in said, f"a traceback:\n{said}")
        self.server.wait_for_runners(url)
        require(self.server.revision(url) == BEFORE_BUILD, "a revision was recorded too early")
        built = self.server.rows(url, INVALID) == [(0,)]
        require(built is (number == signal.SIGKILL), f"{number.name}: the index is not as expected")
        self.scripts.upgrade(url)
        self._check_head(url)
        return built

    def _schemas_at(self, revision: str) -> list[str]:
        """Return the schemas that a database at `revision` may have."""
        names = list(self.expected)
        following = names[names.index(revision) + 1 :][:1]
        # CREATE INDEX CONCURRENTLY commits before the revision is recorded.
        built = [name for name in following if name in self.building_indexes]
        return [self.expected[name] for name in (revision, *built)]

    def _check_head(self, url: URL) -> None:
        require(self.server.revision(url) == self.head, "the next run did not get to head")
        require(self.server.dump(url) == self.expected[self.head], "head has another schema")
        require(self.server.rows(url, INVALID) == [(0,)], "an invalid index was left")


def kills(world: World) -> str:
    """Send signals to runners at random moments, and while they build an index."""
    count = world.of(50, 6)
    upgrades = _Upgrades(world, "kills")
    kinds = itertools.cycle((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    disturbances = [
        functools.partial(_send, number=number) for number in itertools.islice(kinds, count)
    ]
    with ThreadPoolExecutor(max_workers=2) as pool:
        stopped = list(pool.map(upgrades.disturb, disturbances))
    builds = [upgrades.kill_during_build(next(kinds)) for _ in range(world.of(15, 3))]
    return (
        f"{count} runners ended by SIGKILL, SIGTERM and SIGINT in upgrades of {REVISIONS} "
        f"revisions, which stopped at {len(set(stopped))} different ones, {len(builds)} more "
        f"while they built an index, {builds.count(True)} of which the server finished: always "
        "exactly one revision's schema (an index that is built concurrently may be ahead of it), "
        "and the next run finished"
    )


def _send(runner: "subprocess.Popen[str]", number: signal.Signals) -> None:
    runner.send_signal(number)


def restarts(world: World) -> str:
    """Restart the server during upgrades, with and without a checkpoint."""
    server = world.server
    count = world.of(10, 2)
    upgrades = _Upgrades(world, "restarts")
    stopped = []
    for number in range(count):
        end = server.crash if number % 2 else server.stop

        def restart(_runner: object, end: Callable[[], None] = end) -> None:
            end()
            server.start()

        stopped.append(upgrades.disturb(restart))
    return (
        f"{count} restarts of the server, half of them crashes, in upgrades of {REVISIONS} "
        f"revisions, which stopped at {len(set(stopped))} different ones: always exactly one "
        "revision's schema, and the next run finished"
    )
