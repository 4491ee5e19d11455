"""PostgreSQL URLs that mean the same to asyncpg (migrations) and libpq (backups)."""

import getpass
import os
import re
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")

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
# Resolved by `parse` into the fields of the URL. `database` is asyncpg's name for dbname.
# load_balance_hosts is dropped, because asyncpg always tries the hosts in their order.
_RESOLVED = {"host", "port", "user", "password", "dbname", "database", "load_balance_hosts"}
_UNSUPPORTED = {
    "hostaddr": "asyncpg does not support it; use the address as the host",
    "service": "asyncpg and libpq read service files differently; "
    "put the host, port, user and database of the service into the URL",
}
SSL_MODES = ("prefer", "disable", "allow", "require", "verify-ca", "verify-full")
_LARGEST_PORT = 65535
_DEFAULT_PORT = "5432"
_DEFAULT_HOSTS = "/var/run/postgresql,/tmp,localhost"
"""Explicit, because the defaults of asyncpg and of each build of libpq differ."""
_ASYNCPG_NAMES = {"ssl": "sslmode"}


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

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse and resolve a URL.

        Parts that are missing before the query are taken from its parameters (`?host=`, `?port=`,
        `?user=`, `?password=`, `?dbname=`), then from PGHOST, PGPORT and PGUSER. PGHOSTADDR and
        PGSERVICE are ignored, as asyncpg does.

        Raises:
            ValueError: `text` is not a PostgreSQL URL, or contradicts itself. The message contains
                no part of a password.
        """
        scheme, separator, _ = text.strip().partition("://")
        if not separator:
            raise ValueError("is not a URL; expected postgresql://user:password@host:5432/database")
        if scheme.lower() not in SCHEMES:
            shown = scheme if scheme.replace("+", "").isalnum() else "?"
            raise ValueError(f"has the scheme {shown!r}; expected one of {', '.join(SCHEMES)}")
        try:
            parts = urlsplit(text.strip())
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
        hosts = _resolve_hosts(authority, query)
        names = query.get("dbname", []) + query.get("database", [])
        database = _only_one("databases", unquote(parts.path.removeprefix("/")), *names)
        if not database:
            raise ValueError("names no database; expected .../database at the end of the URL")
        return cls(
            user=_only_one("users", unquote(user), *query.get("user", ())) or _default_user(),
            password=_only_one("passwords", unquote(password), *passwords, secret=True) or None,
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
        """The URL for messages and for programs that read the password from PGPASSWORD."""
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
        return self.without_password

    def __repr__(self) -> str:
        return f"DatabaseURL({self.without_password!r})"


def _only_one(plural: str, *values: str, secret: bool = False) -> str:
    """Return the only distinct value that is not empty; an empty string if there is none.

    Raises:
        ValueError: there are several.
    """
    given = list(dict.fromkeys(filter(None, values)))
    if len(given) > 1:
        shown = "" if secret else f", {given[0]} and {given[1]}"
        raise ValueError(f"has two {plural}{shown}; remove one of them")
    return given[0] if given else ""


def _resolve_hosts(authority: str, query: dict[str, list[str]]) -> tuple[tuple[str, int], ...]:
    """Return the pairs of host and port; missing ones come from PGHOST and PGPORT."""
    lists = [[(unquote(host), port) for host, port in _split_hosts(authority)]]
    lists += [_split_hosts(value) for value in query.get("host", ())]
    if not any(host for pairs in lists for host, _ in pairs):
        lists.append(_split_hosts(os.environ.get("PGHOST") or _DEFAULT_HOSTS))
    hosts = _only_one("hosts", *(",".join(host for host, _ in pairs) for pairs in lists)).split(",")
    given = [",".join(port for _, port in pairs) for pairs in lists] + query.get("port", [])
    ports = [_only_one("ports", *of_host) for of_host in zip(*_for_each(hosts, given), strict=True)]
    if not all(ports):
        [default] = _for_each(hosts, [os.environ.get("PGPORT") or _DEFAULT_PORT])
        ports = [port or default[index] for index, port in enumerate(ports)]
    return tuple((host, int(port)) for host, port in zip(hosts, ports, strict=True))


def _split_hosts(text: str) -> list[tuple[str, str]]:
    """Return the pairs of host and port in a comma-separated list; missing parts are empty."""
    pairs = []
    for item in text.split(","):
        if item.startswith("/") or _is_ipv6(item):  # unbracketed, as in ?host=
            host, port = item, ""
        elif item.startswith("["):
            host, _, port = item[1:].partition("]")
            port = port.removeprefix(":")
        else:
            host, _, port = item.partition(":")
        if not host and "," in text:
            raise ValueError("has an empty host in its list of hosts")
        pairs.append((host, port))
    return pairs


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _for_each(hosts: list[str], lists: list[str]) -> list[list[str]]:
    """Split each comma-separated list of ports into one port per host; repeat a single port."""
    expanded = []
    for text in lists:
        ports = text.split(",")
        for port in filter(None, ports):
            if not (port.isascii() and port.isdigit() and 0 < int(port) <= _LARGEST_PORT):
                raise ValueError(
                    "has a port (or takes one from PGPORT) that is not a number from 1 to 65535; "
                    "in a password, write : as %3A, / as %2F and @ as %40"
                )
        if len(ports) not in {1, len(hosts)}:
            raise ValueError(f"has {len(ports)} ports for {len(hosts)} hosts")
        expanded.append(ports * len(hosts) if len(ports) == 1 else ports)
    return expanded


def _default_user() -> str:
    try:
        return os.environ.get("PGUSER") or getpass.getuser()
    except (KeyError, OSError):  # the user of a container may have no name
        raise ValueError("names no user; expected postgresql://user:password@...") from None


def _encode(query: tuple[tuple[str, str], ...]) -> str:
    return urlencode(query, quote_via=quote, safe="/,:")


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
