"""Other programs, which end with the command that started them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from alembic_safety.cancellation import raise_if_canceled

PROGRESS_INTERVAL = 5.0
"""Seconds between two calls of `progress`."""
_STEP = 0.1
"""Seconds between two checks for cancellation."""
_PATIENCE = 2.0
"""Seconds from SIGTERM to SIGKILL."""


def run_program(
    command: Sequence[str],
    *,
    script: bytes = b"",
    progress: Callable[[float], None] = lambda _seconds: None,
    **options: Any,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end.

    The program has its own process group, so that Ctrl-C at the terminal reaches this process only.
    If this function raises, no process of the group is left.

    Args:
        command: the program and its arguments.
        script: standard input of the program.
        progress: called every `PROGRESS_INTERVAL` seconds with the seconds since the start.
        options: further arguments of `subprocess.Popen`.

    Raises:
        OSError: the program can't be started.
        asyncio.CancelledError: the command was canceled.
    """
    started = reported = time.monotonic()
    remaining: bytes | None = script
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
        **options,
    ) as process:
        try:
            while True:
                raise_if_canceled()
                try:
                    out, errors = process.communicate(remaining, timeout=_STEP)
                except subprocess.TimeoutExpired:
                    remaining = None
                else:
                    return subprocess.CompletedProcess(command, process.returncode, out, errors)
                if time.monotonic() - reported >= PROGRESS_INTERVAL:
                    reported = time.monotonic()
                    progress(reported - started)
        except BaseException:
            _end(process)
            raise


def _end(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_PATIENCE)  # until none of the group holds the pipes
            break
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # one that closed the pipes
