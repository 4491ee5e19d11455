"""`make bench`: what the rendered project costs, beside floors in the same run.

benchmarks/README.md says what each floor is.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import copying, migrations, plan, requests, suites
from benchmarks.measure import Benchmark
from benchmarks.projects import Folder, render

PARTS: dict[str, Callable[[Benchmark, Folder], None]] = {
    "requests": requests.measure,
    "tests": suites.measure,
    "migrations": migrations.measure,
    "plan": plan.measure,
    "copying": copying.measure,
}


def main() -> int:
    """Measure what was asked for, print the table and write it; return the exit code."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", default="", help=f"of {', '.join(PARTS)}; several with commas")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/last.json"))
    parser.add_argument("--quick", action="store_true", help="show that it runs; not its figures")
    given = parser.parse_args()
    chosen = [name.strip() for name in given.only.split(",") if name.strip()] or list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"ONLY={unknown[0]}: there is no such part; there are {', '.join(PARTS)}")
    started = time.monotonic()
    benchmark = Benchmark(quick=given.quick)
    with tempfile.TemporaryDirectory() as folder:
        # PostgreSQL, which does not run as root, has to get through.
        Path(folder).chmod(0o711)
        project = render(Path(folder) / "project")
        try:
            for name in chosen:
                benchmark.begin(name)
                PARTS[name](benchmark, project)
        finally:
            project.run("make", "db-stop")
    benchmark.write(given.json)
    missed = sum(row.reached is False for _, row in benchmark.rows)
    print(f"\n{len(benchmark.rows)} measures, {missed} of them missed their target; ", end="")
    print(f"{given.json}; {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
