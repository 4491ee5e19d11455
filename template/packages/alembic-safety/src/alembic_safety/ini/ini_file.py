"""An alembic.ini and the line of each of its options."""

import configparser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alembic_safety.ini.errors import ConversionError
from alembic_safety.ini.files import read_text

HERE = "\0here\0"
"""Stands for `%(here)s`, the folder of the ini file, in values that were interpolated."""


@dataclass(frozen=True)
class IniFile:
    """A parsed ini file."""

    path: Path
    shown: str
    """Its name in messages, as the user gave it."""
    parser: configparser.ConfigParser
    lines: Mapping[tuple[str, str], int]
    """The line of each section and option; of a section's header, the option is ""."""

    def location(self, section: str, option: str = "") -> str:
        """Return `file:line` of an option, or of a section's header."""
        default = self.lines.get((configparser.DEFAULTSECT, option), 1)
        return f"{self.shown}:{self.lines.get((section, option), default)}"

    def get(self, section: str, option: str, *, raw: bool = False) -> str:
        """Return a value as Alembic reads it.

        Raises:
            ConversionError: its interpolation fails.
        """
        try:
            return self.parser.get(section, option, raw=raw)
        except configparser.InterpolationMissingOptionError as error:
            reason = f"%({error.reference})s refers to an option that does not exist"
        except configparser.InterpolationError:
            reason = "invalid interpolation; write a literal percent sign as %%"
        raise ConversionError(f"{self.location(section, option)}: {option}: {reason}")

    def options(self, section: str) -> list[str]:
        """Return the names of a section's options, including those of [DEFAULT]."""
        if not self.parser.has_section(section):
            return []
        return [name for name in self.parser.options(section) if name != "here"]

    def own_options(self, section: str) -> list[str]:
        """Return the names of a section's options, without those of [DEFAULT]."""
        return [name for name in self.options(section) if (section, name) in self.lines]


def read_ini(path: Path, shown: str) -> IniFile:
    """Read and parse an ini file.

    Raises:
        ConversionError: the file is not readable as an ini.
    """
    text = read_text(path, shown)
    parser = configparser.ConfigParser({"here": HERE})
    try:
        parser.read_string(text)
    except configparser.MissingSectionHeaderError as error:
        raise ConversionError(f"{shown}:{error.lineno}: text before the first [section]") from None
    except configparser.DuplicateSectionError as error:
        raise ConversionError(
            f"{shown}:{error.lineno}: duplicate section [{error.section}]"
        ) from None
    except configparser.DuplicateOptionError as error:
        raise ConversionError(
            f"{shown}:{error.lineno}: duplicate option {error.option} in [{error.section}]"
        ) from None
    except configparser.ParsingError as error:
        line = error.errors[0][0]
        raise ConversionError(f"{shown}:{line}: expected `key = value` or [section]") from None
    except ValueError as error:  # an invalid interpolation in [DEFAULT]
        raise ConversionError(f"{shown}: {error}") from None
    return IniFile(path, shown, parser, _find_lines(text, parser))


def _find_lines(text: str, parser: configparser.ConfigParser) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    section, option = "", ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip()[0] in "#;" or (line[0].isspace() and option):
            continue
        if match := parser.SECTCRE.match(line.strip()):
            section, option = match["header"], ""
        elif match := parser.OPTCRE.match(line.strip()):
            option = parser.optionxform(match["option"].rstrip())
        found.setdefault((section, option), number)
    return found
