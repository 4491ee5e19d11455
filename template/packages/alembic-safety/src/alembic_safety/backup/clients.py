"""Client programs of PostgreSQL: finding the right version and running it."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import ClientProgramError
from alembic_safety.programs import run_program
from alembic_safety.wheel import wheel_programs

# Folders of packages outside of PATH: Debian and Ubuntu, Red Hat, Homebrew.
_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/opt/homebrew/opt/libpq/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/usr/local/opt/libpq/bin",
)
_OTHER_SERVERS = ("PGHOSTADDR", "PGSERVICE", "PGLOADBALANCEHOSTS")
"""Variables that lead libpq to another server, and that asyncpg ignores."""


def find_client(program: str, url: DatabaseURL | None, *, server_major: int | None = None) -> str:
    """Return the path of `program` (psql, pg_dump, pg_restore) for the server of `url`.

    Args:
        program: name of the program.
        url: the database; None if the program does not connect. The programs of the wheel lack
            TLS, so a URL that requires TLS excludes them.
        server_major: major version of the server. The program of that version is preferred, then
            the next newer one, because pg_dump refuses a server newer than itself. None means the
            newest program.

    Raises:
        ClientProgramError: the program is not installed, or only in older versions.
    """
    if server_major is None:
        versions = _installed(program, url, server_major)
        return max(versions, key=lambda path: versions[path])
    return find_clients(program, url, server_major=server_major)[0]


def find_clients(program: str, url: DatabaseURL | None, *, server_major: int) -> list[str]:
    """Return the paths of `program` in the server's major version or newer, oldest first.

    Raises:
        ClientProgramError: the program is not installed, or only in older versions.
    """
    versions = _installed(program, url, server_major)
    fitting = [path for path, version in versions.items() if version >= server_major]
    if not fitting:
        raise ClientProgramError(
            f"{program} {max(versions.values())} is older than the server, which is PostgreSQL "
            f"{server_major}; install the client programs of PostgreSQL {server_major} "
            f"(Debian: postgresql-client-{server_major}, Homebrew: libpq)"
        )
    return sorted(fitting, key=lambda path: versions[path])


def libpq_environment(url: DatabaseURL | None, **variables: str) -> dict[str, str]:
    """Return the environment of a client program whose argument is `url.without_password`.

    It has the password in PGPASSWORD, and no variable that leads libpq to another server.

    Args:
        url: the database; None if the program does not connect.
        variables: further variables.
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
    """Run a client program; return its standard error output.

    Args:
        command: the program and its arguments, without the password.
        url: the database whose password is passed in the environment; None if the program does
            not connect.
        script: standard input of the program.
        pass_fds: file descriptors that the program inherits.
        progress: called every few seconds with the seconds since the start.

    Raises:
        ClientProgramError: the program failed; the message is its error output.
    """
    # Output goes to pipes, not to a file, because the program may report a full disk.
    done = run_program(
        command,
        script=script,
        env=libpq_environment(url, LC_ALL="C"),  # messages are matched in English
        pass_fds=pass_fds,
        progress=progress,
    )
    message = done.stderr.decode(errors="replace").strip()
    name = Path(command[0]).name
    if done.returncode < 0:
        raise ClientProgramError(f"{name} was terminated by signal {-done.returncode}")
    if done.returncode > 0:
        raise ClientProgramError(message or f"{name} failed with exit code {done.returncode}")
    return message


def _installed(program: str, url: DatabaseURL | None, server_major: int | None) -> dict[str, int]:
    """Return paths and major versions: PATH first, then packages, then the wheel."""
    with_tls = url is not None and url.wants_tls
    found = [shutil.which(program)]
    for pattern in _FOLDERS:
        found += map(str, sorted(Path("/").glob(f"{pattern[1:]}/{program}"), reverse=True))
    if not with_tls and (wheel := wheel_programs()) is not None:
        found.append(shutil.which(wheel / program))
    versions = {path: major_version(path) for path in dict.fromkeys(filter(None, found))}
    # Debian installs its wrapper even without a client of any version.
    working = {path: version for path, version in versions.items() if version}
    if not working:
        version = f"-{server_major}" if server_major else ""
        raise ClientProgramError(
            f"there is no {program} here{' with TLS' if with_tls else ''}; install the client "
            f"programs of PostgreSQL (Debian: postgresql-client{version}, Homebrew: libpq)"
        )
    return working


def major_version(path: str) -> int:
    """Return the major version of a client program; 0 if it does not run."""
    try:
        done = run_program([path, "--version"])
    except OSError:
        return 0
    match = re.search(rb"\(PostgreSQL\) (\d+)", done.stdout)
    return int(match[1]) if match else 0
