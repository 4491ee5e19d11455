# /// script
# requires-python = ">=3.11"
# dependencies = ["tomlkit>=0.13"]
# ///
"""Move a project from alembic.ini to `[tool.alembic]` of pyproject.toml, and back.

This file stands by itself: `uv run path/to/ini.py import alembic.ini` works in any project, and
`make alembic-import` and `make alembic-export` run it in this one.

Alembic's own options and hooks become `[tool.alembic]`; the logging sections become
`[tool.alembic.logging]`; other sections and options that env.py reads become
`[tool.alembic.sections]`; a URL, or another secret, is left to the environment. env.py is changed
where it needs the file, so that it works with either. All of it is tried in a copy of the project
first: unless Alembic reads the same configuration, and `heads`, `history` and
`upgrade base:heads --sql` print the same as before, nothing is changed.
"""

import argparse
import ast
import configparser
import copy
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    import tomlkit
except ImportError:
    sys.exit(f"tomlkit is missing: run this as `uv run {__file__}`, or install it (pip, uv, ...)")

Table = dict[str, Any]

# Stands for the ini's own folder until a value is written down.
_HERE = "\0here\0"
_LISTS = ("version_locations", "prepend_sys_path")
_BOOLEANS = ("revision_environment", "sourceless", "recursive_version_locations")
_TEXTS = ("script_location", "file_template", "timezone", "output_encoding")
_LOGGING_BRANCH = 'toml_alembic_config["logging"]'
_SEPARATORS = ("path_separator", "version_path_separator")
_OWN = {*_LISTS, *_BOOLEANS, *_TEXTS, *_SEPARATORS, "truncate_slug_length"}
_TABLES = ("post_write_hooks", "logging", "sections")
_SPLIT_ON = {"space": " ", "newline": "\n", "os": os.pathsep, ":": ":", ";": ";"}
_URL = "sqlalchemy.url"
# Bytes; files that name others are smaller.
_LARGE = 1_000_000
# TOML booleans and integers are read rightly from here on.
_OLDEST_ALEMBIC = (1, 16, 5)
_NOT_COPIED = {
    ".git", ".hg", ".mypy_cache", ".nox", ".postgres", ".pytest_cache", ".ruff_cache", ".tox", ".uv",
    "__pycache__", "node_modules",
}  # fmt: skip


class Refused(Exception):  # noqa: N818
    """It can't be done, and nothing was changed. The message says where, why, and what to do."""


# --- Reading an ini


@dataclass(frozen=True)
class Ini:
    """An alembic.ini: its options, and the line of each."""

    path: Path
    shown: str
    parser: configparser.ConfigParser
    lines: Mapping[tuple[str, str], int]

    def at(self, section: str, option: str = "") -> str:
        """Return file and line of an option, or of a section's header."""
        default = self.lines.get((configparser.DEFAULTSECT, option), 1)
        return f"{self.shown}:{self.lines.get((section, option), default)}"

    def get(self, section: str, option: str, *, raw: bool = False) -> str:
        """Return a value as Alembic reads it.

        Raises:
            Refused: what it refers to by `%` is not there.
        """
        try:
            return self.parser.get(section, option, raw=raw)
        except configparser.InterpolationMissingOptionError as error:
            why = f"%({error.reference})s refers to an option that is not there"
        except configparser.InterpolationError:
            why = "a % here begins %(option)s; a percent sign itself is written %%"
        raise Refused(f"{self.at(section, option)}: {option}: {why}")

    def options(self, section: str) -> list[str]:
        """Return the names of a section's options, with those of [DEFAULT]."""
        if not self.parser.has_section(section):
            return []
        return [name for name in self.parser.options(section) if name != "here"]

    def own(self, section: str) -> list[str]:
        """Return the names of the options that stand in the section itself."""
        return [name for name in self.options(section) if (section, name) in self.lines]


def read_ini(path: Path, shown: str) -> Ini:
    """Read an ini file.

    Raises:
        Refused: it is none; the message has file and line.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise Refused(f"{shown}:{line}: this is not UTF-8 text") from None
    except OSError as error:
        raise Refused(f"{shown}: {error.strerror}") from None
    parser = configparser.ConfigParser({"here": _HERE})
    try:
        parser.read_string(text)
    except configparser.MissingSectionHeaderError as error:
        raise Refused(f"{shown}:{error.lineno}: this stands before the first [section]") from None
    except configparser.DuplicateSectionError as error:
        raise Refused(f"{shown}:{error.lineno}: a second [{error.section}]") from None
    except configparser.DuplicateOptionError as error:
        raise Refused(
            f"{shown}:{error.lineno}: a second {error.option} in [{error.section}]"
        ) from None
    except configparser.ParsingError as error:
        line = error.errors[0][0]
        raise Refused(f"{shown}:{line}: neither `key = value` nor [section]") from None
    except ValueError as error:  # the interpolation of nothing else can fail at this point
        raise Refused(f"{shown}: {error}") from None
    return Ini(path, shown, parser, _lines(text, parser))


def _lines(text: str, parser: configparser.ConfigParser) -> dict[tuple[str, str], int]:
    """Return the line of each option, and of each header (as the option "")."""
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


# --- What becomes of it


@dataclass
class Config:
    """What an ini says, as pyproject.toml has it."""

    options: Table = field(default_factory=dict)
    hooks: list[Table] | None = None
    logging: dict[str, Table] = field(default_factory=dict)
    sections: dict[str, Table] = field(default_factory=dict)
    variables: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Of each secret: its section, its option, the variable of the environment, the value."""
    url_template: str = ""
    """A URL in which env.py fills in the names: it holds no secret, and stays in env.py."""


@dataclass
class Reader:
    """Turns an ini's values into those of a pyproject.toml in the folder `root`."""

    ini: Ini
    main: str
    root: Path
    run_from: Path
    notes: list[str]

    def text(self, value: str) -> str:
        """Return a value with % escaped, and the ini's folder as seen from `root`."""
        here = self._below("%(here)s", self.ini.path.parent)
        return value.replace("%", "%%").replace(_HERE, here)

    def place(self, value: str) -> str:
        """Return a path, which Alembic takes from the folder that it is run in."""
        text = self.text(value)
        if self.run_from == self.root or text.startswith("%(here)s") or Path(value).is_absolute():
            return text
        return str(Path(self._below("%(here)s", self.run_from)) / text)

    def _below(self, start: str, folder: Path) -> str:
        relative = os.path.relpath(folder, self.root)
        return start if relative == "." else f"{start}/{Path(relative).as_posix()}"

    def paths(self, option: str) -> list[str]:
        """Return the paths of a list, split as Alembic does."""
        value = self.ini.get(self.main, option)
        names = _SEPARATORS if option == "version_locations" else _SEPARATORS[:1]
        for name in names:
            if not self.ini.parser.has_option(self.main, name):
                continue
            separator = self.ini.get(self.main, name)
            if separator not in _SPLIT_ON:
                raise Refused(
                    f"{self.ini.at(self.main, name)}: {name} is {separator!r}; "
                    f"Alembic knows {', '.join(_SPLIT_ON)}"
                )
            parts = value.split(_SPLIT_ON[separator])
            return [self.place(part.strip()) for part in parts if part]
        legacy = r", *|(?: +)" if option == "version_locations" else r", *|(?: +)|\:"
        return [self.place(part) for part in re.split(legacy, value)]

    def options(self) -> Table:
        """Return Alembic's own options."""
        values = {
            option: self._option(option, self.ini.get(self.main, option))
            for option in self.ini.options(self.main)
            if option in _OWN and option not in _SEPARATORS
        }
        return {option: value for option, value in values.items() if value is not None}

    def _option(self, option: str, value: str) -> Any:
        where = f"{self.ini.at(self.main, option)}: {option}"
        if option in _LISTS:
            return self.paths(option) if value else None
        if option == "revision_environment":
            return value.strip().lower() in {"true", "yes", "on", "y", "t", "1"}
        if option in _BOOLEANS:
            if value not in {"true", "false"}:
                self.notes.append(f"{where} = {value} is false to Alembic, and so it is written")
            return value == "true"
        if option == "truncate_slug_length":
            if not value.strip().isdecimal():
                raise Refused(f"{where}: expected a number, not {value!r}")
            return int(value)
        if option == "script_location" and ":" not in value:
            return self.place(value)
        return self.text(value)

    def hooks(self) -> list[Table] | None:
        """Return the hooks; None where there is no section of them."""
        section = "post_write_hooks"
        if not self.ini.parser.has_section(section):
            return None
        options = self.ini.options(section)
        names = self.ini.get(section, "hooks") if "hooks" in options else ""
        hooks = []
        for name in filter(None, re.split(r", *|(?: +)", names)):
            own = [option for option in options if option.startswith(f"{name}.")]
            hook = {key[len(name) + 1 :]: self.text(self.ini.get(section, key)) for key in own}
            if "type" not in hook:
                where = self.ini.at(section, "hooks")
                self.notes.append(
                    f"{where}: the hook {name} has no {name}.type: Alembic refuses it"
                )
            hooks.append({"name": name, **hook})
        return hooks

    def logging(self) -> dict[str, Table]:
        """Return the logging sections as they are, for `fileConfig`."""
        sections = {}
        for kind in ("loggers", "handlers", "formatters"):
            if not self.ini.parser.has_section(kind):
                raise Refused(f"{self.ini.shown}: there is no section [{kind}], as logging needs")
            names = self.ini.get(kind, "keys") if "keys" in self.ini.options(kind) else ""
            ones = [f"{kind[:-1]}_{name.strip()}" for name in names.split(",") if name.strip()]
            for section in ones:
                if not self.ini.parser.has_section(section):
                    raise Refused(f"{self.ini.at(kind, 'keys')}: there is no section [{section}]")
            for section in [kind, *ones]:
                raw = section.startswith("formatter_")  # as fileConfig reads them
                options = self.ini.own(section)
                values = {key: self.ini.get(section, key, raw=raw) for key in options}
                for key, value in values.items():
                    if _HERE in value:
                        raise Refused(
                            f"{self.ini.at(section, key)}: {key}: logging.fileConfig knows no "
                            "%(here)s; write the path"
                        )
                sections[section] = values
        return sections


# --- env.py


@dataclass
class Env:
    """env.py: what it reads of the ini, and how it has to change."""

    text: str
    shown: str
    tree: ast.Module
    mako: str = ""

    def calls(self, *names: str) -> Iterator[tuple[str, ast.Call]]:
        """Yield the calls of functions or methods by their last name."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in names:
                    yield name, node

    def reads_all(self, option: str) -> bool:
        """Whether it takes an option with its whole section, or the parser itself."""
        engines = self.calls("engine_from_config", "async_engine_from_config")
        for_engines = {id(_first(node)) for _, node in engines}
        others = {id(node) for _, node in self.calls("get_section")} - for_engines
        engine = any(self.calls("get_section")) and option.startswith("sqlalchemy.")
        return bool(others) or engine or "file_config" in self.text

    def reads_option(self, option: str) -> bool:
        """Whether it, or script.py.mako, asks for an option of the main section by name."""
        asked = rf"""get_(main|alembic)_option\(\s*["']{re.escape(option)}["']"""
        by_name = {node for _, node in self.calls("get_main_option", "get_alembic_option")}
        computed = any(not isinstance(_first(node), ast.Constant) for node in by_name)
        return computed or re.search(asked, self.text + self.mako, re.IGNORECASE) is not None

    def reads_section(self, section: str) -> bool:
        """Whether it asks for another section than the main one."""
        asked = [_first(node) for _, node in self.calls("get_section", "get_section_option")]
        return "file_config" in self.text or any(
            node.value == section
            if isinstance(node, ast.Constant)
            else not ast.unparse(node).endswith("config_ini_section")
            for node in asked
            if node is not None
        )

    @property
    def sets_url(self) -> str:
        """Return "always" where it sets the URL itself, "maybe" where it may, or ""."""
        for statement in self.tree.body:
            if isinstance(statement, ast.Expr) and _sets_url(statement.value):
                return "always"
        url = rf"""["']{re.escape(_URL)}["']"""
        assigned = rf"\[\s*{url}\s*\]\s*=[^=]|set_(main|section)_option\([^)]*?{url}"
        passed = any(
            keyword.arg == "url"
            for _, node in self.calls("engine_from_config", "async_engine_from_config")
            for keyword in node.keywords
        )
        return "maybe" if passed or re.search(assigned, self.text) else ""


def _first(node: ast.Call) -> ast.expr | None:
    return node.args[0] if node.args else None


def _sets_url(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    arguments = [a.value for a in node.args if isinstance(a, ast.Constant)]
    return node.func.attr in {"set_main_option", "set_section_option"} and _URL in arguments


def read_env(folder: Path, shown: str) -> Env | None:
    """Read env.py of a script location, and its script.py.mako; None where there is none."""
    path = folder / "env.py"
    if not path.is_file():
        return None
    text = _read(path, shown)
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise Refused(f"{shown}:{error.lineno}: {error.msg}") from None
    mako = folder / "script.py.mako"
    return Env(text, shown, tree, _read(mako, mako.name) if mako.is_file() else "")


class EnvEditor:
    """Changes env.py where it needs the ini, by replacing a few characters of its text."""

    def __init__(self, env: Env, config: Config, notes: list[str]) -> None:
        self.env, self.config, self.notes = env, config, notes
        self.lines = env.text.encode().splitlines(keepends=True)
        self.edits: list[tuple[int, int, str]] = []
        self.imports: list[str] = []
        self.name, self.after = self._find_config()

    def edit(self) -> str:
        """Return the new text."""
        self._file_config()
        block = self._block()
        for name, node in self.env.calls("get_main_option", "get_section"):
            first = _first(node)
            url = isinstance(first, ast.Constant) and first.value == _URL
            if name == "get_main_option" and not (url and (block or self.env.sets_url)):
                end = self._end(node.func)
                self.edits.append((end - len(name), end, "get_alembic_option"))
            elif name == "get_section" and len(node.args) == 1 and not node.keywords:
                end = self._end(node.args[0])
                self.edits.append((end, end, ", {}"))
        self._other_uses()
        if block:
            at = sum(map(len, self.lines[: self.after]))
            self.edits.append((at, at, f"\n{block}"))
        if self.imports:
            at = self._first_import()
            # `import os` before `from ...`
            lines = sorted({*self.imports}, reverse=True)
            self.edits.append((at, at, "".join(f"{line}\n" for line in lines)))
        text = b"".join(self.lines)
        for start, end, new in sorted(self.edits, reverse=True):
            text = text[:start] + new.encode() + text[end:]
        # With the line ends that it had.
        windows = b"\r\n" in b"".join(self.lines[:1])
        return text.decode().replace("\r\n", "\n").replace("\n", "\r\n" if windows else "\n")

    def _start(self, node: ast.stmt | ast.expr | ast.alias) -> int:
        return sum(map(len, self.lines[: node.lineno - 1])) + node.col_offset

    def _end(self, node: ast.stmt | ast.expr) -> int:
        line, column = node.end_lineno or node.lineno, node.end_col_offset or 0
        return sum(map(len, self.lines[: line - 1])) + column

    def _find_config(self) -> tuple[str, int]:
        """Return what the configuration is called, and the line after which it is there."""
        last = 0
        for statement in self.env.tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                last = statement.end_lineno or last
            value = getattr(statement, "value", None)
            if isinstance(value, ast.Attribute) and ast.unparse(value).endswith("context.config"):
                target = (
                    statement.targets[0]
                    if isinstance(statement, ast.Assign)
                    else getattr(statement, "target", None)
                )
                if isinstance(target, ast.Name):
                    return target.id, statement.end_lineno or last
        return "context.config", last

    def _first_import(self) -> int:
        for statement in self.env.tree.body:
            future = isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
            if isinstance(statement, ast.Import | ast.ImportFrom) and not future:
                return self._start(statement)
        return 0

    def _file_config(self) -> None:
        """Let `fileConfig` read the table's logging sections, where they are there."""
        if not self.config.logging:
            return
        table = f"{self.name}.toml_alembic_config"
        for node in self._logging_calls():
            start, end = self._start(node), self._end(node)
            before = self.lines[node.lineno - 1][: node.col_offset].decode()
            if before.strip():
                where = f"{self.env.shown}:{node.lineno}"
                raise Refused(
                    f"{where}: fileConfig stands in a longer line; give it one of its own"
                )
            old = b"".join(self.lines)[start:end].decode()
            file = ast.get_source_segment(self.env.text, node.args[0]) or ""
            deeper = before + ("\t" if before.startswith("\t") else "    ")
            new = [
                f'if "logging" in {table}:',
                f"{deeper}logging_sections = RawConfigParser()",
                f'{deeper}logging_sections.read_dict({table}["logging"])',
                f"{deeper}{old.replace(file, 'logging_sections', 1)}",
                f"{before}else:",
                f"{deeper}{old}",
            ]
            self.edits.append((start, end, "\n".join(new)))
            self.imports.append("from configparser import RawConfigParser")

    def _logging_calls(self) -> list[ast.Call]:
        return [node for _, node in self.env.calls("fileConfig") if _takes_ini(node, self.env)]

    def _block(self) -> str:
        """Return what gives the configuration the rest of what the ini had."""
        main, lines = f"{self.name}.config_ini_section", []
        for section, option, variable, given in self.config.variables:
            if "file_config.has_option" in self.env.text and f'"{variable}"' in self.env.text:
                continue  # from an import before this one
            own = section == ""
            place = main if own else json.dumps(section)
            soft = own and option == _URL and (self.env.sets_url == "maybe" or not given)
            value = f'os.environ.get("{variable}", "")' if soft else f'os.environ["{variable}"]'
            lines += [
                f'if not {self.name}.file_config.has_option({place}, "{option}"):',
                f"    {self.name}.set_section_option(",
                f'        {place}, "{option}", {value}.replace("%", "%%")',
                "    )",
            ]
        if self.config.url_template:
            lines += [
                f'if not {self.name}.file_config.has_option({main}, "{_URL}"):',
                f'    {self.name}.set_main_option("{_URL}", {json.dumps(self.config.url_template)})',
            ]
        if self.config.sections and 'toml_alembic_config.get("sections"' not in self.env.text:
            lines += [
                (
                    f"for section, options in {self.name}.toml_alembic_config"
                    '.get("sections", {}).items():'
                ),
                "    for option, value in options.items():",
                f"        if not {self.name}.file_config.has_option(section, option):",
                f"            value = (value % {self.name}.toml_args).replace('%', '%%')",
                f"            {self.name}.set_section_option(section, option, value)",
            ]
        if not lines:
            return ""
        imported = any(
            isinstance(statement, ast.Import) and any(a.name == "os" for a in statement.names)
            for statement in self.env.tree.body
        )
        if self.config.variables and not imported:
            self.imports.append("import os")
        comment = (
            "# alembic.ini had this. What an ini, or the program that calls, sets goes first.\n"
        )
        return comment + "".join(f"{line}\n" for line in lines)

    def _other_uses(self) -> None:
        """Note what else needs the file, but for tests whether it is there."""
        known = {id(node.args[0]) for _, node in self.env.calls("fileConfig") if node.args}
        for node in ast.walk(self.env.tree):
            if isinstance(node, ast.Compare):
                known |= {id(child) for child in ast.walk(node)}
            elif isinstance(node, ast.If | ast.IfExp):
                known |= {id(child) for child in ast.walk(node.test)}
        for node in ast.walk(self.env.tree):
            asked = isinstance(node, ast.Attribute) and node.attr == "config_file_name"
            if asked and id(node) not in known:
                self.notes.append(
                    f"{self.env.shown}:{getattr(node, 'lineno', 1)}: config_file_name names a file "
                    "that is no longer there; toml_file_name is pyproject.toml's"
                )


def _takes_ini(node: ast.Call, env: Env) -> bool:
    """Whether a call of fileConfig takes the ini, and is not the branch that stays for one."""
    first = _first(node)
    if first is None or _LOGGING_BRANCH in env.text:
        return False
    if isinstance(first, ast.Name):
        assigned = rf"^\s*{first.id}\b.*=.*config_file_name"
        return re.search(assigned, env.text, re.MULTILINE) is not None
    return "config_file_name" in ast.unparse(first)


# --- pyproject.toml


def edit_pyproject(text: str, config: Config | None, shown: str) -> str:
    """Return pyproject.toml with the configuration in it, or without one.

    Raises:
        Refused: the table is written in a way that can't be changed here.
    """
    document = _parse_toml(text, shown)
    wanted = copy.deepcopy(document)
    tables = {} if config is None else _sub_tables(config)
    if config is None:
        for key in _ours(wanted["tool"]["alembic"]):
            del wanted["tool"]["alembic"][key]
        if not wanted["tool"]["alembic"]:
            del wanted["tool"]["alembic"]
        if not wanted["tool"]:
            del wanted["tool"]
    else:
        _merge(wanted.setdefault("tool", {}).setdefault("alembic", {}), config)
    windows = "\r\n" in text and "\n" not in text.replace("\r\n", "")
    chunks = _chunks(text.replace("\r\n", "\n") if windows else text)
    new = _rebuild(chunks, config, tables)
    try:
        same = tomllib.loads(new) == wanted
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        raise Refused(
            f"{shown}: tool.alembic is not written as a table of its own; write it with headers, "
            "[tool.alembic] and [[tool.alembic.post_write_hooks]], and run this again"
        )
    return new.replace("\n", "\r\n") if windows else new


def _merge(table: Table, config: Config) -> None:
    table.update(config.options)
    if config.hooks:
        table["post_write_hooks"] = config.hooks
    elif config.hooks is not None:
        table.pop("post_write_hooks", None)
    if config.logging:
        table["logging"] = config.logging
    for section, options in config.sections.items():
        table.setdefault("sections", {})[section] = options


def _ours(table: Table) -> list[str]:
    """Return the keys of `[tool.alembic]` that an ini takes; tables of others stay."""
    return [key for key, value in table.items() if key in _TABLES or not isinstance(value, dict)]


def _chunks(text: str) -> list[tuple[str, str]]:
    """Split a TOML text at its headers: the name of each table, and its text with the comment above."""
    chunks: list[tuple[str, list[str]]] = [("", [])]
    for line in text.splitlines(keepends=True):
        if match := re.fullmatch(r"\s*\[\[?([^\[\]]+)\]\]?\s*(#.*)?\n?", line):
            previous = chunks[-1][1]
            above = len(previous)
            while above and previous[above - 1].lstrip().startswith("#"):
                above -= 1
            comment = previous[above:]
            del previous[above:]
            name = re.sub(r"[\s\"']", "", match[1])
            chunks.append((name, [*comment, line]))
        else:
            chunks[-1][1].append(line)
    return [(name, "".join(lines)) for name, lines in chunks]


def _rebuild(
    chunks: list[tuple[str, str]], config: Config | None, tables: Mapping[str, str]
) -> str:
    """Return the text with our tables in it, or without them."""
    root, hooks = "tool.alembic", "tool.alembic.post_write_hooks"
    if config is None:
        left = "".join(text for name, text in chunks if not _is_ours(name))
        return left.rstrip("\n") + "\n" if left.strip() else ""
    names = [name for name, _ in chunks]
    others = [number for number, name in enumerate(names) if name.startswith(root)]
    at = names.index(root) if root in names else others[0] if others else len(chunks)
    if root not in names:
        chunks = [*chunks[:at], (root, f"[{root}]\n"), *chunks[at:]]
    gone = {f"{root}.{name}" for name in tables} | {hooks}
    kept = "".join(text for name, text in chunks if name == hooks)
    if config.hooks is not None:
        kept = "\n".join(_hook(hook) for hook in config.hooks)
    before = "".join(text for _, text in chunks[:at])
    after = "".join(text for name, text in chunks[at + 1 :] if name not in gone)
    texts = [before, _put(chunks[at][1], config.options), kept, *tables.values(), after]
    return "\n\n".join(text.strip("\n") for text in texts if text.strip()) + "\n"


def _is_ours(name: str) -> bool:
    below = name.removeprefix("tool.alembic.").partition(".")[0]
    return name == "tool.alembic" or (name != below and below in _TABLES)


def _put(chunk: str, options: Table) -> str:
    """Set options in the text of `[tool.alembic]`; what is new follows the last one there is."""
    document = tomlkit.parse(chunk)
    table: Any = document["tool"]["alembic"]
    new = []
    for key, value in options.items():
        if key in table:
            if table[key] != value:
                table[key] = value
        else:
            new.append(_assign(key, value))
    lines = tomlkit.dumps(document).splitlines(keepends=True)
    last = max(
        (n for n, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")),
        default=0,
    )
    if not lines[last].endswith("\n"):
        lines[last] += "\n"
    return "".join([*lines[: last + 1], *new, *lines[last + 1 :]])


def _assign(key: str, value: Any) -> str:
    if isinstance(value, dict):
        inline = tomlkit.inline_table()
        inline.update(value)
        value = inline
    return f"{_key(key)} = {tomlkit.item(value).as_string()}\n"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key, ensure_ascii=False)


def _hook(hook: Table) -> str:
    lines = [_assign(key, value) for key, value in hook.items()]
    return "".join(["[[tool.alembic.post_write_hooks]]\n", *lines])


def _sub_tables(config: Config) -> dict[str, str]:
    """Return the text of each table below `[tool.alembic]`."""
    texts = {}
    if config.logging:
        lines = [
            "# The sections that logging.config.fileConfig takes, in env.py.\n[tool.alembic.logging]\n"
        ]
        texts["logging"] = "".join(lines + [_assign(*one) for one in config.logging.items()])
    for section, options in config.sections.items():
        lines = [f"# Read by env.py.\n[tool.alembic.sections.{_key(section)}]\n"]
        texts[f"sections.{section}"] = "".join(lines + [_assign(*one) for one in options.items()])
    return texts


def _parse_toml(text: str, shown: str) -> Table:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise Refused(f"{shown}:{line[1] if line else 1}: not valid TOML: {error}") from None


def _table(text: str, shown: str) -> Table:
    tool = _parse_toml(text, shown).get("tool", {})
    table = tool.get("alembic", {}) if isinstance(tool, dict) else None
    if not isinstance(table, dict):
        raise Refused(f"{shown}: tool.alembic: expected a table")
    return table


# --- Writing an ini


def write_ini(table: Table, shown: str) -> str:
    """Return the ini that says what `[tool.alembic]` says.

    Raises:
        Refused: an ini can't say it.
    """
    own = table.get("sections", {})
    sections = {**own, "alembic": {**_main_section(table, shown), **own.get("alembic", {})}}
    sections = {"alembic": sections.pop("alembic"), **sections}
    if hooks := table.get("post_write_hooks"):
        sections["post_write_hooks"] = _hooks_section(hooks, shown)
    for name, options in table.get("logging", {}).items():
        # fileConfig reads the formats as they are, and all else with % escaped.
        raw = name.startswith("formatter_")
        sections[name] = {k: v if raw else v.replace("%", "%%") for k, v in options.items()}
    text = "\n".join(_section(name, options) for name, options in sections.items())
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    for name, options in sections.items():
        for key, value in options.items():
            if parser.get(name, key, fallback="") != value:
                raise Refused(f"{shown}: [tool.alembic]: {key}: an ini can't hold {value!r}")
    return text


def _main_section(table: Table, shown: str) -> dict[str, str]:
    lists = [value for key, value in table.items() if key in _LISTS and value]
    newline = any(len(value) > 1 or os.pathsep in "".join(value) for value in lists)
    main = {"path_separator": "newline" if newline else "os"} if lists else {}
    for key, value in table.items():
        if key in _LISTS:
            if value:
                main[key] = "".join(f"\n{part}" for part in value) if newline else value[0]
        elif isinstance(value, bool):
            main[key] = str(value).lower()
        elif isinstance(value, str | int):
            main[key] = str(value)
        elif key not in _TABLES and not isinstance(value, dict):
            raise Refused(f"{shown}: [tool.alembic]: {key}: an ini has no lists of one's own")
    return main


def _hooks_section(hooks: Sequence[Table], shown: str) -> dict[str, str]:
    names = [hook["name"] for hook in hooks]
    section = {"hooks": ", ".join(names)}
    for name, hook in zip(names, hooks, strict=True):
        if names.count(name) > 1 or re.search(r"[\s,=:A-Z]", name):
            raise Refused(
                f"{shown}: [[tool.alembic.post_write_hooks]]: the name {name!r} must stand once "
                "there, in lower case and without spaces: call it something else first"
            )
        section |= {f"{name}.{key}": value for key, value in hook.items() if key != "name"}
    return section


def _section(name: str, options: Mapping[str, str]) -> str:
    lines = [f"[{name}]"]
    for key, value in options.items():
        indented = value.replace("\n", "\n    ")
        lines.append(f"{key} ={'' if value.startswith(chr(10)) or not value else ' '}{indented}")
    return "".join(f"{line}\n" for line in lines)


# --- The check


_MAIN = "from alembic.config import main; main(prog='alembic')"
_VERSION = "import alembic; print(alembic.__version__)"
# What no command prints: the options, as Alembic itself reads them.
_OPTIONS = """
import json, os, sys
from alembic.config import CommandLine, Config
from alembic.script import ScriptDirectory
from alembic.util import asbool
given = CommandLine().parser.parse_args([*sys.argv[1:], "heads"])
toml, ini = CommandLine()._inis_from_config(given) if hasattr(CommandLine, "_inis_from_config") else (
    "pyproject.toml", given.config or "alembic.ini")
config = Config(file_=ini, toml_file=toml, ini_section=given.name)
script = ScriptDirectory.from_config(config)
said = {name: getattr(script, name) for name in (
    "file_template", "truncate_slug_length", "sourceless", "output_encoding", "timezone",
    "recursive_version_locations")}
said["hooks"] = [dict(hook) for hook in script.hooks]
said["revision_environment"] = asbool(config.get_alembic_option("revision_environment"))
said["script_location"] = os.path.realpath(script.dir)
said["version_locations"] = [os.path.realpath(path) for path in script._version_locations]
said["prepend_sys_path"] = [os.path.realpath(p) for p in config.get_prepend_sys_paths_list() or []]
print(*(f"{key} = {json.dumps(said[key])}" for key in sorted(said)), sep="\\n")
"""
_CHECKS = {
    "the options": (_OPTIONS, ()),
    "alembic heads": (_MAIN, ("heads",)),
    "alembic history": (_MAIN, ("history",)),
    "alembic upgrade base:heads --sql": (_MAIN, ("upgrade", "base:heads", "--sql")),
}
# The others may need a database: a revision that reads rows, or revision_environment.
_NEEDED = ("the options", "alembic heads")
_NUMBER = re.compile(r"(?=[0-9a-f-]*\d)[0-9a-f]+(?:-[0-9a-f]+)*")
"""A number, a time or a UUID, of which a part may have no digit."""


@dataclass(frozen=True)
class Said:
    """What a command said."""

    code: int
    out: str
    error: str

    @property
    def last(self) -> str:
        """The last line of its errors, which says why."""
        lines = [line for line in self.error.splitlines() if line.strip(" ^~")]
        lines = [line for line in lines if not line.startswith("(Background on this error")]
        return _mask(lines[-1].strip()) if lines else f"exit code {self.code}"


def run_python(
    python: str, code: str, arguments: Sequence[str], folder: Path, variables: Mapping[str, str]
) -> Said:
    """Run Python code as a program of its own, without the folder on the import path."""
    done = subprocess.run(
        [
            python,
            "-W",
            "ignore",
            "-c",
            f"import sys; sys.path[:] = filter(None, sys.path)\n{code}",
            *arguments,
        ],
        cwd=folder,
        env=dict(variables),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def find_python(given: str, root: Path) -> str:
    """Return the Python that has the project's Alembic.

    Raises:
        Refused: there is none, or it is too old for `[tool.alembic]`.
    """
    folder = "Scripts" if os.name == "nt" else "bin"
    homes: list[str | Path] = [os.environ.get("UV_PROJECT_ENVIRONMENT", "")]
    homes += [root / ".venv", root / "venv"]
    homes += [parent / ".venv" for parent in root.parents]
    homes.append(os.environ.get("VIRTUAL_ENV", ""))
    found = [str(root / home / folder / "python") for home in homes if home]
    found += [sys.executable, *filter(None, map(shutil.which, ("python3", "python")))]
    for python in [given] if given else found:
        if not shutil.which(python):
            continue
        said = run_python(python, _VERSION, (), root, os.environ)
        if said.code:
            continue
        version = said.out.strip()
        if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < _OLDEST_ALEMBIC:
            oldest = ".".join(map(str, _OLDEST_ALEMBIC))
            raise Refused(
                f"{python} has Alembic {version}; [tool.alembic] needs {oldest} or later: "
                "upgrade it first"
            )
        return python
    tried = given or "the project's .venv, the active environment and PATH"
    raise Refused(f"no Alembic found in {tried}; name the project's: --python PATH")


@dataclass
class Trial:
    """A copy of the project, in which Alembic is asked before and after."""

    root: Path
    python: str
    copied: Path
    variables: dict[str, str]

    def ask(self, folder: Path, options: Sequence[str]) -> dict[str, Said]:
        """Run all commands of the check in a folder of the copy."""
        folder = self.copied / folder.relative_to(self.root)
        path = os.environ.get("PYTHONPATH", "")
        places = [self._copied(place) for place in path.split(os.pathsep)] if path else []
        variables = {**os.environ, **self.variables, "PYTHONHASHSEED": "0"}
        variables |= {"PYTHONPATH": os.pathsep.join(places), "PYTHONDONTWRITEBYTECODE": "1"}
        variables.pop("ALEMBIC_CONFIG", None)
        said = {}
        for name, (code, arguments) in _CHECKS.items():
            files = set(folder.iterdir())
            done = run_python(self.python, code, [*options, *arguments], folder, variables)
            # The env.py of several databases writes a file for each.
            written = sorted(path for path in set(folder.iterdir()) - files if path.is_file())
            out = "".join([done.out, *(f"{p.name}:\n{p.read_text('utf-8')}" for p in written)])
            for file in written:
                file.unlink()
            said[name] = Said(done.code, out, done.error)
        return said

    def _copied(self, place: str) -> str:
        path = Path(place)
        inside = place and path.is_absolute() and path.is_relative_to(self.root)
        return str(self.copied / path.relative_to(self.root)) if inside else place


def copy_project(root: Path, target: Path) -> None:
    """Copy a project without its history, environments and caches."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        paths = {name: Path(folder, name) for name in names}
        return {
            name
            for name, path in paths.items()
            if name in _NOT_COPIED
            or (path / "pyvenv.cfg").exists()
            or not (path.is_symlink() or path.is_dir() or path.is_file())
        }

    try:
        shutil.copytree(root, target, symlinks=True, ignore=left_out)
    except (OSError, shutil.Error) as error:
        raise Refused(f"{root} could not be copied, to try the change there: {error}") from None


def compare(
    before: Mapping[str, Said], after: Mapping[str, Said], again: Mapping[str, Said] | None = None
) -> list[str]:
    """Return notes on what could not be compared.

    Args:
        before: what was said before the change.
        after: what is said after it.
        again: the same as `after`, said a second time.

    Raises:
        Refused: something differs.
    """
    notes = []
    for name, old in before.items():
        new, out, expected = after[name], after[name].out, old.out
        if old.code and name in _NEEDED:
            raise Refused(f"{name} fails before any change: {old.last}")
        if again and again[name].out != out:
            # Times and random numbers in a revision differ in each run.
            out, expected = (_NUMBER.sub("#", text) for text in (out, expected))
            notes.append(f"{name} differs from run to run; numbers were not compared")
        if new.code != old.code or out != expected or (old.code and new.last != old.last):
            raise Refused(f"{name} is not the same after the change: {_difference(old, new)}")
        if old.code:
            notes.append(f"{name} fails before and after, in the same way: {old.last}")
    return notes


def _difference(old: Said, new: Said) -> str:
    if old.code != new.code or old.code:
        return new.last if new.code else f"it no longer fails ({old.last})"
    lines = difflib.unified_diff(old.out.splitlines(), new.out.splitlines(), lineterm="", n=0)
    return _mask("\n  ".join(["", *list(lines)[3:11]]))


def _mask(text: str) -> str:
    """Hide the passwords of URLs."""
    text = re.sub(r"(://[^/\s:@'\"]*):[^\s/'\"]*@", r"\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s'\"]+", r"\1***", text)


# --- Import and export


@dataclass
class Change:
    """What becomes of the project's files."""

    root: Path
    table: Table
    """What `[tool.alembic]` says, of where things are."""
    files: dict[Path, str] = field(default_factory=dict)
    moved: dict[Path, Path] = field(default_factory=dict)

    def diff(self) -> str:
        """Return it as a unified diff, without passwords."""
        shown = []
        for path, new in self.files.items():
            old = _read(path, path.name) if path.exists() else ""
            name = str(path.relative_to(self.root))
            lines = difflib.unified_diff(
                old.splitlines(keepends=True), new.splitlines(keepends=True),
                f"a/{name}", f"b/{name}",
            )  # fmt: skip
            shown.append("".join(lines))
        return _mask("".join(shown))

    def apply(self, root: Path) -> None:
        """Change the files, in the project or in a copy of it; all of them or none."""
        paths = {root / path.relative_to(self.root): new for path, new in self.files.items()}
        moved = {
            root / old.relative_to(self.root): root / new.relative_to(self.root)
            for old, new in self.moved.items()
        }
        before = {path: path.read_bytes() if path.exists() else None for path in paths}
        try:
            for path, new in paths.items():
                beside = path.with_name(f"{path.name}.new")
                beside.write_bytes(new.encode())
                if path.exists():
                    shutil.copymode(path, beside)
                beside.replace(path)
            for path, target in moved.items():
                path.rename(target)
        except BaseException:
            for path, old in before.items():
                path.unlink() if old is None else path.write_bytes(old)
            raise


def _read(path: Path, shown: str) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise Refused(f"{shown}:{line}: this is not UTF-8 text") from None
    except OSError as error:
        raise Refused(f"{shown}: {error.strerror}") from None


def import_ini(given: argparse.Namespace) -> list[str]:
    """Move an ini into pyproject.toml; return what to tell.

    Raises:
        Refused: nothing was changed.
    """
    path = Path(os.path.normpath(Path(given.ini).absolute()))
    ini = read_ini(path, given.ini)
    if not ini.parser.has_section(given.name):
        there = ", ".join(f"[{name}]" for name in ini.parser.sections()) or "none"
        raise Refused(f"{given.ini}:1: no section [{given.name}]; there is {there} (--name NAME)")
    pyproject = Path(given.pyproject).absolute() if given.pyproject else _find_pyproject(path)
    root = pyproject.parent
    if not path.is_relative_to(root):
        raise Refused(f"{given.ini} is not in the folder of {pyproject}: copy it there first")
    notes: list[str] = []
    text = _read(pyproject, pyproject.name) if pyproject.exists() else ""
    present = _table(text, pyproject.name)
    location = _script_location(ini, given.name, present)
    run_from = next(
        (f for f in (root, path.parent) if _find_env(location, f, path.parent, root)), path.parent
    )
    folder = _find_env(location, run_from, path.parent, root)
    reader = Reader(ini, given.name, root, run_from, notes)
    env = read_env(folder, str((folder / "env.py").relative_to(root))) if folder else None
    config = _configure(reader, env, given.url_variable)
    if config.hooks == [] and "post_write_hooks" in present:
        notes.append(
            f"{ini.at('post_write_hooks')}: there are no hooks, and those of {pyproject.name} did not "
            "run beside that: they are removed"
        )
    change = Change(root, {**present, **config.options})
    if env and folder:
        new = EnvEditor(env, config, notes).edit()
        change.files |= {folder / "env.py": new} if new != env.text else {}
        mako = env.mako.replace("config.get_main_option(", "config.get_alembic_option(")
        change.files |= {folder / "script.py.mako": mako} if mako != env.mako else {}
    else:
        where = ini.at(given.name, "script_location")
        notes.append(
            f"{where}: env.py is not in the project: what it reads of the ini stays behind"
        )
    change.files = {pyproject: edit_pyproject(text, config, pyproject.name), **change.files}
    backup = _free_name(path)
    change.moved[path] = backup
    notes += _carry_out(
        change,
        given,
        before=(run_from, ["-c", os.path.relpath(path, run_from), "-n", given.name]),
        after=(root, [] if pyproject.name == "pyproject.toml" else ["-c", pyproject.name]),
        variables={variable: value for _, _, variable, value in config.variables if value},
    )
    for _, option, variable, value in config.variables:
        if value:
            shown = _mask(value) if "://" in value else "***"
            notes.append(
                f"set {variable}={shown} in the environment: it was {option}, and stands in no "
                f"file but {backup.name}"
            )
    notes.append(
        f"{given.ini} becomes {backup.name}, which Alembic does not read: keep it out of git if it "
        "holds a password, and delete it when all is well"
    )
    if run_from != root:
        notes.append(f"run Alembic in {root}, not in {run_from}, or with -c {pyproject}")
    notes += _mentions(root, path, {*change.files, backup})
    return notes


def _find_pyproject(ini: Path) -> Path:
    """Return the pyproject.toml beside an ini, or the first one above it in its repository."""
    for folder in ini.parents:
        if (folder / "pyproject.toml").is_file():
            return folder / "pyproject.toml"
        if (folder / ".git").exists():
            break
    return ini.with_name("pyproject.toml")


def _script_location(ini: Ini, main: str, present: Table) -> str:
    if ini.parser.has_option(main, "script_location"):
        return ini.get(main, "script_location")
    if "script_location" in present:
        return str(present["script_location"]).replace("%(here)s", _HERE).replace("%%", "%")
    raise Refused(f"{ini.at(main)}: script_location is missing in [{main}]")


def _find_env(location: str, run_from: Path, here: Path, root: Path) -> Path | None:
    """Return the folder of env.py, if it is in the project."""
    place = location.replace(_HERE, str(here))
    folders = [run_from, run_from / "src"] if ":" in place else [run_from]
    if ":" in place and not Path(place).is_absolute():
        package, *parts = place.split(":")
        place = os.path.join(*package.split("."), *parts)  # noqa: PTH118
    for folder in folders:
        found = Path(os.path.normpath(folder / place))
        if (found / "env.py").is_file() and found.is_relative_to(root):
            return found
    return None


_LOGGING = re.compile(r"loggers|handlers|formatters|(logger|handler|formatter)_.+")
_SECRET = re.compile(r"(url|uri|dsn|password|passwd|secret|token)$")


def _configure(reader: Reader, env: Env | None, url_variable: str) -> Config:
    """Return what the ini says; of what is not Alembic's own, what env.py reads."""
    ini, main, notes = reader.ini, reader.main, reader.notes
    config = Config(options=reader.options(), hooks=reader.hooks())
    for option in ini.options(main):
        if option not in _OWN:
            _own_option(reader, env, config, option, url_variable)
    for section in ini.parser.sections():
        if section in {main, "post_write_hooks"} or _LOGGING.fullmatch(section):
            continue
        if env and env.reads_section(section):
            _own_section(reader, config, section)
        elif ini.parser.has_option(section, "script_location"):
            notes.append(
                f"{ini.at(section)}: [{section}] stays behind: [tool.alembic] is one table; "
                f"`alembic -c <the old file> -n {section} ...` still reads it"
            )
        else:
            notes.append(f"{ini.at(section)}: [{section}] stays behind: env.py does not read it")
    if ini.parser.has_section("loggers"):
        already = env is not None and _LOGGING_BRANCH in env.text
        if already or (env and any(_takes_ini(n, env) for _, n in env.calls("fileConfig"))):
            config.logging = reader.logging()
        else:
            where = ini.at("loggers")
            notes.append(f"{where}: the logging sections stay behind: env.py does not read them")
    return config


def _own_option(
    reader: Reader, env: Env | None, config: Config, option: str, url_variable: str
) -> None:
    """Take in an option of the main section that is not Alembic's."""
    ini, main = reader.ini, reader.main
    where, by_name = ini.at(main, option), env is not None and env.reads_option(option)
    if env is None or not (by_name or env.reads_all(option)):
        was = f" ({_mask(ini.get(main, option, raw=True))})" if option == _URL else ""
        reader.notes.append(f"{where}: {option}{was} stays behind: env.py does not read it")
        return
    if option == _URL:
        if env.sets_url == "always":
            reader.notes.append(f"{where}: {option} stays behind: env.py sets its own")
            return
        raw = ini.get(main, option, raw=True)
        names = re.findall(r"%\(([^)]+)\)s", raw)
        if any(not ini.parser.has_option(main, name) for name in names):
            if re.search(r"://[^/:@]*:(?!%\()[^/@]+@", raw):
                raise Refused(
                    f"{where}: {option} holds a password beside names that env.py fills in; let "
                    "the password be one of them"
                )
            config.url_template = raw
            reader.notes.append(f"{where}: {option} is filled in by env.py, and now stands there")
            return
    value = ini.get(main, option)
    if option == _URL or _is_secret(option, value):
        variable = url_variable if option == _URL else _variable(option)
        config.variables.append(("", option, variable, value.replace(_HERE, str(ini.path.parent))))
    elif by_name:
        config.options[option] = reader.text(value)
    else:
        config.sections.setdefault("alembic", {})[option] = reader.text(value)


def _own_section(reader: Reader, config: Config, section: str) -> None:
    """Take in a section that env.py reads."""
    for option in reader.ini.own(section):
        value = reader.ini.get(section, option)
        if option == _URL or _is_secret(option, value):
            name = "database_url" if option == _URL else option
            plain = value.replace(_HERE, str(reader.ini.path.parent))
            config.variables.append((section, option, _variable(f"{section}_{name}"), plain))
        else:
            config.sections.setdefault(section, {})[option] = reader.text(value)


def _is_secret(option: str, value: str) -> bool:
    return _SECRET.search(option) is not None or _mask(value) != value


def _variable(name: str) -> str:
    return re.sub(r"\W", "_", name, flags=re.ASCII).upper()


def _free_name(path: Path) -> Path:
    name, number = path.with_name(f"{path.name}.bak"), 2
    while name.exists():
        name, number = path.with_name(f"{path.name}.bak{number}"), number + 1
    return name


def _carry_out(
    change: Change,
    given: argparse.Namespace,
    *,
    before: tuple[Path, list[str]],
    after: tuple[Path, list[str]],
    variables: dict[str, str],
) -> list[str]:
    """Show the diff, try it in a copy, then change the project; return what to tell."""
    print(change.diff(), end="")
    python = find_python(given.python, change.root)
    outermost = _outermost(change.root, change.table)
    with tempfile.TemporaryDirectory(prefix="alembic-ini-") as folder:
        # Not the longer name of a link to it: Alembic is told real paths.
        copied = Path(folder).resolve() / outermost.name
        copy_project(outermost, copied)
        trial = Trial(outermost, python, copied, variables)
        old = trial.ask(*before)
        change.apply(copied / change.root.relative_to(outermost))
        new = trial.ask(*after)
        try:
            notes = compare(old, new)
        except Refused:
            again = trial.ask(*after)
            if all(again[name].out == new[name].out for name in new):
                raise
            notes = compare(old, new, again)
    if not given.dry_run:
        change.apply(change.root)
    return notes


def _outermost(root: Path, table: Table) -> Path:
    """Return the folder of the repository that holds the project and all that Alembic looks for."""
    repository = next((f for f in (root, *root.parents) if (f / ".git").exists()), root)
    places = [place for key in _LISTS for place in table.get(key, [])]
    places.append(table.get("script_location", ""))
    plain = [place.replace("%(here)s", str(root)).replace("%%", "%") for place in places]
    paths = [Path(os.path.normpath(root / place)) for place in plain]
    return Path(os.path.commonpath([root, *(p for p in paths if p.is_relative_to(repository))]))


def _mentions(root: Path, ini: Path, changed: set[Path]) -> list[str]:
    """Say where else in the project the file is named."""
    notes = []
    kinds = {".cfg", ".py", ".sh", ".toml", ".yaml", ".yml", ""}
    here = Path(__file__).resolve().parents[1]  # in a rendered project: what works with either file
    named = re.compile(rf"(?<![\w.=,-]){re.escape(ini.name)}(?![\w.-])")
    for folder, folders, names in os.walk(root):
        inside = [Path(folder, name) for name in folders]
        folders[:] = [
            path.name
            for path in inside
            if path.name not in _NOT_COPIED and not (path / "pyvenv.cfg").exists()
        ]
        for path in sorted(Path(folder, name) for name in names):
            if path.suffix not in kinds or path in changed or path.is_relative_to(here):
                continue
            if not path.is_file() or path.stat().st_size > _LARGE:
                continue
            for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
                if named.search(line) and not line.lstrip().startswith("#"):
                    notes.append(f"{path.relative_to(root)}:{number} still names {ini.name}")
    return notes[:20]


def export_ini(given: argparse.Namespace) -> list[str]:
    """Move `[tool.alembic]` into an alembic.ini; return what to tell.

    Raises:
        Refused: nothing was changed.
    """
    pyproject = Path(given.pyproject or "pyproject.toml").absolute()
    root, path = pyproject.parent, pyproject.with_name("alembic.ini")
    text = _read(pyproject, pyproject.name)
    table = _table(text, pyproject.name)
    if not _ours(table):
        raise Refused(f"{pyproject.name}: there is nothing in [tool.alembic] to export")
    if path.exists():
        raise Refused(
            "alembic.ini exists, and what it says goes before [tool.alembic]: import it or move it "
            "away first"
        )
    change = Change(root, table)
    change.files[path] = write_ini(table, pyproject.name)
    change.files[pyproject] = edit_pyproject(text, None, pyproject.name)
    # A check that prints SQL connects to nothing; it needs a URL to know the dialect.
    variables = {given.url_variable: "postgresql://localhost/check"}
    variables = {k: v for k, v in variables.items() if not os.environ.get(k)}
    place = (root, [] if pyproject.name == "pyproject.toml" else ["-c", pyproject.name])
    notes = _carry_out(change, given, before=place, after=place, variables=variables)
    notes.append("[tool.alembic] becomes alembic.ini; the URL stays in the environment")
    return notes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    parser = argparse.ArgumentParser(prog="ini.py", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    importing = commands.add_parser("import", help="alembic.ini to [tool.alembic]")
    importing.add_argument("ini", nargs="?", default="alembic.ini", metavar="INI")
    importing.add_argument("--name", default="alembic", help="the main section, as alembic -n")
    importing.set_defaults(run=import_ini)
    exporting = commands.add_parser("export", help="[tool.alembic] to alembic.ini")
    exporting.set_defaults(run=export_ini)
    for command in (importing, exporting):
        command.add_argument("--pyproject", default="", help="by default the one beside, or above")
        command.add_argument(
            "--python", default="", help="the Python that has the project's Alembic"
        )
        command.add_argument(
            "--url-variable", default="DATABASE_URL", help="the variable that holds the URL"
        )
        command.add_argument("--dry-run", action="store_true", help="show the diff, change nothing")
    given = parser.parse_args(arguments)
    try:
        notes = given.run(given)
    except Refused as error:
        print(f"{error}\nNothing was changed.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing was changed.", file=sys.stderr)
        return 130
    for note in notes:
        print(f"- {note}")
    checked = "Alembic reads the same options, and heads, history and upgrade --sql are the same."
    print(f"{checked} Nothing was changed: --dry-run." if given.dry_run else checked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
