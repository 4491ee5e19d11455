"""What is measured, how it is put beside its floor, and how both are shown."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes: what `ru_maxrss` counts in."""


@dataclass(frozen=True)
class Sample:
    """One measurement, or the medians of several."""

    value: float
    memory: float = 0.0
    """Peak resident memory in MB (10^6 bytes) of the process that is measured; 0: not measured."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    measure: str
    unit: str
    floor: Sample
    """The least that does the same."""
    project: Sample
    """What the rendered project does."""
    at_least: float | None = None
    """The target of a figure of which more is better."""
    at_most: float | None = None
    """The target of a figure of which less is better."""
    difference: tuple[float, str] | None = None
    """The result and its unit, where it is not the ratio of the project to the floor."""

    @classmethod
    def of(cls, measure: str, unit: str, measured: Mapping[str, Sample], **target: Any) -> Self:
        """Return the line of what was `interleaved` as `floor` and `project`."""
        return cls(measure, unit, measured["floor"], measured["project"], **target)

    @property
    def result(self) -> tuple[float, str]:
        """Return what is compared with the target, and its unit."""
        return self.difference or (self.project.value / self.floor.value, "x")

    @property
    def reached(self) -> bool | None:
        """Return whether the target was; None where there is none."""
        result, _ = self.result
        if self.at_least is not None:
            return result >= self.at_least
        if self.at_most is not None:
            return result <= self.at_most
        return None


class Benchmark:
    """The table that is being made: printed line by line, and written as JSON."""

    def __init__(self, *, quick: bool) -> None:
        self.quick = quick
        """Whether this run is to show that everything works: its figures say nothing."""
        self.rows: list[tuple[str, Row]] = []
        """Each with the part that it belongs to."""
        self._part = ""

    def of(self, full: int, quick: int) -> int:
        """Return how much of something there is in this run."""
        return quick if self.quick else full

    def begin(self, part: str) -> None:
        """Begin a part of the table."""
        self._part = part
        print(f"\n{part:<46}{'floor':>9}{'project':>9}", end="")
        print(f"{'':<7}{'ratio':>9}  {'to reach':<10}{'MB':>11}", flush=True)

    def add(self, row: Row) -> None:
        """Add and print a line."""
        self.rows.append((self._part, row))
        print(_line(row), flush=True)

    def write(self, file: Path) -> None:
        """Write the table as JSON, with what it was measured on."""
        machine = {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
        }
        rows = [
            {"part": part, **asdict(row), "result": row.result, "reached": row.reached}
            for part, row in self.rows
        ]
        table = {"machine": machine, "quick": self.quick, "rows": rows}
        file.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def _line(row: Row) -> str:
    target, verdict = "", ""
    if row.at_least is not None:
        target = f">= {row.at_least:g}"
    elif row.at_most is not None:
        target = f"<= {row.at_most:g}"
    if row.reached is False:
        verdict = "  missed"
    memory = ""
    if row.floor.memory and row.project.memory:
        memory = f"{row.floor.memory:.0f} / {row.project.memory:.0f}"
    figures = f"{_figure(row.floor.value):>9}{_figure(row.project.value):>9} {row.unit:<6}"
    result = "{:.2f} {}".format(*row.result)
    return f"  {row.measure:<44}{figures}{result:>9}  {target:<10}{memory:>11}{verdict}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004


def interleaved(things: Mapping[str, Callable[[], Sample]], rounds: int) -> dict[str, Sample]:
    """Measure each in turn, `rounds` times; return the medians.

    What disturbs a shared machine for a while then disturbs all of them.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in things}
    for _ in range(rounds):
        for name, measure in things.items():
            samples[name].append(measure())
    return {name: median(measured) for name, measured in samples.items()}


def median(samples: Sequence[Sample]) -> Sample:
    """Return the median of the values, and that of the memory."""
    return Sample(
        statistics.median(sample.value for sample in samples),
        statistics.median(sample.memory for sample in samples),
    )


def command(
    *arguments: str | Path, cwd: Path, environment: Mapping[str, str], allowed: int = 0
) -> Sample:
    """Run a command; return how many seconds it took, and the largest of its processes.

    A command that fails ends the benchmark, with what it printed.

    Args:
        arguments: the program and what it is given.
        cwd: where it runs.
        environment: all of its variables.
        allowed: an exit code that is none of a failure.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            list(arguments), cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        code = process.returncode = os.waitstatus_to_exitcode(status)
        if code not in {0, allowed}:
            output.seek(0)
            sys.exit(f"{arguments}: exit code {code}\n{output.read().decode(errors='replace')}")
    return Sample(seconds, usage.ru_maxrss * _RSS_UNIT / 1e6)
