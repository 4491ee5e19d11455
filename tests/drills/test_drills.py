"""The rendered project's drills, in their shorter form."""

import re

from tests.conftest import Render

COUNTS = (
    r"\d+ requests sent, \d+ answered, \d+ failed cleanly, 0 lost; the longest wait was [\d.]+ s"
    r" \(allowed [\d.]+\)"
)
LINES = {
    "runners": r"8 at once, 2 rounds of 5 revisions: each applied once, 16 runners exited 0",
    "kills": (
        r"6 runners ended by SIGKILL, SIGTERM and SIGINT in upgrades of 20 revisions, .* 3 more "
        r"while they built an index, 2 of which the server finished"
    ),
    "restarts": r"2 restarts of the server, half of them crashes, in upgrades of 20 revisions",
    "held-table": r"a table held for 6 s, \d+ requests: none waited longer than [\d.]+ s",
    "failing-backups": r"full disk, killed pg_dump, wrong password: nothing migrated",
    "round-trips": r"3 backups restored, \d+ awkward rows: schemas, rows and sequences equal",
    "mistakes": r"6 mistakes: a clear message each, and an unchanged database",
    "service-restart": rf"the database stopped, crashed and hung, once each: {COUNTS}; ready again",
    "service-migration": rf"3 revisions of the table in use, held until the 2\. try: {COUNTS}",
    "service-pool": rf"all 2 connections held for 2 s, ready meanwhile: {COUNTS}",
    "service-sigterm": rf"SIGTERM once, .*, [1-5] requests under way answered: {COUNTS}; the next",
}


def test_the_drills_hold(render: Render) -> None:
    project = render()
    done = project.make("drill", "QUICK=1", expect=None)
    printed = done.stdout
    assert done.returncode == 0, printed + done.stderr
    lines = dict(re.findall(r"^([\w-]+) +\d+ s  (.*)$", printed, flags=re.MULTILINE))
    assert lines.keys() == LINES.keys(), printed
    for name, pattern in LINES.items():
        assert re.match(pattern, lines[name]), lines[name]


def test_an_unknown_drill_is_named(render: Render) -> None:
    project = render()
    done = project.run(
        "uv", "run", "python", "-m", "drills", "nope", expect=2, env={"PYTHONPATH": "src"}
    )
    assert "no such drill: nope; there are runners, kills" in done.stderr
