"""PostgreSQL URLs that mean the same to asyncpg and to libpq, its programs and its drivers."""

import getpass
import os
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from alembic_safety.database.hosts import only_one, resolve_hosts


class Driver(StrEnum):
    """Driver that revisions run on. All other connections use asyncpg."""

    ASYNCPG = "asyncpg"
    """Accepts one statement per `op.execute`."""
    PSYCOPG = "psycopg"
    PSYCOPG2 = "psycopg2"


_DRIVERS = {
    "postgresql": Driver.ASYNCPG,
    "postgres": Driver.ASYNCPG,
    "postgresql+asyncpg": Driver.ASYNCPG,
    "postgresql+psycopg": Driver.PSYCOPG,
    "postgresql+psycopg_async": Driver.PSYCOPG,
    "postgresql+psycopg2": Driver.PSYCOPG2,
}

# asyncpg would send these to the server as run-time parameters, and the server would refuse the
# connection. https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
_LIBPQ_ONLY = frozenset(
    {
        "channel_binding",
        "client_encoding",
        "fallback_application_name",
        "gssencmode",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "require_auth",
        "requirepeer",
        "sslcertmode",
        "sslcompression",
        "sslsni",
        "tcp_user_timeout",
    }
)
# Parameters of libpq; asyncpg treats every other name as a run-time parameter of the session.
_LIBPQ = _LIBPQ_ONLY | {
    "application_name",
    "connect_timeout",
    "gssdelegation",
    "gsslib",
    "krbsrvname",
    "max_protocol_version",
    "min_protocol_version",
    "options",
    "passfile",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
    "target_session_attrs",
}
_SHOWN = _LIBPQ - {"sslpassword"} | {"search_path"}
# Resolved by `parse` into the fields of the URL. `database` is asyncpg's name for dbname.
# load_balance_hosts is dropped, because asyncpg always tries the hosts in their order.
_RESOLVED = {"host", "port", "user", "password", "dbname", "database", "load_balance_hosts"}
_UNSUPPORTED = {
    "hostaddr": "asyncpg does not support it; use the address as the host",
    "service": "asyncpg and libpq read service files differently; "
    "put the host, port, user and database of the service into the URL",
}
SSL_MODES = ("prefer", "disable", "allow", "require", "verify-ca", "verify-full")
_ASYNCPG_NAMES = {"ssl": "sslmode"}


class DatabaseURLError(ValueError):
    """A URL is invalid. The message follows a name of the URL, and has no part of a password."""


@dataclass(frozen=True, kw_only=True, repr=False)
class DatabaseURL:
    """A PostgreSQL URL. `str()` and `repr()` never show the password."""

    user: str
    password: str | None
    hosts: tuple[tuple[str, int], ...]
    """Pairs of host and port in connection order; a host with a / is a Unix socket's folder."""
    database: str
    query: tuple[tuple[str, str], ...] = ()
    """The remaining parameters: TLS options and run-time parameters of the session."""
    driver: Driver = Driver.ASYNCPG

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse and resolve a URL.

        Parts that are missing before the query are taken from its parameters (`?host=`, `?port=`,
        `?user=`, `?password=`, `?dbname=`), then from PGHOST, PGPORT and PGUSER. PGHOSTADDR and
        PGSERVICE are ignored, as asyncpg does.

        Raises:
            DatabaseURLError: `text` is not a PostgreSQL URL, or contradicts itself.
        """
        try:
            return cls._parse(text)
        except ValueError as error:
            raise DatabaseURLError(str(error)) from None

    @classmethod
    def _parse(cls, text: str) -> Self:
        scheme, separator, rest = text.strip().partition("://")
        if not separator:
            raise ValueError("is not a URL; expected postgresql://user:password@host:5432/database")
        driver = _DRIVERS.get(scheme.lower())
        if driver is None:
            shown = scheme if scheme.replace("+", "").isalnum() else "?"
            raise ValueError(f"has the scheme {shown!r}; expected one of {', '.join(_DRIVERS)}")
        try:
            parts = urlsplit(f"postgresql://{rest}")
            query = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError:
            raise ValueError(
                "can't be parsed as a URL; percent-encode special characters in the password "
                "(/ is %2F, ? is %3F, # is %23, [ is %5B)"
            ) from None
        if parts.fragment:
            raise ValueError("contains a #; in a password, write it as %23")
        if "/" in parts.path[1:] or "@" in parts.path:
            raise ValueError(
                "has a / or @ in the database name; in a password, write them as %2F and %40"
            )
        for name, reason in _UNSUPPORTED.items():
            if name in query:
                raise ValueError(f"has the parameter {name}; {reason}")
        if (query.get("sslmode") or query.get("ssl") or SSL_MODES[:1])[-1] not in SSL_MODES:
            raise ValueError(f"has an unknown sslmode; expected one of {', '.join(SSL_MODES)}")
        # Split at the last "@", because a password may contain unescaped ones.
        userinfo, _, authority = parts.netloc.rpartition("@")
        user, _, password = userinfo.partition(":")
        passwords = query.get("password", ())
        hosts = resolve_hosts(authority, query)
        names = query.get("dbname", []) + query.get("database", [])
        database = only_one("databases", unquote(parts.path.removeprefix("/")), *names)
        if not database:
            raise ValueError("names no database; expected .../database at the end of the URL")
        return cls(
            driver=driver,
            user=only_one("users", unquote(user), *query.get("user", ())) or _default_user(),
            password=only_one("passwords", unquote(password), *passwords, secret=True) or None,
            hosts=hosts,
            database=database,
            query=tuple(
                (_ASYNCPG_NAMES.get(name, name), values[-1])
                for name, values in query.items()
                if name not in _RESOLVED
            ),
        )

    def with_database(self, database: str) -> Self:
        """Return the URL of another database on the same server."""
        return replace(self, database=database)

    @property
    def libpq(self) -> str:
        """The URL with its password, in the format of libpq, psql and pg_dump."""
        return self._render(password=self.password, query=_for_libpq(self.query))

    @property
    def without_password(self) -> str:
        """The URL for programs that read the password from PGPASSWORD."""
        shown = tuple(pair for pair in self.query if pair[0] != "sslpassword")
        return self._render(password=None, query=_for_libpq(shown))

    @property
    def wants_tls(self) -> bool:
        """True if the client refuses connections without TLS (sslmode require or stricter)."""
        mode = dict(self.query).get("sslmode") or os.environ.get("PGSSLMODE", "")
        return mode in SSL_MODES[SSL_MODES.index("require") :]

    def _render(self, *, password: str | None, query: tuple[tuple[str, str], ...]) -> str:
        userinfo = quote(self.user, safe="")
        if password is not None:
            userinfo += ":" + quote(password, safe="")
        authority = ""
        if any(host.startswith("/") for host, _ in self.hosts):
            ports = [str(port) for _, port in self.hosts]
            shown = ports if len(set(ports)) > 1 else ports[:1]
            hosts = ",".join(host for host, _ in self.hosts)
            query = (("host", hosts), ("port", ",".join(shown)), *query)
        else:
            named = [(quote(host, safe=":"), port) for host, port in self.hosts]
            authority = ",".join(
                f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in named
            )
        parameters = f"?{_encode(query)}" if query else ""
        return f"postgresql://{userinfo}@{authority}/{quote(self.database, safe='')}{parameters}"

    def asyncpg_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `asyncpg.connect` for this URL."""
        query = tuple(
            (key, value)
            for key, value in self.query
            if key not in _LIBPQ_ONLY and key != "connect_timeout"
        )
        arguments: dict[str, Any] = {
            "host": [host for host, _ in self.hosts],
            "port": [port for _, port in self.hosts],
            "user": self.user,
            "password": self.password,
            "database": self.database,
            # asyncpg reads TLS options and run-time parameters from the DSN.
            "dsn": f"postgresql:///?{_encode(query)}" if query else None,
        }
        timeout = dict(self.query).get("connect_timeout")
        if timeout is not None and timeout.isdigit() and int(timeout) > 0:
            arguments["timeout"] = float(timeout)
        return arguments

    def __str__(self) -> str:
        """Return the URL for messages. A parameter that is not known may be a misspelled password."""
        shown = [(key, value if key in _SHOWN else "***") for key, value in self.query]
        return self._render(password=None, query=tuple(shown))

    def __repr__(self) -> str:
        return f"DatabaseURL({str(self)!r})"


def _default_user() -> str:
    try:
        return os.environ.get("PGUSER") or getpass.getuser()
    except (KeyError, OSError):  # the user of a container may have no name
        raise ValueError("names no user; expected postgresql://user:password@...") from None


def _encode(query: tuple[tuple[str, str], ...]) -> str:
    return urlencode(query, quote_via=quote, safe="/,:*")


def _for_libpq(query: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Move run-time parameters into `options`, where libpq expects them."""
    known = [pair for pair in query if pair[0] in _LIBPQ]
    settings = [pair for pair in query if pair[0] not in _LIBPQ]
    if not settings:
        return query
    given = [value for key, value in known if key == "options"]
    escaped = ["-c " + re.sub(r"([\\ ])", r"\\\1", f"{key}={value}") for key, value in settings]
    others = tuple(pair for pair in known if pair[0] != "options")
    return (*others, ("options", " ".join([*given, *escaped])))
