"""Promises about production, each tried on a real server and counted.

`make test` runs a short form of each drill, `make drill` the full one.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tests.conftest import Render
from tests.drills import service
from tests.drills.backups import failing_backups, round_trips
from tests.drills.concurrency import kills, restarts, runners
from tests.drills.mistakes import mistakes
from tests.drills.waiting import held_table
from tests.drills.world import Server, World

FULL = "FULL_DRILLS" in os.environ
COUNTS = (
    r"\d+ requests sent, \d+ answered, \d+ failed cleanly, 0 lost; the longest wait was [\d.]+ s"
    r" \(allowed [\d.]+\)"
)
DRILLS: dict[str, tuple[Callable[[World], str], str]] = {
    "runners": (runners, r"8 at once, 2 rounds of 5 revisions: each applied once, 16 runners"),
    "kills": (
        kills,
        r"6 runners ended by SIGKILL, SIGTERM and SIGINT in .* 3 more while .*, 1 of which the server",
    ),
    "restarts": (restarts, r"2 restarts of the server, half of them crashes, in upgrades of 20"),
    "held-table": (held_table, r"a table held for 6 s, \d+ requests: none waited longer than"),
    "failing-backups": (failing_backups, r"full disk, killed pg_dump, wrong password: nothing"),
    "round-trips": (round_trips, r"3 backups restored, \d+ awkward rows: schemas, rows and"),
    "mistakes": (mistakes, r"6 mistakes: a clear message each, and an unchanged database"),
    "service-restart": (
        service.restarts,
        rf"the database stopped, crashed and hung, once each: {COUNTS}; ready again",
    ),
    "service-migration": (
        service.migration,
        rf"3 revisions of the table in use, held until the 2\. try: {COUNTS}",
    ),
    "service-pool": (
        service.pool,
        rf"all 2 connections held for 2 s, ready meanwhile: {COUNTS}",
    ),
    "service-sigterm": (
        service.sigterm,
        rf"SIGTERM once, .*, [1-5] requests under way answered: {COUNTS}; the next",
    ),
}


@pytest.fixture
def world(render: Render, tmp_path: Path) -> Iterator[World]:
    # Not in tmp_path: pytest, run by root, may close the folders above it to PostgreSQL.
    with TemporaryDirectory(prefix="drill-") as folder:
        server = Server(Path(folder))
        yield World(project=render(), server=server, folder=tmp_path, quick=not FULL)
        server.stop()


@pytest.mark.parametrize("name", DRILLS)
def test_the_drill_holds(name: str, world: World) -> None:
    drill, result_of_short_form = DRILLS[name]
    started = time.monotonic()
    result = drill(world)
    print(f"\n{name:<18} {time.monotonic() - started:4.0f} s  {result}")
    assert FULL or re.match(result_of_short_form, result)
