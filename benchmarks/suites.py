"""What the databases of the rendered project's tests cost."""

from functools import partial

from benchmarks.measure import Benchmark, Row, Sample, interleaved
from benchmarks.projects import Folder, revisions

PLAIN = """\
from apps.users.models import User


async def test_{n}() -> None:
    user = User(email="{n}@example.com", full_name="Ann")
    assert user.full_name == "Ann"


"""
ON_DATABASE = """\
from apps.users.models import User
from sqlalchemy import select


async def test_{n}(session) -> None:
    session.add(User(email="{n}@example.com", full_name="Ann"))
    await session.flush()
    session.expire_all()
    user = await session.scalar(select(User))
    assert user.full_name == "Ann"


"""
THROUGH_THE_APPLICATION = """\
async def test_{n}_of_the_application(client) -> None:
    response = await client.get("/users")
    assert response.status_code == 200


"""
# Each fifth of the revisions makes a table, with an index and a foreign key; the others change it.
REVISION = '''"""Revision {n}"""
import sqlalchemy as sa
from alembic import op

revision = "b{n}"
down_revision = "{parent}"


def upgrade() -> None:
    {upgrade}


def downgrade() -> None:
    pass
'''
UPGRADES = (
    """op.create_table(
        "b{table}",
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("user_id", sa.Uuid, sa.ForeignKey("users.id"), nullable=False, index=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now()),
    )""",
    """op.add_column("b{table}", sa.Column("state", sa.Text, server_default="new"))
    op.execute("UPDATE b{table} SET state = 'old'")""",
    """op.create_index("ix_b{table}_state", "b{table}", ["state"])""",
    """op.create_check_constraint("ck_b{table}", "b{table}", "name <> ''")""",
    """op.alter_column("b{table}", "state", nullable=False)""",
)


def measure(bench: Benchmark, project: Folder) -> None:
    """Measure the suite of one test, that of many, and one that runs for the second time."""
    _measure_tests(bench, project)
    _measure_second_run(bench, project)


def _run(project: Folder, tests: str, *options: str) -> Sample:
    file = project.path / "tests" / "test_bench.py"
    file.write_text(tests, encoding="utf-8")
    try:
        return project.measure("-m", "pytest", "-q", *options, "tests/test_bench.py")
    finally:
        file.unlink()


def _repeated(text: str, number: int) -> str:
    return "".join(text.format(n=n) for n in range(number))


def _measure_tests(bench: Benchmark, project: Folder) -> None:
    tests = bench.of(200, 20)

    def run(number: int, *options: str) -> dict[str, Sample]:
        texts = {"floor": _repeated(PLAIN, number), "project": _repeated(ON_DATABASE, number)}
        things = {name: partial(_run, project, text, *options) for name, text in texts.items()}
        return interleaved(things, bench.of(5, 1))

    _run(project, ON_DATABASE.format(n=0))  # the migrations; below is what their first run costs

    def on_top(measured: dict[str, Sample]) -> float:
        return measured["project"].value - measured["floor"].value

    one = run(1)
    name = "pytest: one plain test, one on the database"
    bench.add(Row.of(name, "s", one, difference=(on_top(one), "s"), at_most=3))
    many = run(tests)
    each = (on_top(many) - on_top(one)) / (tests - 1) * 1000
    name = f"pytest: {tests} plain tests, {tests} on it"
    bench.add(Row.of(name, "s", many, difference=(each, "ms"), at_most=5))
    parallel = run(tests, "-n", "2")
    name = f"pytest -n 2: {tests} plain tests, {tests} on it"
    bench.add(Row.of(name, "s", parallel, difference=(on_top(parallel), "s"), at_most=3))


def _measure_second_run(bench: Benchmark, project: Folder) -> None:
    number = bench.of(1000, 10)
    texts = {}
    for n in range(number):
        upgrade = UPGRADES[n % len(UPGRADES)].format(table=n // len(UPGRADES))
        parent = f"b{n - 1}" if n else "3f1c9b7d5a20"
        texts[f"b{n}"] = REVISION.format(n=n, parent=parent, upgrade=upgrade)
    tests = _repeated(ON_DATABASE, 5) + _repeated(THROUGH_THE_APPLICATION, 5)
    anew = "--postgresql-drop-test-database"
    with revisions(project, texts):
        _run(project, tests, anew)  # the bytecode of the revisions, which both find then
        measured = interleaved(
            {
                "floor": partial(_run, project, tests, anew),
                "project": partial(_run, project, tests),
            },
            bench.of(3, 1),
        )
    bench.add(Row.of(f"pytest, {number} revisions: first run, second", "s", measured, at_most=0.2))
