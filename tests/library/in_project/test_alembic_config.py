"""`[tool.alembic]`, and which of the five places of an option wins."""

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from alembic_safety.config import AlembicConfig, make_config, toml_file
from alembic_safety.errors import AlembicConfigError
from alembic_safety.options import SafetyOptions
from alembic_safety.project import Project, Target
from core.project import ROOT

NOTHING: Mapping[str, object] = MappingProxyType({})


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MIGRATION_")]:
        monkeypatch.delenv(name)


def read_options(
    folder: Path, *, x_arguments: Sequence[str] = (), attributes: Mapping[str, object] = NOTHING
) -> SafetyOptions:
    """Read the options of a pyproject.toml as migrations/env.py has them read."""
    config = make_config(folder, **attributes)

    def load() -> AlembicConfig:
        with toml_file(config).open("rb") as file:
            return AlembicConfig.from_pyproject(tomllib.load(file))

    def no_target() -> Target:
        raise AssertionError("options need no target")

    return Project(config, load, no_target, x_arguments=x_arguments).options


def write(path: Path, text: str) -> Path:
    file = path / "pyproject.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_project_s_own_table_is_valid() -> None:
    read_options(ROOT)
    assert make_config(ROOT).get_alembic_option("script_location") == str(ROOT / "migrations")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("[tool.alembic]\nfile_tempalte = 'x'", "file_tempalte: unknown key; did you mean file_template?"),
        ("[tool.alembic]\nqqq = 1", "qqq: unknown key; expected one of script_location"),
        ("[tool.alembic]\ntruncate_slug_length = '40'", "truncate_slug_length: expected a valid integer, not '40'"),
        ("[tool.alembic]\nprepend_sys_path = 'src'", "prepend_sys_path: expected a valid list, not 'src'"),
        ("[tool.alembic.safety]\nlock_timout = '1s'", "safety.lock_timout: unknown key; did you mean lock_timeout?"),
        ("[tool.alembic.safety]\nlock_timeout = 2", "safety.lock_timeout: expected a duration"),
        ("[tool.alembic]\nsafety = 1", "safety: "),
        ("[tool]\nalembic = 1", "[tool.alembic]: expected a table"),
        ("[tool.alembic", "not valid TOML"),
    ],
)  # fmt: skip
def test_a_wrong_table_says_which_key_and_what_is_expected(
    tmp_path: Path, table: str, says: str
) -> None:
    file = write(tmp_path, table)
    with pytest.raises(AlembicConfigError) as error:
        read_options(tmp_path)
    assert says in str(error.value)
    assert str(file) in str(error.value)


def test_the_first_place_that_has_an_option_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "[tool.alembic.safety]\nlock_timeout = '4s'")
    empty = tmp_path / "empty"
    empty.mkdir()
    write(empty, "")
    arguments = ["lock_timeout=2s", "tenant=blue"]
    monkeypatch.setenv("MIGRATION_LOCK_TIMEOUT", "3s")
    attributes = {"lock_timeout": "1s"}
    everywhere = read_options(tmp_path, x_arguments=arguments, attributes=attributes)
    assert everywhere.lock_timeout == 1000
    assert read_options(tmp_path, x_arguments=arguments).lock_timeout == 2000
    assert read_options(tmp_path).lock_timeout == 3000
    monkeypatch.delenv("MIGRATION_LOCK_TIMEOUT")
    assert read_options(tmp_path).lock_timeout == 4000
    assert read_options(empty).lock_timeout == 2000


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ({"environment": {"MIGRATION_LOCK_TIMEOUT": "soon"}}, "MIGRATION_LOCK_TIMEOUT: expected"),
        ({"x_arguments": ["lock_timeout=soon"]}, "-x lock_timeout: expected a duration"),
        ({"x_arguments": ["lock_timout=1s"]}, "-x lock_timout: unknown option"),
        ({"attributes": {"lock_timeout": None}}, "attributes['lock_timeout']: expected"),
    ],
)
def test_a_wrong_option_says_where_it_stands(
    places: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in places.pop("environment", {}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AlembicConfigError) as error:
        read_options(ROOT, **places)
    assert str(error.value).startswith(says)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("off", 0), ("500ms", 500), ("2s", 2000), ("1min", 60_000), ("1h", 3_600_000), ("0s", 0)],
)
def test_durations(text: str, milliseconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIGRATION_STATEMENT_TIMEOUT", text)
    assert read_options(ROOT).statement_timeout == milliseconds
