"""Hosts and ports of a PostgreSQL URL."""

import os
from ipaddress import IPv6Address
from urllib.parse import unquote

_LARGEST_PORT = 65535
_DEFAULT_PORT = "5432"
_DEFAULT_HOSTS = "/var/run/postgresql,/tmp,localhost"
"""Explicit, because the defaults of asyncpg and of each build of libpq differ."""


def only_one(plural: str, *values: str, secret: bool = False) -> str:
    """Return the only distinct value that is not empty; an empty string if there is none.

    Raises:
        ValueError: there are several.
    """
    given = list(dict.fromkeys(filter(None, values)))
    if len(given) > 1:
        shown = "" if secret else f", {given[0]} and {given[1]}"
        raise ValueError(f"has two {plural}{shown}; remove one of them")
    return given[0] if given else ""


def resolve_hosts(authority: str, query: dict[str, list[str]]) -> tuple[tuple[str, int], ...]:
    """Return the pairs of host and port; missing ones come from PGHOST and PGPORT."""
    lists = [[(unquote(host), port) for host, port in _split_hosts(authority)]]
    lists += [_split_hosts(value) for value in query.get("host", ())]
    if not any(host for pairs in lists for host, _ in pairs):
        lists.append(_split_hosts(os.environ.get("PGHOST") or _DEFAULT_HOSTS))
    hosts = only_one("hosts", *(",".join(host for host, _ in pairs) for pairs in lists)).split(",")
    given = [",".join(port for _, port in pairs) for pairs in lists] + query.get("port", [])
    ports = [only_one("ports", *of_host) for of_host in zip(*_for_each(hosts, given), strict=True)]
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
