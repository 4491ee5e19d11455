"""The text of an alembic.ini, from `[tool.alembic]`."""

import configparser
import os
from collections.abc import Mapping

from alembic_safety.ini.errors import ConversionError
from alembic_safety.ini.hooks import hooks_to_ini
from alembic_safety.ini.logging_sections import is_raw
from alembic_safety.ini.table import LIST_OPTIONS, SUBTABLES, Table


def ini_text(table: Table, shown: str) -> str:
    """Return the ini that corresponds to `[tool.alembic]`.

    Args:
        table: the table.
        shown: the name of pyproject.toml in error messages.

    Raises:
        ConversionError: an ini cannot hold a value or a name.
    """
    own = table.get("sections", {})
    sections = {**own, "alembic": {**_main_section(table, shown), **own.get("alembic", {})}}
    sections = {"alembic": sections.pop("alembic"), **sections}
    if hooks := table.get("post_write_hooks"):
        sections["post_write_hooks"] = hooks_to_ini(hooks, shown)
    for name, options in table.get("logging", {}).items():
        sections[name] = {
            option: value if is_raw(name) else value.replace("%", "%%")
            for option, value in options.items()
        }
    text = "\n".join(_section_text(name, options) for name, options in sections.items())
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    for name, options in sections.items():
        for option, value in options.items():
            if parser.get(name, option, fallback="") != value:
                raise ConversionError(
                    f"{shown}: [tool.alembic]: {option}: an ini cannot hold {value!r}"
                )
    return text


def _main_section(table: Table, shown: str) -> dict[str, str]:
    lists = [value for option, value in table.items() if option in LIST_OPTIONS and value]
    newline = any(len(value) > 1 or os.pathsep in "".join(value) for value in lists)
    main = {"path_separator": "newline" if newline else "os"} if lists else {}
    for option, value in table.items():
        if option in LIST_OPTIONS:
            if value:
                main[option] = "".join(f"\n{part}" for part in value) if newline else value[0]
        elif isinstance(value, bool):
            main[option] = str(value).lower()
        elif isinstance(value, str | int):
            main[option] = str(value)
        elif option not in SUBTABLES and not isinstance(value, dict):
            raise ConversionError(
                f"{shown}: [tool.alembic]: {option}: an ini cannot hold a list for this option"
            )
    return main


def _section_text(name: str, options: Mapping[str, str]) -> str:
    lines = [f"[{name}]"]
    for option, value in options.items():
        indented = value.replace("\n", "\n    ")
        lines.append(f"{option} ={' ' if value and value[0] != chr(10) else ''}{indented}")
    return "".join(f"{line}\n" for line in lines)
