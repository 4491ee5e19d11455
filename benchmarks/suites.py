"""What the databases of the rendered project's tests cost."""

from functools import partial

from benchmarks.measure import Benchmark, Row, Sample, interleaved
from benchmarks.projects import Folder

PLAIN = "async def test_{n}() -> None:\n    assert True\n\n\n"
ON_DATABASE = "async def test_{n}(session) -> None:\n    assert session.is_active\n\n\n"


def measure(bench: Benchmark, project: Folder) -> None:
    """Measure the suite of one test, and that of many."""
    tests = bench.of(200, 20)
    rounds = bench.of(5, 1)

    def run(text: str, number: int) -> Sample:
        file = project.path / "tests" / "test_bench.py"
        file.write_text("".join(text.format(n=n) for n in range(number)), encoding="utf-8")
        try:
            return project.measure("-m", "pytest", "-q", "tests/test_bench.py")
        finally:
            file.unlink()

    one = interleaved(
        {"floor": partial(run, PLAIN, 1), "project": partial(run, ON_DATABASE, 1)}, rounds
    )
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
    many = interleaved(
        {"floor": partial(run, PLAIN, tests), "project": partial(run, ON_DATABASE, tests)}, rounds
    )
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
