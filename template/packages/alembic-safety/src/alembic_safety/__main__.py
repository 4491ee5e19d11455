"""`alembic-safety`, or `python -m alembic_safety`."""

import atexit
import gc
import os
import signal
import sys
from types import FrameType


def _end(number: int, _frame: FrameType | None) -> None:
    os.write(2, b"Interrupted.\n")
    os._exit(128 + number)


def run() -> None:
    """Run the program and exit. A signal during the imports ends it: nothing has begun."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    from alembic_safety.cli import main  # noqa: PLC0415 - a signal is handled before

    atexit.register(gc.freeze)  # skip the last garbage collection, as in alembic_safety.environment
    sys.exit(main())


if __name__ == "__main__":
    run()
