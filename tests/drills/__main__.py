"""Run the drills: `make drill`, or `python -m drills [--quick] [NAME ...]`."""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from core.embedded_postgres import EmbeddedPostgresError
from drills import service
from drills.backups import failing_backups, round_trips
from drills.concurrency import kills, restarts, runners
from drills.mistakes import mistakes
from drills.waiting import held_table
from drills.world import DrillError, Scale, Server

DRILLS: dict[str, Callable[[Server, Path, Scale], str]] = {
    "runners": runners,
    "kills": kills,
    "restarts": restarts,
    "held-table": held_table,
    "failing-backups": failing_backups,
    "round-trips": round_trips,
    "mistakes": mistakes,
    "service-restart": service.restarts,
    "service-migration": service.migration,
    "service-pool": service.pool,
    "service-sigterm": service.sigterm,
}


def main() -> int:
    """Run the drills that are named, or all; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m drills", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds of everything")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(DRILLS)}")
    given = parser.parse_args()
    if unknown := set(given.names) - set(DRILLS):
        parser.error(f"no such drill: {', '.join(sorted(unknown))}; there are {', '.join(DRILLS)}")
    # What migrations in this process say would stand between the lines.
    logging.getLogger().addHandler(logging.NullHandler())
    failed = 0
    with tempfile.TemporaryDirectory(prefix="drill-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o711)  # PostgreSQL, which does not run as root, has to get through
        try:
            server = Server(folder)
        except EmbeddedPostgresError as error:
            print(error, file=sys.stderr)
            return 1
        try:
            for drill in given.names or DRILLS:
                started = time.monotonic()
                try:
                    result = DRILLS[drill](server, folder / drill, Scale(quick=given.quick))
                except Exception as error:  # noqa: BLE001 - the other drills go on
                    failed += 1
                    kind = "" if isinstance(error, DrillError) else f"{type(error).__name__}: "
                    result = f"FAILED: {kind}{error}"
                print(f"{drill:<18} {time.monotonic() - started:4.0f} s  {result}", flush=True)
        finally:
            server.stop()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
