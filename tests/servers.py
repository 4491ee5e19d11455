"""The servers of Debian's packages, for what the wheel's does not do: TLS, and older versions."""

import os
import pwd
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support import free_port


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that runs, and where."""

    port: int
    folder: Path
    """Its socket is here, and so may its certificates be."""


def installed() -> dict[int, Path]:
    """Return the folders of the programs of the servers that are installed, by major version."""
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return {int(path.parts[-3]): path.parent for path in sorted(found)}


def account() -> dict[str, Any]:
    """Return as whom subprocess runs a server: root may not."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam("postgres")
    return {"user": entry.pw_uid, "group": entry.pw_gid}


def give(path: Path) -> None:
    """Let the server's account own a file."""
    owner = account()
    os.chown(path, owner.get("user", -1), owner.get("group", -1))


def _nothing(_data: Path) -> None:
    pass


@contextmanager
def running(
    binaries: Path, *options: str, addresses: str = "", configure: Callable[[Path], None] = _nothing
) -> Iterator[Server]:
    """Run a server on a new data folder, which `configure` may change before it starts."""
    # A short path that the server's user can reach, for the sockets.
    with tempfile.TemporaryDirectory(prefix="server-") as name:
        folder = Path(name)
        data = folder / "data"
        data.mkdir()
        for path in (folder, data):
            give(path)
        settings = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
        initdb = [str(binaries / "initdb"), "-D", str(data), *settings]
        subprocess.run(initdb, check=True, capture_output=True, **account())
        configure(data)
        port = free_port()
        command = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-k", str(folder)]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen[bytes](
                [*command, "-h", addresses, *options], stdout=log, stderr=log, **account()
            )
        try:
            _wait(process, data / "postmaster.pid", folder / "log")
            yield Server(port=port, folder=folder)
        finally:
            process.terminate()
            process.wait()


def _wait(process: subprocess.Popen[bytes], status: Path, log: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        # The last line: it listens before it is ready.
        if status.exists() and status.read_text().rstrip().endswith("\nready"):
            return
        time.sleep(0.1)
    pytest.fail(log.read_text())
