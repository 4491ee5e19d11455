"""What the databases of the rendered project's tests cost."""

from functools import partial

from benchmarks.measure import Benchmark, Row, Sample, interleaved
from benchmarks.projects import Folder

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
    one = run(1)
    fixed = one["project"].value - one["floor"].value
    bench.add(
        Row(
            "pytest: one plain test, one on the database",
            "s",
            floor=one["floor"],
            project=one["project"],
            difference=(fixed, "s"),
            at_most=3,
        )
    )
    many = run(tests)
    each = (many["project"].value - many["floor"].value - fixed) / (tests - 1) * 1000
    bench.add(
        Row(
            f"pytest: {tests} plain tests, {tests} on it",
            "s",
            floor=many["floor"],
            project=many["project"],
            difference=(each, "ms"),
            at_most=5,
        )
    )
    parallel = run(tests, "-n", "2")
    bench.add(
        Row(
            f"pytest -n 2: {tests} plain tests, {tests} on it",
            "s",
            floor=parallel["floor"],
            project=parallel["project"],
            difference=(parallel["project"].value - parallel["floor"].value, "s"),
            at_most=3,
        )
    )


def _measure_second_run(bench: Benchmark, project: Folder) -> None:
    number = bench.of(1000, 10)
    versions = project.path / "migrations" / "versions"
    written = [versions / f"b{n}.py" for n in range(number)]
    for n, file in enumerate(written):
        upgrade = UPGRADES[n % len(UPGRADES)].format(table=n // len(UPGRADES))
        text = REVISION.format(n=n, parent=f"b{n - 1}" if n else "3f1c9b7d5a20", upgrade=upgrade)
        file.write_text(text, encoding="utf-8")
    tests = _repeated(ON_DATABASE, 5) + _repeated(THROUGH_THE_APPLICATION, 5)
    anew = "--postgresql-drop-test-database"
    try:
        _run(project, tests, anew)  # the bytecode of the revisions, which both find then
        measured = interleaved(
            {
                "floor": partial(_run, project, tests, anew),
                "project": partial(_run, project, tests),
            },
            bench.of(3, 1),
        )
    finally:
        for file in written:
            file.unlink()
    bench.add(
        Row(
            f"pytest, {number} revisions: first run, second",
            "s",
            floor=measured["floor"],
            project=measured["project"],
            at_most=0.2,
        )
    )
