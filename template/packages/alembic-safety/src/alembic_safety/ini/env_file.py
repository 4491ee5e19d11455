"""A project's env.py: what it reads from the ini."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alembic_safety.ini.errors import ConversionError
from alembic_safety.ini.files import read_text
from alembic_safety.ini.table import URL_OPTION

_LOGGING_BRANCH = 'toml_alembic_config["logging"]'
"""Part of the code that an earlier import has written."""


@dataclass(frozen=True)
class EnvFile:
    """The text of env.py and of the script.py.mako next to it."""

    text: str
    shown: str
    """Its name in messages."""
    tree: ast.Module
    mako: str = ""

    def calls(self, *names: str) -> Iterator[tuple[str, ast.Call]]:
        """Yield the calls of functions and methods by their last name."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in names:
                    yield name, node

    def reads_section_with(self, option: str) -> bool:
        """Return whether env.py reads the main section, or the parser, as a whole.

        A section that only an engine is created from counts for the engine's options alone.
        """
        engines = self.calls("engine_from_config", "async_engine_from_config")
        for_engines = {id(first_argument(node)) for _, node in engines}
        others = {id(node) for _, node in self.calls("get_section")} - for_engines
        engine = any(self.calls("get_section")) and option.startswith("sqlalchemy.")
        return bool(others) or engine or "file_config" in self.text

    def reads_option(self, option: str) -> bool:
        """Return whether env.py or script.py.mako reads an option of the main section by name."""
        asked = rf"""get_(main|alembic)_option\(\s*["']{re.escape(option)}["']"""
        by_name = {node for _, node in self.calls("get_main_option", "get_alembic_option")}
        computed = any(not isinstance(first_argument(node), ast.Constant) for node in by_name)
        return computed or re.search(asked, self.text + self.mako, re.IGNORECASE) is not None

    def reads_section(self, section: str) -> bool:
        """Return whether env.py reads a section other than the main one."""
        asked = [
            first_argument(node) for _, node in self.calls("get_section", "get_section_option")
        ]
        return "file_config" in self.text or any(
            node.value == section
            if isinstance(node, ast.Constant)
            else not ast.unparse(node).endswith("config_ini_section")
            for node in asked
            if node is not None
        )

    @property
    def sets_url(self) -> Literal["always", "maybe", "never"]:
        """`always`, `maybe` or `never`, for whether env.py sets the URL itself."""
        for statement in self.tree.body:
            if isinstance(statement, ast.Expr) and _is_url_assignment(statement.value):
                return "always"
        url = rf"""["']{re.escape(URL_OPTION)}["']"""
        assigned = rf"\[\s*{url}\s*\]\s*=[^=]|set_(main|section)_option\([^)]*?{url}"
        passed = any(
            keyword.arg == "url"
            for _, node in self.calls("engine_from_config", "async_engine_from_config")
            for keyword in node.keywords
        )
        return "maybe" if passed or re.search(assigned, self.text) else "never"

    def file_config_calls(self) -> list[ast.Call]:
        """Return the calls of `fileConfig` with the ini that an import has to change."""
        return [node for _, node in self.calls("fileConfig") if self._takes_ini(node)]

    @property
    def reads_logging(self) -> bool:
        """True if env.py configures logging from the ini or from the table."""
        return _LOGGING_BRANCH in self.text or bool(self.file_config_calls())

    def _takes_ini(self, node: ast.Call) -> bool:
        first = first_argument(node)
        if first is None or _LOGGING_BRANCH in self.text:
            return False
        if isinstance(first, ast.Name):
            assigned = rf"^\s*{first.id}\b.*=.*config_file_name"
            return re.search(assigned, self.text, re.MULTILINE) is not None
        return "config_file_name" in ast.unparse(first)


def first_argument(node: ast.Call) -> ast.expr | None:
    """Return the first positional argument of a call."""
    return node.args[0] if node.args else None


def _is_url_assignment(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    arguments = [a.value for a in node.args if isinstance(a, ast.Constant)]
    return node.func.attr in {"set_main_option", "set_section_option"} and URL_OPTION in arguments


def read_env_file(folder: Path, shown: str) -> EnvFile:
    """Read env.py, and script.py.mako if it exists, in the folder of the migrations.

    Raises:
        ConversionError: env.py is not valid Python.
    """
    text = read_text(folder / "env.py", shown)
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ConversionError(f"{shown}:{error.lineno}: {error.msg}") from None
    mako = folder / "script.py.mako"
    return EnvFile(text, shown, tree, read_text(mako, mako.name) if mako.is_file() else "")
