"""Contents of an ini that are imported, and their destinations."""

import re

from alembic_safety.ini.env_file import EnvFile
from alembic_safety.ini.errors import ConversionError
from alembic_safety.ini.hooks import SECTION as HOOKS_SECTION
from alembic_safety.ini.hooks import hooks_from_ini
from alembic_safety.ini.ini_file import HERE
from alembic_safety.ini.logging_sections import is_logging_section, read_logging
from alembic_safety.ini.redaction import hide_passwords, is_secret
from alembic_safety.ini.table import ALEMBIC_OPTIONS, URL_OPTION, ConvertedIni, SecretOption
from alembic_safety.ini.values import ValueConverter


def convert(converter: ValueConverter, env: EnvFile | None, url_variable: str) -> ConvertedIni:
    """Return Alembic's options of an ini, and the other parts that env.py reads.

    Args:
        converter: the ini and where it is converted to.
        env: env.py; None if it is not in the project.
        url_variable: the environment variable for the URL.

    Raises:
        ConversionError: a value is wrong, or a secret cannot be moved to the environment.
    """
    ini, main, notes = converter.ini, converter.section, converter.notes
    converted = ConvertedIni(options=converter.options(), hooks=hooks_from_ini(converter))
    for option in ini.options(main):
        if option not in ALEMBIC_OPTIONS:
            _convert_custom_option(converter, env, converted, option, url_variable)
    for section in ini.parser.sections():
        if section in {main, HOOKS_SECTION} or is_logging_section(section):
            continue
        where = ini.location(section)
        if env and env.reads_section(section):
            _convert_custom_section(converter, converted, section)
        elif ini.parser.has_option(section, "script_location"):
            notes.append(
                f"{where}: [{section}] is not imported: [tool.alembic] is one table; "
                f"`alembic -c <the old file> -n {section} ...` still reads the section"
            )
        else:
            notes.append(f"{where}: [{section}] is not imported: env.py does not read it")
    if ini.parser.has_section("loggers"):
        if env and env.reads_logging:
            converted.logging = read_logging(ini)
        else:
            where = ini.location("loggers")
            notes.append(f"{where}: logging is not imported: env.py does not read its sections")
    return converted


def _convert_custom_option(
    converter: ValueConverter,
    env: EnvFile | None,
    converted: ConvertedIni,
    option: str,
    url_variable: str,
) -> None:
    """Convert an option of the main section that is not one of Alembic's own."""
    ini, main, notes = converter.ini, converter.section, converter.notes
    where, is_url = f"{ini.location(main, option)}: {option}", option == URL_OPTION
    by_name = env is not None and env.reads_option(option)
    if env is None or not (by_name or env.reads_section_with(option)):
        value = f" ({hide_passwords(ini.get(main, option, raw=True))})" if is_url else ""
        notes.append(f"{where}{value} is not imported: env.py does not read it")
        return
    if is_url and env.sets_url == "always":
        notes.append(f"{where} is not imported: env.py sets the URL itself")
        return
    if is_url and (template := _url_template(converter)):
        converted.url_template = template
        notes.append(f"{where} moves to env.py, which fills in its placeholders")
        return
    value = ini.get(main, option)
    if is_url or is_secret(option, value):
        variable = url_variable if is_url else _variable_name(option)
        plain = value.replace(HERE, str(ini.path.parent))
        converted.secrets.append(SecretOption("", option, variable, plain))
    elif by_name:
        converted.options[option] = converter.text(value)
    else:
        converted.sections.setdefault("alembic", {})[option] = converter.text(value)


def _url_template(converter: ValueConverter) -> str:
    """Return the URL if it has placeholders that are not options of the ini, else ""."""
    ini, main = converter.ini, converter.section
    raw = ini.get(main, URL_OPTION, raw=True)
    names = re.findall(r"%\(([^)]+)\)s", raw)
    if all(ini.parser.has_option(main, name) for name in names):
        return ""
    if re.search(r"://[^/:@]*:(?!%\()[^/@]+@", raw):
        raise ConversionError(
            f"{ini.location(main, URL_OPTION)}: {URL_OPTION} holds a password next to placeholders "
            "that env.py fills in; make the password a placeholder as well"
        )
    return raw


def _convert_custom_section(
    converter: ValueConverter, converted: ConvertedIni, section: str
) -> None:
    """Convert a section that env.py reads."""
    for option in converter.ini.own_options(section):
        value = converter.ini.get(section, option)
        if option == URL_OPTION or is_secret(option, value):
            name = "database_url" if option == URL_OPTION else option
            plain = value.replace(HERE, str(converter.ini.path.parent))
            variable = _variable_name(f"{section}_{name}")
            converted.secrets.append(SecretOption(section, option, variable, plain))
        else:
            converted.sections.setdefault(section, {})[option] = converter.text(value)


def _variable_name(name: str) -> str:
    return re.sub(r"\W", "_", name, flags=re.ASCII).upper()
