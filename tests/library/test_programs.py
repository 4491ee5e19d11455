"""Programs that the library runs."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from tests.support import is_alive, wait_until

from alembic_safety import cancellation, programs


def test_no_process_of_the_group_outlives_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program has ended already, and a process that it started holds the pipes."""
    file = tmp_path / "pid"
    monkeypatch.setattr(programs, "PROGRESS_INTERVAL", 0)

    def fail(_seconds: float) -> None:
        if file.exists() and file.read_text():
            raise LookupError

    with pytest.raises(LookupError):
        programs.run_program(["sh", "-c", f"sleep 60 & echo $! > '{file}'"], progress=fail)
    with suppress(psutil.NoSuchProcess):
        left = psutil.Process(int(file.read_text()))
        wait_until(lambda: not is_alive(left), 1)  # it closes its pipes a moment before its end


def test_a_process_of_the_group_has_time_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it writes on SIGTERM is there when the error arrives, and can be removed."""
    ready, written = tmp_path / "ready", tmp_path / "written"
    monkeypatch.setattr(programs, "PROGRESS_INTERVAL", 0)

    def fail(_seconds: float) -> None:
        if ready.exists():
            raise LookupError

    worker = f"trap \"sleep 0.3; touch '{written}'; exit\" TERM; touch '{ready}'; sleep 60 & wait"
    with pytest.raises(LookupError):
        programs.run_program(["sh", "-c", f"({worker}) &"], progress=fail)
    assert written.exists()


def test_a_canceled_call_waits_for_its_thread() -> None:
    began, ended = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        try:
            cancellation.pause(60)
        finally:
            ended.set()

    async def cancel() -> None:
        task = asyncio.create_task(cancellation.call_in_thread(work))
        await asyncio.to_thread(began.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(cancel())


def test_a_signal_that_the_parent_ignores_stays_ignored() -> None:
    code = """
import os, signal
from alembic_safety.cancellation import handled_signals
with handled_signals():
    os.kill(os.getpid(), signal.SIGINT)
    print("goes on", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
"""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(Path(cancellation.__file__).parents[1])},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.stdout == "goes on\n"
    assert "Interrupted: 15" in done.stderr
