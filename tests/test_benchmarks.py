"""The benchmark runs, and says what it measured."""

import json
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow
from tests.conftest import Render
from tests.support import Project

from alembic_safety.database.url import DatabaseURL


def test_the_benchmark_measures_each_part_and_writes_it_down(template: Path) -> None:
    checkout = Project(template)
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


def test_the_routes_of_a_project_are_measured_beside_another_commit(
    project: Project, database: psycopg.Connection[TupleRow]
) -> None:
    databases = "SELECT datname FROM pg_database"
    before = database.execute(databases).fetchall()
    project.commit()
    options = ("--seconds=1", "--rounds=1", "--base=HEAD")
    command = ("uv", "run", "python", "-m", "benchmarks", *options)
    printed = project.run(*command, env={"PYTHONPATH": "src"}).stdout
    table = json.loads(project.read("benchmarks/last.json"))
    routes = {"GET /health/live", "GET /users", "GET /users/{user_id}", "POST /users"}
    for tree in ("now", "base"):
        assert routes <= set(table[tree])
        assert all(figure > 0 for of in table[tree].values() for figure in of.values())
    assert all(route in printed for route in routes)
    assert database.execute(databases).fetchall() == before
    assert project.run("git", "status", "--porcelain").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ONLY=/orders"], "ONLY=/orders: there is no such route; there are GET /users"),
        (["BASE=nowhere"], "BASE=nowhere: there is no such branch or commit"),
    ],
)
def test_what_can_t_be_measured_is_said(project: Project, arguments: list[str], said: str) -> None:
    project.commit()
    refused = project.make("bench-app", *arguments, expect=2)
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_route_that_fails_is_named(render: Render, database_url: DatabaseURL) -> None:
    project = render(example_app=False)
    project.environment["DATABASE_URL"] = database_url.libpq
    project.write(
        "src/apps/orders/router.py",
        """from fastapi import APIRouter, HTTPException

router = APIRouter()


@router.get("/orders")
async def orders() -> None:
    raise HTTPException(418)
""",
    )
    refused = project.make("bench-app", "ONLY=orders", expect=2)
    assert "GET /orders is not measured: its answer is 418" in refused.stderr
