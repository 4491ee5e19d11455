"""Metrics of several workers, added up through files that each worker writes."""

import hashlib
import multiprocessing
import os
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Variable with the folder of these files; prometheus-client reads it at import."""
_WITHOUT_CREATED = "PROMETHEUS_DISABLE_CREATED_SERIES"
"""Variable that disables the `_created` series."""
_PREFIX = "service-metrics-"
_BEGINNING = 60.0
"""Seconds within which a worker starts to write."""
_OF_A_PROCESS = re.compile(r"_(\d+)\.db$")


def share_counts() -> Path | None:
    """Create and return the folder of the metrics; None for a single process.

    `uvicorn --workers` (and `--reload`) starts its workers by multiprocessing, which gives all of
    them one secret: what names the folder. Under another process manager, set the variable
    PROMETHEUS_MULTIPROC_DIR to an empty folder instead.
    """
    os.environ.setdefault(_WITHOUT_CREATED, "true")
    if given := os.environ.get(VARIABLE):
        folder = Path(given)
    elif multiprocessing.parent_process() is not None:
        secret = bytes(multiprocessing.current_process().authkey)
        name = hashlib.sha256(secret).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"{_PREFIX}{name}"
        os.environ[VARIABLE] = str(folder)
    else:
        return None
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for other in folder.parent.glob(f"{_PREFIX}*"):
        if other != folder and _is_abandoned(other):
            shutil.rmtree(other, ignore_errors=True)  # of a service that has ended
    return folder


def forget_the_dead(folder: Path) -> None:
    """Delete the gauges of workers that ended, and keep their counters."""
    for file in folder.glob("gauge_live*.db"):
        match = _OF_A_PROCESS.search(file.name)
        if match and not _is_running(int(match[1])):
            file.unlink(missing_ok=True)


def _is_abandoned(folder: Path) -> bool:
    try:
        age = time.time() - folder.stat().st_mtime
    except FileNotFoundError:  # another one removed it
        return False
    # Workers that begin have no files yet.
    return age > _BEGINNING and not any(_is_running(pid) for pid in _pids(folder))


def _pids(folder: Path) -> set[int]:
    return {
        int(match[1]) for file in folder.glob("*.db") if (match := _OF_A_PROCESS.search(file.name))
    }


def _is_running(pid: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
