"""Identifiers of SQL, and the SQLSTATEs that the engine handles."""

from enum import StrEnum

from sqlalchemy.exc import DBAPIError

IDENTIFIER = r'(?:"(?:[^"]|"")+"|[\w$]+)'
"""Regular expression of an identifier as SQL writes it, quoted or not."""
QUALIFIED = rf"{IDENTIFIER}(?:\s*\.\s*{IDENTIFIER})?"
LEADING = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
"""Regular expression of the whitespace and comments before a statement; needs `re.DOTALL`."""
LONGEST_IDENTIFIER = 63
"""Bytes that PostgreSQL keeps of an identifier: NAMEDATALEN - 1."""
RELATION_NAME = """
    CASE n.nspname WHEN 'public' THEN '' ELSE quote_ident(n.nspname) || '.' END
        || quote_ident(c.relname)
"""
"""SQL of the quoted name of the relation `c` in the schema `n`, qualified unless that is public."""


ADVISORY_KEY = "(l.classid::bigint << 32) | l.objid::bigint"
"""SQL of the bigint key of an advisory lock `l` in pg_locks, whose `objsubid` is 1."""


class SQLState(StrEnum):
    """Error codes of PostgreSQL, by their condition names.

    https://www.postgresql.org/docs/current/errcodes-appendix.html
    """

    FEATURE_NOT_SUPPORTED = "0A000"
    INVALID_PARAMETER_VALUE = "22023"
    READ_ONLY_SQL_TRANSACTION = "25006"
    INSUFFICIENT_PRIVILEGE = "42501"
    WRONG_OBJECT_TYPE = "42809"
    UNDEFINED_TABLE = "42P01"
    DUPLICATE_DATABASE = "42P04"
    DISK_FULL = "53100"
    OBJECT_IN_USE = "55006"
    LOCK_NOT_AVAILABLE = "55P03"
    QUERY_CANCELED = "57014"


def quote_identifier(name: str) -> str:
    """Return a name as a quoted identifier."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def get_sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE of an error from the server; an empty string for any other error."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or ""  # psycopg2
