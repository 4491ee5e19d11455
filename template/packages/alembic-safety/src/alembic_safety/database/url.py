"""A PostgreSQL address, in every spelling that people have, made one."""

import os
import re
from dataclasses import dataclass, replace
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")

# libpq knows these and asyncpg does not: it would send them to the server as settings, which
# refuses the connection. The documentation of libpq lists them under "Parameter Key Words".
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
        "load_balance_hosts",
        "require_auth",
        "requirepeer",
        "sslcertmode",
        "sslcompression",
        "sslsni",
        "tcp_user_timeout",
    }
)
# What libpq reads of a URL; asyncpg takes any other name for a setting of the session.
_LIBPQ = _LIBPQ_ONLY | {
    "application_name",
    "connect_timeout",
    "gssdelegation",
    "gsslib",
    "host",
    "hostaddr",
    "krbsrvname",
    "max_protocol_version",
    "min_protocol_version",
    "options",
    "passfile",
    "port",
    "service",
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
    "user",
}
SSL_MODES = ("prefer", "disable", "allow", "require", "verify-ca", "verify-full")
_LARGEST_PORT = 65535
_ASYNCPG_NAMES = {"ssl": "sslmode"}


@dataclass(frozen=True, kw_only=True, repr=False)
class DatabaseURL:
    """A PostgreSQL address. `str()` and `repr()` of it never show the password."""

    user: str | None
    password: str | None
    hosts: str
    """Comma-separated `host[:port]`, IPv6 in brackets; empty for a default Unix socket."""
    database: str
    query: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the address that `text` spells.

        Raises:
            ValueError: not a PostgreSQL URL; the message never repeats the text, as there may
                be a password in it.
        """
        scheme, separator, _ = text.strip().partition("://")
        if not separator:
            raise ValueError("is not a URL; expected postgresql://user:password@host:5432/database")
        if scheme.lower() not in SCHEMES:
            shown = scheme if scheme.replace("+", "").isalnum() else "?"
            raise ValueError(f"has the scheme {shown!r}; expected one of {', '.join(SCHEMES)}")
        try:
            parts = urlsplit(text.strip())
            query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError:
            raise ValueError(
                "can't be read as a URL; percent-encode what is special in the password "
                "(/ is %2F, ? is %3F, # is %23, [ is %5B)"
            ) from None
        if parts.fragment:
            raise ValueError("has a '#' in it; in a password, write it as %23")
        if "/" in parts.path[1:] or "@" in parts.path:
            raise ValueError("has a / or @ in the database's name; in a password, write %2F, %40")
        parameters = dict(query)
        if "dbname" in parameters:
            raise ValueError(
                "has a parameter dbname; the database stands in the path: .../database"
            )
        mode = parameters.get("sslmode", parameters.get("ssl", SSL_MODES[0]))
        if mode not in SSL_MODES:
            raise ValueError(f"has an unknown sslmode; expected one of {', '.join(SSL_MODES)}")
        # The last "@" ends the password: one that was not percent-encoded does no harm.
        userinfo, _, hosts = parts.netloc.rpartition("@")
        user, _, password = userinfo.partition(":")
        url = cls(
            user=unquote(user) or None,
            password=unquote(password) or parameters.get("password"),
            hosts=hosts,
            database=unquote(parts.path.removeprefix("/")),
            query=tuple(
                (_ASYNCPG_NAMES.get(key, key), value) for key, value in query if key != "password"
            ),
        )
        url._check_ports(parameters.get("port", ""))
        if not url.database:
            raise ValueError("names no database; expected .../database at the end of the address")
        return url

    def _check_ports(self, parameter: str) -> None:
        ports = [host.rpartition("]")[2].partition(":")[2] for host in self.hosts.split(",")]
        for port in [*ports, *parameter.split(",")]:
            if port and not (port.isascii() and port.isdigit() and int(port) <= _LARGEST_PORT):
                raise ValueError(
                    "has a port that is not a number up to 65535; "
                    "in a password, write : as %3A, / as %2F and @ as %40"
                )

    def with_database(self, database: str) -> Self:
        """Return the same server's address with another database."""
        return replace(self, database=database)

    @property
    def libpq(self) -> str:
        """The address with its password, as libpq, psql, pg_dump and asyncpg read it."""
        return self._render(password=self.password, query=_for_libpq(self.query))

    @property
    def without_password(self) -> str:
        """The address for messages, and for commands that get the password by PGPASSWORD."""
        shown = tuple(pair for pair in self.query if pair[0] != "sslpassword")
        return self._render(password=None, query=_for_libpq(shown))

    @property
    def wants_tls(self) -> bool:
        """Whether a connection without TLS would be refused by this side."""
        mode = dict(self.query).get("sslmode") or os.environ.get("PGSSLMODE", "")
        return mode in SSL_MODES[SSL_MODES.index("require") :]

    def _render(self, *, password: str | None, query: tuple[tuple[str, str], ...]) -> str:
        userinfo = quote(self.user or "", safe="")
        if password is not None:
            userinfo += ":" + quote(password, safe="")
        authority = f"{userinfo}@{self.hosts}" if userinfo else self.hosts
        parameters = "?" + urlencode(query, quote_via=quote, safe="/") if query else ""
        return f"postgresql://{authority}/{quote(self.database, safe='')}{parameters}"

    def asyncpg_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `asyncpg.connect` for this address."""
        query = tuple(
            (key, value)
            for key, value in self.query
            if key not in _LIBPQ_ONLY and key != "connect_timeout"
        )
        arguments: dict[str, Any] = {"dsn": self._render(password=self.password, query=query)}
        timeout = dict(self.query).get("connect_timeout")
        if timeout is not None and timeout.isdigit() and int(timeout) > 0:
            arguments["timeout"] = float(timeout)
        return arguments

    def __str__(self) -> str:
        return self.without_password

    def __repr__(self) -> str:
        return f"DatabaseURL({self.without_password!r})"


def _for_libpq(query: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Return the parameters with settings of the session where libpq wants them: in `options`."""
    known = [pair for pair in query if pair[0] in _LIBPQ]
    settings = [pair for pair in query if pair[0] not in _LIBPQ]
    if not settings:
        return query
    given = [value for key, value in known if key == "options"]
    escaped = ["-c " + re.sub(r"([\\ ])", r"\\\1", f"{key}={value}") for key, value in settings]
    others = tuple(pair for pair in known if pair[0] != "options")
    return (*others, ("options", " ".join([*given, *escaped])))
