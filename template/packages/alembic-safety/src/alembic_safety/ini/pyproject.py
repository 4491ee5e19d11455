"""`[tool.alembic]` in the text of pyproject.toml, with the rest of the file kept as it is."""

import copy
import json
import re
import tomllib
from collections.abc import Callable
from typing import Any

import tomlkit

from alembic_safety.ini.errors import ConversionError
from alembic_safety.ini.table import SUBTABLES, ConvertedIni, Table, convertible_keys

Chunk = tuple[str, str]
"""The name of a table in pyproject.toml, and its text with the comment above the header."""

_ROOT = "tool.alembic"
_HOOKS = f"{_ROOT}.post_write_hooks"


def read_table(text: str, shown: str) -> Table:
    """Return `[tool.alembic]`; empty if there is none.

    Raises:
        ConversionError: the text is not TOML, or the value is not a table.
    """
    tool = _parse(text, shown).get("tool", {})
    table = tool.get("alembic", {}) if isinstance(tool, dict) else None
    if not isinstance(table, dict):
        raise ConversionError(f"{shown}: tool.alembic: expected a table")
    return table


def add_table(text: str, converted: ConvertedIni, shown: str) -> str:
    """Return the text with the ini's contents merged into `[tool.alembic]`.

    Raises:
        ConversionError: the table has no separate header.
    """
    wanted = copy.deepcopy(_parse(text, shown))
    _merge(wanted.setdefault("tool", {}).setdefault("alembic", {}), converted)
    return _edit(text, wanted, shown, lambda chunks: _with_table(chunks, converted))


def remove_table(text: str, shown: str) -> str:
    """Return the text without the parts of `[tool.alembic]` that an ini can hold.

    Raises:
        ConversionError: the table has no separate header.
    """
    wanted = copy.deepcopy(_parse(text, shown))
    for key in convertible_keys(wanted["tool"]["alembic"]):
        del wanted["tool"]["alembic"][key]
    if not wanted["tool"]["alembic"]:
        del wanted["tool"]["alembic"]
    if not wanted["tool"]:
        del wanted["tool"]
    return _edit(text, wanted, shown, _without_table)


def _parse(text: str, shown: str) -> Table:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise ConversionError(
            f"{shown}:{line[1] if line else 1}: not valid TOML: {error}"
        ) from None


def _merge(table: Table, converted: ConvertedIni) -> None:
    table.update(converted.options)
    if converted.hooks:
        table["post_write_hooks"] = converted.hooks
    elif converted.hooks is not None:
        table.pop("post_write_hooks", None)
    if converted.logging:
        table["logging"] = converted.logging
    for section, options in converted.sections.items():
        table.setdefault("sections", {})[section] = options


def _edit(text: str, wanted: Table, shown: str, edit: Callable[[list[Chunk]], str]) -> str:
    """Return the edited text, once it is known to parse to `wanted`."""
    windows = "\r\n" in text and "\n" not in text.replace("\r\n", "")
    new = edit(_split(text.replace("\r\n", "\n") if windows else text))
    try:
        is_wanted = tomllib.loads(new) == wanted
    except tomllib.TOMLDecodeError:
        is_wanted = False
    if not is_wanted:
        raise ConversionError(
            f"{shown}: tool.alembic has no separate header; write the table as [tool.alembic] and "
            "[[tool.alembic.post_write_hooks]], then run the command again"
        )
    return new.replace("\n", "\r\n") if windows else new


def _split(text: str) -> list[Chunk]:
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


def _with_table(chunks: list[Chunk], converted: ConvertedIni) -> str:
    names = [name for name, _ in chunks]
    others = [number for number, name in enumerate(names) if name.startswith(_ROOT)]
    at = names.index(_ROOT) if _ROOT in names else others[0] if others else len(chunks)
    if _ROOT not in names:
        chunks = [*chunks[:at], (_ROOT, f"[{_ROOT}]\n"), *chunks[at:]]
    tables = _subtable_texts(converted)
    replaced = {f"{_ROOT}.{name}" for name in tables} | {_HOOKS}
    hooks = "".join(text for name, text in chunks if name == _HOOKS)
    if converted.hooks is not None:
        hooks = "\n".join(_hook_text(hook) for hook in converted.hooks)
    before = "".join(text for _, text in chunks[:at])
    after = "".join(text for name, text in chunks[at + 1 :] if name not in replaced)
    root = _set_options(chunks[at][1], converted.options)
    texts = [before, root, hooks, *tables.values(), after]
    return "\n\n".join(text.strip("\n") for text in texts if text.strip()) + "\n"


def _without_table(chunks: list[Chunk]) -> str:
    remaining = "".join(text for name, text in chunks if not _is_convertible(name))
    return remaining.rstrip("\n") + "\n" if remaining.strip() else ""


def _is_convertible(name: str) -> bool:
    below = name.removeprefix(f"{_ROOT}.").partition(".")[0]
    return name == _ROOT or (name != below and below in SUBTABLES)


def _set_options(chunk: str, options: Table) -> str:
    """Set options in the text of `[tool.alembic]`; new ones follow the last one there is."""
    document = tomlkit.parse(chunk)
    table: Any = document["tool"]["alembic"]
    new = []
    for key, value in options.items():
        if key not in table:
            new.append(_assignment(key, value))
        elif table[key] != value:
            table[key] = value
    lines = tomlkit.dumps(document).splitlines(keepends=True)
    last = max(
        (n for n, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")),
        default=0,
    )
    if not lines[last].endswith("\n"):
        lines[last] += "\n"
    return "".join([*lines[: last + 1], *new, *lines[last + 1 :]])


def _assignment(key: str, value: Any) -> str:
    if isinstance(value, dict):
        inline = tomlkit.inline_table()
        inline.update(value)
        value = inline
    return f"{_quoted(key)} = {tomlkit.item(value).as_string()}\n"


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key, ensure_ascii=False)


def _hook_text(hook: Table) -> str:
    lines = [_assignment(key, value) for key, value in hook.items()]
    return "".join([f"[[{_HOOKS}]]\n", *lines])


def _subtable_texts(converted: ConvertedIni) -> dict[str, str]:
    texts = {}
    if converted.logging:
        comment = "# The sections for logging.config.fileConfig in env.py."
        texts["logging"] = _subtable_text("logging", comment, converted.logging)
    for section, options in converted.sections.items():
        name = f"sections.{_quoted(section)}"
        texts[f"sections.{section}"] = _subtable_text(name, "# Read by env.py.", options)
    return texts


def _subtable_text(name: str, comment: str, values: Table) -> str:
    lines = [_assignment(key, value) for key, value in values.items()]
    return "".join([f"{comment}\n[{_ROOT}.{name}]\n", *lines])
