"""The benchmark runs, and says what it measured."""

import re
import sys
from pathlib import Path

from tests.support import Project


def test_the_benchmark_prints_a_ratio_for_each_pair(template: Path) -> None:
    checkout = Project(template)
    printed = checkout.run(sys.executable, "benchmarks/bench.py", "1").stdout.splitlines()
    assert len(printed) == 7
    for line in printed[1:]:
        assert re.search(r" \d+\.\d+ x", line), line
