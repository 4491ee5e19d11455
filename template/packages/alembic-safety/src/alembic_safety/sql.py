"""SQL as text: identifiers and their patterns, and the SQLSTATEs that are handled."""

LEADING = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
"""Pattern of the whitespace and comments before a statement; needs `re.DOTALL`."""
IDENTIFIER = r'(?:"(?:[^"]|"")+"|[\w$]+)'
QUALIFIED = rf"{IDENTIFIER}(?:\s*\.\s*{IDENTIFIER})?"

# https://www.postgresql.org/docs/current/errcodes-appendix.html
DUPLICATE_DATABASE = "42P04"
INSUFFICIENT_PRIVILEGE = "42501"
LOCK_NOT_AVAILABLE = "55P03"
OBJECT_IN_USE = "55006"
UNDEFINED_TABLE = "42P01"


def quote(name: str) -> str:
    """Return an identifier as SQL writes it."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error that SQLAlchemy wrapped."""
    return getattr(getattr(error, "orig", None), "sqlstate", None)
