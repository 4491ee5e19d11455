"""A process that serves an application while it is measured."""

import http.client
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT = 60.0
"""Seconds in which the process has to answer."""
_PAUSE = 0.005


class ServerError(Exception):
    """A process that does not answer. The message ends with what it printed last."""


@dataclass(frozen=True)
class Server:
    """A process that listens on 127.0.0.1."""

    process: "subprocess.Popen[bytes]"
    port: int

    def memory(self) -> float:
        """Return the resident memory in MB (10^6 bytes)."""
        command = ["ps", "-o", "rss=", "-p", str(self.process.pid)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(shown.stdout) * 1024 / 1e6

    def peak_memory(self) -> float:
        """Return the peak of the resident memory in MB, or the present value where there is no /proc."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        except FileNotFoundError:  # not on Linux
            return self.memory()
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        return int(peak[1]) * 1024 / 1e6 if peak else self.memory()


@contextmanager
def serving(
    *arguments: str,
    folder: Path,
    environment: Mapping[str, str],
    ready: str = "/health/ready",
    python: str | Path,
) -> Iterator[Server]:
    """Serve with one worker of uvicorn until the block ends. The server is ready when it begins.

    Args:
        arguments: arguments of uvicorn: the application and options, without the address.
        folder: the working directory of the process.
        environment: all environment variables of the process.
        ready: the path that is requested until the answer is 200.
        python: the interpreter that has uvicorn.

    Raises:
        ServerError: the process ended, or was not ready in `START_TIMEOUT` seconds.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = ("--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    # Keep idle connections open, and do not wait for requests that hang.
    limits = ("--timeout-keep-alive", "120", "--timeout-graceful-shutdown", "5")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [python, "-m", "uvicorn", *address, *limits, *arguments],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not _is_ready(port, ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(-min(2000, os.fstat(log.fileno()).st_size), os.SEEK_END)
                    tail = log.read().decode(errors="replace")
                    raise ServerError(f"{' '.join(arguments)} does not answer:\n{tail}")
                time.sleep(_PAUSE)
            yield Server(process, port)
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_ready(port: int, path: str) -> bool:
    probe = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        probe.request("GET", path)
        return probe.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        probe.close()
