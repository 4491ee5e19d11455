"""Edits to env.py, so that it works without alembic.ini."""

import ast
import json

from alembic_safety.ini.env_file import EnvFile, first_argument
from alembic_safety.ini.errors import ConversionError
from alembic_safety.ini.table import URL_OPTION, ConvertedIni, SecretOption

_COMMENT = "# From the former alembic.ini. An ini, or the calling program, has precedence.\n"


class EnvEditor:
    """Edits the text of env.py in the few places that depend on the ini."""

    def __init__(self, env: EnvFile, converted: ConvertedIni, notes: list[str]) -> None:
        self.env, self.converted, self.notes = env, converted, notes
        self.lines = env.text.encode().splitlines(keepends=True)  # ast counts columns in bytes
        self.edits: list[tuple[int, int, str]] = []
        self.imports: list[str] = []
        self.config, self.config_line = self._find_config()

    def edit(self) -> str:
        """Return the new text."""
        self._edit_file_config()
        block = self._missing_options()
        self._edit_reads(sets_url=bool(block) or self.env.sets_url != "never")
        self._note_other_uses()
        if block:
            at = sum(map(len, self.lines[: self.config_line]))
            self.edits.append((at, at, f"\n{block}"))
        if self.imports:
            at = self._first_import()
            lines = sorted({*self.imports}, reverse=True)  # `import os` before `from ...`
            self.edits.append((at, at, "".join(f"{line}\n" for line in lines)))
        text = b"".join(self.lines)
        for start, end, new in sorted(self.edits, reverse=True):
            text = text[:start] + new.encode() + text[end:]
        windows = b"\r\n" in b"".join(self.lines[:1])
        return text.decode().replace("\r\n", "\n").replace("\n", "\r\n" if windows else "\n")

    def _start(self, node: ast.stmt | ast.expr) -> int:
        return sum(map(len, self.lines[: node.lineno - 1])) + node.col_offset

    def _end(self, node: ast.stmt | ast.expr) -> int:
        line, column = node.end_lineno or node.lineno, node.end_col_offset or 0
        return sum(map(len, self.lines[: line - 1])) + column

    def _find_config(self) -> tuple[str, int]:
        """Return the name of Alembic's configuration, and the line after which the name exists."""
        last_import = 0
        for statement in self.env.tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                last_import = statement.end_lineno or last_import
            value = getattr(statement, "value", None)
            if isinstance(value, ast.Attribute) and ast.unparse(value).endswith("context.config"):
                target = (
                    statement.targets[0]
                    if isinstance(statement, ast.Assign)
                    else getattr(statement, "target", None)
                )
                if isinstance(target, ast.Name):
                    return target.id, statement.end_lineno or last_import
        return "context.config", last_import

    def _first_import(self) -> int:
        for statement in self.env.tree.body:
            future = isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
            if isinstance(statement, ast.Import | ast.ImportFrom) and not future:
                return self._start(statement)
        return 0

    def _edit_file_config(self) -> None:
        """Make `fileConfig` read the logging sections of the table, if the table has any."""
        if not self.converted.logging:
            return
        table = f"{self.config}.toml_alembic_config"
        for node in self.env.file_config_calls():
            start, end = self._start(node), self._end(node)
            before = self.lines[node.lineno - 1][: node.col_offset].decode()
            if before.strip():
                raise ConversionError(
                    f"{self.env.shown}:{node.lineno}: fileConfig shares its line with other code; "
                    "move the call to a separate line"
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

    def _edit_reads(self, *, sets_url: bool) -> None:
        """Make reads of options work for both files.

        Alembic's `get_main_option` and `get_section` see the ini only.
        """
        for name, node in self.env.calls("get_main_option", "get_section"):
            first = first_argument(node)
            url = isinstance(first, ast.Constant) and first.value == URL_OPTION
            if name == "get_main_option" and not (url and sets_url):
                end = self._end(node.func)
                self.edits.append((end - len(name), end, "get_alembic_option"))
            elif name == "get_section" and len(node.args) == 1 and not node.keywords:
                end = self._end(node.args[0])
                self.edits.append((end, end, ", {}"))

    def _missing_options(self) -> str:
        """Return the code that sets the options that env.py reads from the ini's parser."""
        lines = [line for secret in self.converted.secrets for line in self._set_secret(secret)]
        if self.converted.url_template:
            main = f"{self.config}.config_ini_section"
            template = json.dumps(self.converted.url_template)
            lines += [
                f'if not {self.config}.file_config.has_option({main}, "{URL_OPTION}"):',
                f'    {self.config}.set_main_option("{URL_OPTION}", {template})',
            ]
        if self.converted.sections and 'toml_alembic_config.get("sections"' not in self.env.text:
            sections = self.config + '.toml_alembic_config.get("sections", {})'
            lines += [
                f"for section, options in {sections}.items():",
                "    for option, value in options.items():",
                f"        if not {self.config}.file_config.has_option(section, option):",
                f"            value = (value % {self.config}.toml_args).replace('%', '%%')",
                f"            {self.config}.set_section_option(section, option, value)",
            ]
        if not lines:
            return ""
        imported = any(
            isinstance(statement, ast.Import) and any(a.name == "os" for a in statement.names)
            for statement in self.env.tree.body
        )
        if self.converted.secrets and not imported:
            self.imports.append("import os")
        return _COMMENT + "".join(f"{line}\n" for line in lines)

    def _set_secret(self, secret: SecretOption) -> list[str]:
        """Return the lines that set an option from its environment variable."""
        variable = f'"{secret.variable}"'
        if "file_config.has_option" in self.env.text and variable in self.env.text:
            return []  # an earlier import has written them
        is_main = secret.section == ""
        section = f"{self.config}.config_ini_section" if is_main else json.dumps(secret.section)
        is_url = is_main and secret.option == URL_OPTION
        optional = is_url and (self.env.sets_url == "maybe" or not secret.value)
        value = f'os.environ.get({variable}, "")' if optional else f"os.environ[{variable}]"
        return [
            f'if not {self.config}.file_config.has_option({section}, "{secret.option}"):',
            f"    {self.config}.set_section_option(",
            f'        {section}, "{secret.option}", {value}.replace("%", "%%")',
            "    )",
        ]

    def _note_other_uses(self) -> None:
        """Note uses of the file's name, except tests for its existence."""
        known = {id(node.args[0]) for _, node in self.env.calls("fileConfig") if node.args}
        for node in ast.walk(self.env.tree):
            if isinstance(node, ast.Compare):
                known |= {id(child) for child in ast.walk(node)}
            elif isinstance(node, ast.If | ast.IfExp):
                known |= {id(child) for child in ast.walk(node.test)}
        for node in ast.walk(self.env.tree):
            is_use = isinstance(node, ast.Attribute) and node.attr == "config_file_name"
            if is_use and id(node) not in known:
                self.notes.append(
                    f"{self.env.shown}:{getattr(node, 'lineno', 1)}: config_file_name names a file "
                    "that no longer exists; the name of pyproject.toml is in toml_file_name"
                )
