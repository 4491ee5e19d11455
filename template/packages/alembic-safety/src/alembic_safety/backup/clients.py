"""psql, pg_dump and pg_restore: the installed ones, and which of them fits a server."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import ClientProgramError
from alembic_safety.wheel import wheel_programs

# Where packages put them beside PATH: Debian and Ubuntu, Red Hat, Homebrew.
_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/opt/homebrew/opt/libpq/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/usr/local/opt/libpq/bin",
)
_OTHER_SERVERS = ("PGHOSTADDR", "PGSERVICE", "PGLOADBALANCEHOSTS")
"""Variables that change which server libpq reaches, and that asyncpg does not read."""
PROGRESS_INTERVAL = 5.0
"""Seconds between two words on a program that takes long."""


def find_client(program: str, url: DatabaseURL | None, *, server_major: int | None = None) -> str:
    """Return the path of `program` (psql, pg_dump, pg_restore) for the server of `url`.

    Args:
        program: its name.
        url: None where no server is asked. One that wants TLS rules the wheel's programs out.
        server_major: the server's major version: the program of that version is taken, or else
            the next newer one, as pg_dump refuses a server newer than itself. By default the
            newest is taken.

    Raises:
        ClientProgramError: there is none, or only older ones.
    """
    if server_major is None:
        versions = _installed(program, url, server_major)
        return max(versions, key=lambda path: versions[path])
    return find_clients(program, url, server_major=server_major)[0]


def find_clients(program: str, url: DatabaseURL | None, *, server_major: int) -> list[str]:
    """Return the paths of `program`, of the server's major version and newer, oldest first.

    Raises:
        ClientProgramError: there is none, or only older ones.
    """
    versions = _installed(program, url, server_major)
    fitting = [path for path, version in versions.items() if version >= server_major]
    if not fitting:
        raise ClientProgramError(
            f"{program} {max(versions.values())} is older than the server, which is PostgreSQL "
            f"{server_major}, and can't be used with it; install PostgreSQL {server_major}'s "
            f"client programs (Debian: postgresql-client-{server_major}, Homebrew: libpq)"
        )
    return sorted(fitting, key=lambda path: versions[path])


def libpq_environment(url: DatabaseURL | None, **variables: str) -> dict[str, str]:
    """Return the environment of a program that gets `url.without_password` as an argument.

    Variables with which libpq would reach another server than the URL names are left out.
    """
    environment = {**os.environ, **variables}
    for name in _OTHER_SERVERS:
        environment.pop(name, None)
    if url is not None and url.password is not None:
        environment["PGPASSWORD"] = url.password
    return environment


def run_client(
    command: Sequence[str],
    url: DatabaseURL | None,
    *,
    script: bytes = b"",
    pass_fds: Sequence[int] = (),
    progress: Callable[[float], None] = lambda _seconds: None,
) -> str:
    """Run a client program to its end; return what it said on standard error.

    Args:
        command: the program and its arguments, without the password.
        url: whose password goes into the environment; None where no server is asked.
        script: what it reads on standard input.
        pass_fds: file descriptors that it inherits.
        progress: called every few seconds with the seconds since the start; what it raises ends
            the program.

    Raises:
        ClientProgramError: it failed; the message is its own.
    """
    # In memory: what a program says of a full disk is not written to it.
    process = subprocess.Popen(
        command,
        env=libpq_environment(url, LC_ALL="C"),  # messages that can be recognised
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=pass_fds,
    )
    started = time.monotonic()
    given: bytes | None = script
    try:
        while True:
            try:
                _, said = process.communicate(given, timeout=PROGRESS_INTERVAL)
                break
            except subprocess.TimeoutExpired:
                given = None
                progress(time.monotonic() - started)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    message = said.decode(errors="replace").strip()
    name = Path(command[0]).name
    if process.returncode < 0:
        raise ClientProgramError(f"{name} was ended by signal {-process.returncode}")
    if process.returncode > 0:
        raise ClientProgramError(message or f"{name} ended with {process.returncode}")
    return message


def _installed(program: str, url: DatabaseURL | None, server_major: int | None) -> dict[str, int]:
    """Return path and major version of what there is: on PATH first, in the wheel last."""
    with_tls = url is not None and url.wants_tls
    found = [shutil.which(program)]
    for pattern in _FOLDERS:
        found += map(str, sorted(Path("/").glob(f"{pattern[1:]}/{program}"), reverse=True))
    if not with_tls and (wheel := wheel_programs()) is not None:
        found.append(shutil.which(wheel / program))
    versions = {path: major_version(path) for path in dict.fromkeys(filter(None, found))}
    # Debian's wrapper is there without a program to run, too.
    working = {path: version for path, version in versions.items() if version}
    if not working:
        version = f"-{server_major}" if server_major else ""
        raise ClientProgramError(
            f"there is no {program} here{' that speaks TLS' if with_tls else ''}; install "
            f"PostgreSQL's client programs (Debian: postgresql-client{version}, Homebrew: libpq)"
        )
    return working


def major_version(path: str) -> int:
    """Return a program's major version; 0 of one that does not run."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return 0
    match = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    return int(match[1]) if match else 0
