"""`[tool.alembic]`, and which of the five places of an option wins."""

from pathlib import Path

import pytest

from alembic_safety.config import AlembicConfigError, load_alembic_config, make_config
from core.project import ROOT


def write(path: Path, text: str) -> Path:
    file = path / "pyproject.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_project_s_own_table_is_valid() -> None:
    load_alembic_config(environment={})
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
        load_alembic_config(file, environment={})
    assert says in str(error.value)
    assert str(file) in str(error.value)


def test_the_first_place_that_has_an_option_wins(tmp_path: Path) -> None:
    file = write(tmp_path, "[tool.alembic.safety]\nlock_timeout = '4s'")
    empty = tmp_path / "empty.toml"
    empty.touch()
    environment = {"MIGRATION_LOCK_TIMEOUT": "3s"}
    arguments = ["lock_timeout=2s", "tenant=blue"]

    def lock_timeout(**places: object) -> int:
        return load_alembic_config(**places).safety.lock_timeout  # type: ignore[arg-type]

    everywhere = {"path": file, "environment": environment, "x_arguments": arguments}
    assert lock_timeout(**everywhere, attributes={"lock_timeout": "1s"}) == 1000
    assert lock_timeout(**everywhere) == 2000
    assert lock_timeout(path=file, environment=environment) == 3000
    assert lock_timeout(path=file, environment={}) == 4000
    assert lock_timeout(path=empty, environment={}) == 2000


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ({"environment": {"MIGRATION_LOCK_TIMEOUT": "soon"}}, "MIGRATION_LOCK_TIMEOUT: expected"),
        ({"x_arguments": ["lock_timeout=soon"]}, "-x lock_timeout: expected a duration"),
        ({"x_arguments": ["lock_timout=1s"]}, "-x lock_timout: no such option"),
        ({"attributes": {"lock_timeout": None}}, "attributes['lock_timeout']: expected"),
    ],
)
def test_a_wrong_option_says_where_it_stands(places: dict[str, object], says: str) -> None:
    with pytest.raises(AlembicConfigError) as error:
        load_alembic_config(**{"environment": {}, **places})  # type: ignore[arg-type]
    assert str(error.value).startswith(says)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("off", 0), ("500ms", 500), ("2s", 2000), ("1min", 60_000), ("1h", 3_600_000), ("0s", 0)],
)
def test_durations(text: str, milliseconds: int) -> None:
    config = load_alembic_config(environment={"MIGRATION_STATEMENT_TIMEOUT": text})
    assert config.safety.statement_timeout == milliseconds
