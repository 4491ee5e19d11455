"""Server processes: which of them belong to a data folder, and how to end them.

A server is known by its working directory, which is the data folder: it stays right if
postmaster.pid is garbage, names another process or is gone, and if the folder was moved, copied,
deleted or closed to this user.
"""

import importlib
import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alembic_safety.embedded.errors import EmbeddedPostgresError

# Seconds for each way to end a server. After any of them the next start recovers from the WAL.
_WAYS_TO_END = ((signal.SIGINT, 5.0), (signal.SIGQUIT, 2.0), (signal.SIGKILL, 1.0))


def end_servers(data: Path) -> bool:
    """End every server of `data`, stopped ones (SIGSTOP) too; return whether there was one.

    Raises:
        EmbeddedPostgresError: this user may not end it, or psutil is not installed.
    """
    if not os.path.lexists(data) and find_spec("psutil") is None:
        return False  # never installed, never started
    servers = _find_servers(data)
    for server in servers:
        _end(server)
    return bool(servers)


def _find_servers(data: Path) -> list[Any]:
    """Return the server processes of `data` as psutil has them, without their children."""
    found = {
        process.pid: process
        for process in _psutil().process_iter(["name", "ppid"])
        if process.info["name"] == "postgres" and _works_in(process, data)
    }
    return [process for process in found.values() if process.info["ppid"] not in found]


def _works_in(process: Any, data: Path) -> bool:
    psutil = _psutil()
    try:
        return bool(process.cwd() == str(data))
    except psutil.AccessDenied:
        # Another user's, and root's in a container, who lacks CAP_SYS_PTRACE there.
        try:
            return str(data) in process.cmdline()
        except psutil.Error:
            return False
    except psutil.Error:
        return False


def _end(server: Any) -> None:
    psutil = _psutil()
    try:
        family = [server, *server.children(recursive=True)]
        for number, patience in _WAYS_TO_END:
            for process in family if number == signal.SIGKILL else [server]:
                _send(process, number)
            for process in family:
                _send(process, signal.SIGCONT)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline:
                if not any(map(_is_alive, family)):
                    return
                time.sleep(0.02)
    except psutil.AccessDenied:
        raise EmbeddedPostgresError(
            f"the server (pid {server.pid}) belongs to the user {server.username()}; "
            "stop it as that user"
        ) from None
    raise EmbeddedPostgresError(f"the server (pid {server.pid}) can't be ended, even by SIGKILL")


def _send(process: Any, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except _psutil().NoSuchProcess:
        return


def _is_alive(process: Any) -> bool:
    psutil = _psutil()
    try:
        # A zombie has ended; its parent, who may live long, has not asked yet.
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _psutil() -> Any:
    try:
        return importlib.import_module("psutil")
    except ImportError:
        raise EmbeddedPostgresError(
            "psutil is not installed; install alembic-safety[embedded]"
        ) from None
