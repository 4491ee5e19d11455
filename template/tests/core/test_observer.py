"""Observers of a run, passed as `Config(attributes={"observer": ...})`."""

import pytest
from tests.support import Project

from core.migrations.observer import Observer


class Log(Observer):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, revision: str, /) -> None:
        self.lines.append(f"begin {revision}")

    def end(self) -> None:
        self.lines.append("end")


def test_an_observer_is_told_of_each_revision_and_of_no_end_of_one_that_fails(
    project: Project,
) -> None:
    project.write("a1")
    project.write("b2", "a1")
    project.write("c3", "b2", "raise RuntimeError('halfway')")
    log = Log()
    project.refused("upgrade", "head", observer=log)
    assert log.lines == ["begin a1", "end", "begin b2", "end", "begin c3"]
    log.lines.clear()
    project.run("downgrade", "a1", observer=log)
    assert log.lines == ["begin b2", "end"]


def test_an_observer_that_raises_stops_the_revision(project: Project) -> None:
    class Refusing(Log):
        def end(self) -> None:
            raise RuntimeError("not this one")

    project.write("a1")
    with pytest.raises(RuntimeError, match="not this one"):
        project.run("upgrade", "head", observer=Refusing())
    assert project.tables() == set()
