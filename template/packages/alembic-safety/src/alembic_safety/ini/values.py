"""Conversion of an ini's values to those of pyproject.toml."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic_safety.ini.errors import ConversionError
from alembic_safety.ini.ini_file import HERE, IniFile
from alembic_safety.ini.table import (
    ALEMBIC_OPTIONS,
    BOOLEAN_OPTIONS,
    LIST_OPTIONS,
    SEPARATOR_OPTIONS,
    Table,
)

_SEPARATORS = {"space": " ", "newline": "\n", "os": os.pathsep, ":": ":", ";": ";"}
_TRUE = {"true", "yes", "on", "y", "t", "1"}
"""What Alembic's `asbool` takes as true, for `revision_environment` only."""


@dataclass(frozen=True)
class ValueConverter:
    """Converts the values of an ini for a pyproject.toml in the folder `root`."""

    ini: IniFile
    section: str
    """The main section, [alembic] unless `alembic --name` says otherwise."""
    root: Path
    run_from: Path
    """The folder that Alembic has been run in: relative paths of the ini start there."""
    notes: list[str]

    def text(self, value: str) -> str:
        """Return a value with % escaped and `%(here)s` relative to `root`."""
        here = self._from_root("%(here)s", self.ini.path.parent)
        return value.replace("%", "%%").replace(HERE, here)

    def path(self, value: str) -> str:
        """Return a path that means the same when Alembic is run in `root`."""
        text = self.text(value)
        if self.run_from == self.root or text.startswith("%(here)s") or Path(value).is_absolute():
            return text
        return str(Path(self._from_root("%(here)s", self.run_from)) / text)

    def _from_root(self, start: str, folder: Path) -> str:
        relative = os.path.relpath(folder, self.root)
        return start if relative == "." else f"{start}/{Path(relative).as_posix()}"

    def options(self) -> Table:
        """Return Alembic's own options."""
        values = {
            option: self._option(option, self.ini.get(self.section, option))
            for option in self.ini.options(self.section)
            if option in ALEMBIC_OPTIONS and option not in SEPARATOR_OPTIONS
        }
        return {option: value for option, value in values.items() if value is not None}

    def _option(self, option: str, value: str) -> Any:
        where = f"{self.ini.location(self.section, option)}: {option}"
        if option in LIST_OPTIONS:
            return self._paths(option) if value else None
        if option == "revision_environment":
            return value.strip().lower() in _TRUE
        if option in BOOLEAN_OPTIONS:
            if value not in {"true", "false"}:
                self.notes.append(f"{where} = {value}: Alembic reads the value as false")
            return value == "true"
        if option == "truncate_slug_length":
            if not value.strip().isdecimal():
                raise ConversionError(f"{where}: expected an integer, got {value!r}")
            return int(value)
        if option == "script_location" and ":" not in value:
            return self.path(value)
        return self.text(value)

    def _paths(self, option: str) -> list[str]:
        """Return the paths of a list, split as Alembic splits them."""
        value = self.ini.get(self.section, option)
        names = SEPARATOR_OPTIONS if option == "version_locations" else SEPARATOR_OPTIONS[:1]
        for name in names:
            if not self.ini.parser.has_option(self.section, name):
                continue
            separator = self.ini.get(self.section, name)
            if separator not in _SEPARATORS:
                raise ConversionError(
                    f"{self.ini.location(self.section, name)}: {name}: {separator!r} is not a "
                    f"separator; use one of {', '.join(_SEPARATORS)}"
                )
            parts = value.split(_SEPARATORS[separator])
            return [self.path(part.strip()) for part in parts if part]
        # Alembic's rule for files without a separator.
        legacy = r", *|(?: +)" if option == "version_locations" else r", *|(?: +)|\:"
        return [self.path(part) for part in re.split(legacy, value)]
