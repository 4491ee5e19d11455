"""Checks of the project's files."""

from alembic_safety.options import ENVIRONMENT_PREFIX, OPTIONS
from core.config import Settings
from core.project import ROOT


def test_the_example_of_the_environment_is_complete() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    names = {name.upper() for name in Settings.model_fields}
    names |= {ENVIRONMENT_PREFIX + name.upper() for name in OPTIONS}
    given = {line[1:].partition("=")[0] for line in example.splitlines() if line[1:2].isupper()}
    assert names - given == set()
