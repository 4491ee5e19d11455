"""Stop a server: `python -m alembic_safety.embedded stop .postgres`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from alembic_safety.embedded.errors import EmbeddedPostgresError
from alembic_safety.embedded.server import stop


def main(arguments: Sequence[str] | None = None) -> int:
    """Stop the server of a folder; return 0 if it is stopped, 1 on failure, 2 on wrong usage."""
    match list(sys.argv[1:] if arguments is None else arguments):
        case ["stop", home]:
            pass
        case _:
            print("usage: python -m alembic_safety.embedded stop FOLDER", file=sys.stderr)
            return 2
    try:
        stopped = stop(Path(home))
    except EmbeddedPostgresError as error:
        print(error, file=sys.stderr)
        return 1
    print("PostgreSQL stopped." if stopped else "PostgreSQL was not running.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
