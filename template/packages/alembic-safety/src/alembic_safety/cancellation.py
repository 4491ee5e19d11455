"""Cancellation of migrations and commands, by SIGINT, SIGTERM or the task that runs them.

On the command line, the first signal cancels the running task, and later ones are ignored, so that
they do not interrupt the cleanup. Synchronous code checks `raise_if_canceled` while it waits.
"""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STEP = 0.05
"""Seconds between two checks in `pause`."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM ended a command. Not a KeyboardInterrupt, which click reports itself."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number
        """The exit code that shells use for a process that the signal killed."""


class _Handler:
    """Handler of the signals of this process."""

    def __init__(self) -> None:
        self.received = 0
        """The first signal; 0 if there is none yet."""
        self.task: asyncio.Task[Any] | None = None
        """The task to cancel; None raises `Interrupted` at once."""

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            return
        self.received = number
        if self.task is None:
            raise Interrupted(number)
        self.task.cancel()
        self.task.get_loop().call_soon_threadsafe(lambda: None)  # wake the loop


_handler: _Handler | None = None


@dataclass(frozen=True)
class _Thread:
    """Thread that a task waits for."""

    loop: asyncio.AbstractEventLoop
    canceled: threading.Event = field(default_factory=threading.Event)


_thread: ContextVar[_Thread | None] = ContextVar("thread", default=None)


@contextmanager
def handled_signals() -> Iterator[None]:
    """Handle SIGINT and SIGTERM during the block; for programs, in their main thread.

    A signal that the parent ignores, as a shell does for jobs in the background, stays ignored.

    Raises:
        Interrupted: a signal arrived.
    """
    global _handler  # noqa: PLW0603 - signals belong to the process
    if _handler is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _handler = _Handler()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    heeded = [number for number in _SIGNALS if before[number] not in {signal.SIG_IGN, None}]
    for number in heeded:
        signal.signal(number, _handler)
    try:
        yield
    finally:
        _handler = None
        for number in heeded:
            signal.signal(number, before[number])


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a new event loop; a handled signal cancels it.

    Raises:
        Interrupted: the coroutine was canceled by a signal.
    """
    handler = _handler

    async def cancelable() -> T:
        if handler is None:
            return await coroutine
        handler.task = asyncio.current_task()
        try:
            return await coroutine
        finally:
            handler.task = None

    try:
        return asyncio.run(cancelable())
    except asyncio.CancelledError:
        if handler is None or not handler.received:
            raise
        raise Interrupted(handler.received) from None


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal interrupt the block at once; for imports, which can't check for cancellation."""
    handler = _handler
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    raise_if_canceled()
    task, handler.task = handler.task, None
    try:
        yield
    finally:
        handler.task = task


def is_canceled() -> bool:
    """Return whether the running command or task was canceled."""
    if _handler is not None and _handler.received:
        return True
    if (thread := _thread.get()) is not None:
        return thread.canceled.is_set()
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs
        return False
    return task is not None and task.cancelling() > 0


def raise_if_canceled(error: BaseException | None = None) -> None:
    """Raise the cancellation of the running command or task, if there is one.

    The cleanup of a revision (`finally`, the end of an autocommit block) uses a connection that
    the cancellation has closed. Its error replaces the cancellation, and the runner would take it
    for the revision's own.

    Args:
        error: the error that was raised instead.

    Raises:
        asyncio.CancelledError: the command or task was canceled.
    """
    if is_canceled():
        raise asyncio.CancelledError from error


def pause(seconds: float) -> None:
    """Sleep; raise `asyncio.CancelledError` soon after a cancellation."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        raise_if_canceled()
        time.sleep(min(left, _STEP))


async def call_in_thread(
    function: Callable[..., T],
    *arguments: Any,
    executor: Executor | None = None,
    cancel: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> T:
    """Call a function in a thread; a cancellation waits for the thread to end.

    Args:
        function: checks `raise_if_canceled` while it waits.
        arguments: its arguments.
        executor: the executor to use; None means the loop's.
        cancel: awaited repeatedly after a cancellation, until the function ends.
    """
    thread = _Thread(asyncio.get_running_loop())
    context = copy_context()
    context.run(_thread.set, thread)
    future = thread.loop.run_in_executor(executor, context.run, function, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        thread.canceled.set()
        while not future.done():
            if cancel is not None:
                await cancel()
            await asyncio.wait({future}, timeout=1)
        future.exception()  # retrieved, so that asyncio does not log it
        raise


def thread_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop that waits for this thread; None outside of `call_in_thread`."""
    thread = _thread.get()
    return thread.loop if thread else None
