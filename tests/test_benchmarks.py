"""The benchmark runs, and says what it measured."""

import json
import shutil
import sys
from pathlib import Path

from tests.support import Project


def test_the_benchmark_measures_each_part_and_writes_it_down(
    template: Path, tmp_path: Path
) -> None:
    checkout = Project(shutil.copytree(template, tmp_path / "checkout"))
    printed = checkout.run(sys.executable, "-m", "benchmarks", "--quick").stdout
    table = json.loads(checkout.read("benchmarks/last.json"))
    parts = {row["part"] for row in table["rows"]}
    assert parts == {"requests", "tests", "migrations", "plan", "copying"}
    for row in table["rows"]:
        assert row["measure"] in printed
        assert row["floor"]["value"] > 0
        assert row["project"]["value"] > 0


def test_a_part_that_does_not_exist_is_named(template: Path) -> None:
    command = (sys.executable, "-m", "benchmarks", "--only=tests,speed")
    error = Project(template).run(*command, expect=2).stderr
    parts = "requests, tests, migrations, plan, copying"
    assert f"ONLY=speed: there is no such part; there are {parts}" in error
